"""The lemmas on the envelope F: its gradient, its curvature, stationarity, inexact local solutions.

Each check tests a statement independently: gradients by differences of F, curvature by differences of
gradients, inexactness by comparison with certified solutions. Each has an instance where it holds with
equality, so that a constant that is too small is noticed.

Source: mathematics.md §7, §8.1-8.3; Lin et al. 2020, Lemmas 1-3. Derived where stated, else verified.
"""

import numpy as np

from refimpl.contracts import Vector
from refimpl.federated.local import LocalSettings, local_residual, solve_local
from refimpl.kernels import vector
from refimpl.theory.constants import Around
from refimpl.theory.gap import Gap, envelope, exact_gap, solve_exactly
from refimpl.theory.problems import Problem, Quadratic, WithConstants, envelope_minimiser
from refimpl.theory.rows import Row, Sides, at_most, equal, largest, worst
from refimpl.theory.run import LossTask

LOCAL_STEPS = (1, 2, 4, 8)
CENTRES, PAIRS = 3, 40  # points at which inexactness is looked at, and pairs of points for curvature
MAX_AXES = 12  # above this dimension, random directions are used instead of the axes
AT_REST = 1e-8  # a gap at most so large counts as zero
MEASURABLE = 1e10  # sizes above this many times their error must satisfy equalities to nine digits


def curvature_bounds(smoothness: float, concavity: float, lam: float) -> tuple[float, float]:
    """(Lf, Lu): the eigenvalues of the Hessian of F lie in [-Lf, Lu].

    Lf = lam C/(lam - C), Lu = lam L/(lam + L) when those of every L_i lie in [-C, L]: an eigenvalue t of
    L_i becomes lam t/(lam + t) in its envelope, which rises with t. Source: mathematics.md §8.2; derived.
    """
    return lam * concavity / (lam - concavity), lam * smoothness / (lam + smoothness)


def inexactness_factor(smoothness: float, lam: float) -> float:
    """||g - grad F(md)|| <= factor * mean_i ||gradient of node i's local problem at its answer||.

    factor = lam/(lam - L). Source: Lin et al. 2020, Lemma 3, in the form of mathematics.md §8.3; derived.
    """
    return lam / (lam - smoothness)


def theory_beta(problem: Problem, lam: float) -> float:
    """b = 1/(2 Lu), Lu the upper curvature of F."""
    return 0.5 / curvature_bounds(problem.smoothness, problem.concavity, lam)[1]


def anywhere(problem: Problem) -> Around:
    """Points around zero, where a check draws its points unless told otherwise."""
    return Around(np.zeros(problem.size))


def norm(x: Vector) -> float:
    """Euclidean norm."""
    return float(vector.norm(np.ascontiguousarray(x)))


# --- 8.1 the gradient of the envelope ---------------------------------------------------------------


def difference(problem: Problem, v: Vector, direction: Vector, lam: float, h: float = 1e-3) -> float:
    """<grad F(v), direction> by fourth-order central differences of F: error of order h^4."""

    def value(t: float) -> float:
        return envelope(problem, v + t * direction, lam).value

    return (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)


def directions(size: int, rng: np.random.Generator) -> np.ndarray:
    """Directions as rows: every axis in few dimensions, else a few random orthonormal directions."""
    if size <= MAX_AXES:
        return np.eye(size)
    return np.linalg.qr(rng.standard_normal((size, MAX_AXES // 2)))[0].T.copy()


def gradient_rows(problem: Problem, lam: float, rng: np.random.Generator, centres: np.ndarray) -> list[Row]:
    """8.1: grad F = lam (v - mean w_i*) against central differences of F, relative, at each centre (n, d)."""
    found, solved = [], []
    for v in centres:
        point, along = envelope(problem, v, lam), directions(problem.size, rng)
        numeric = np.array([difference(problem, v, d, lam) for d in along])
        found.append(Sides(norm(along @ point.gradient - numeric) / norm(numeric), 1e-8, 0.0))
        solved.append(Sides(point.gradient_error / norm(numeric), 1e-10, 0.0))
    return [
        worst("8.1 grad F = lam (v - mean w*): relative difference", problem.name, found),
        worst("8.1 certified error of grad F, relative", problem.name, solved),
    ]


def opaque(loss: Quadratic, *offers: str) -> WithConstants:
    """The quadratic without its closed form, so that a solver is used; `offers`: which methods it keeps."""
    return WithConstants(loss, loss.smoothness, loss.concavity, *offers)


def closed_form_rows(problem: Problem, lam: float, rng: np.random.Generator) -> list[Row]:
    """Quadratics: solver against formula for w_i*, F, grad F and the gap, to 1e-12."""
    quadratics = [loss for loss in problem.losses if isinstance(loss, Quadratic)]
    envelopes = [loss.envelope(lam) for loss in quadratics]
    v = rng.standard_normal(problem.size)
    pieces = [np.empty_like(v) for _ in envelopes]
    value = float(np.mean([e(v, piece) for e, piece in zip(envelopes, pieces, strict=True)]))
    gradient = np.mean(pieces, axis=0)
    rows, name = [], problem.name
    for kind, offers in (("Newton-CG", ["hessian_vector"]), ("L-BFGS", [])):
        hidden = Problem(name, tuple(opaque(loss, *offers) for loss in quadratics), problem.size)
        point, gap = envelope(hidden, v, lam), exact_gap(hidden, v, lam, 1.0 / lam)
        pairs = zip(point.points, quadratics, strict=True)
        off = largest(vector.norm(w - loss.local_point(v, lam)) / vector.norm(w) for w, loss in pairs)
        rows += [
            at_most(f"8.1 w* by {kind} against its formula, relative", name, off, 1e-12),
            equal(f"8.1 F by {kind} against its formula", name, point.value, value, 1e-12),
            equal(f"7 gap by {kind} against its formula", name, gap.mapping, norm(gradient), 1e-12),
        ]
    if problem.concavity == 0:
        best = exact_gap(problem, envelope_minimiser(problem, lam), lam, 1.0 / lam)
        rows.append(at_most("7 gap at the minimiser", name, best.mapping, 1e-12))
    return rows


# --- 8.2 curvature ----------------------------------------------------------------------------------


def sampled_curvature(
    problem: Problem, lam: float, rng: np.random.Generator, around: Around | None = None
) -> tuple[float, float, float, float]:
    """(lowest and highest <D, d>/|d|^2, highest |D|/|d|, error), D the difference of grad F along d.

    Along random directions and along the axes, over distances from 1e-3 to 1, from points drawn around zero
    or as `around` says.
    """
    around = around or anywhere(problem)
    curvatures, steepness, errors = [], [], []
    for i in range(PAIRS):
        v = around.draw(rng, 1)[0]
        direction = np.eye(problem.size)[i % problem.size] if i % 2 else rng.standard_normal(problem.size)
        d = around.step(v, direction / norm(direction) * 10.0 ** rng.uniform(-3, 0))
        here, there = envelope(problem, v, lam), envelope(problem, v + d, lam)
        change = there.gradient - here.gradient
        curvatures.append(change @ d / (d @ d))
        steepness.append(norm(change) / norm(d))
        errors.append((here.gradient_error + there.gradient_error) / norm(d))
    low, high = -largest(-c for c in curvatures), largest(curvatures)
    return low, high, largest(steepness), largest(errors)


def smoothness_rows(
    problem: Problem, lam: float, rng: np.random.Generator, around: Around | None = None
) -> list[Row]:
    """8.2: sampled curvature of F inside [-lam C/(lam - C), lam L/(lam + L)]; equality if `attained`."""
    below, above = curvature_bounds(problem.smoothness, problem.concavity, lam)
    low, high, steep, error = sampled_curvature(problem, lam, rng, around)
    name = problem.name
    rows = [
        at_most("8.2 Lemma 1: curvature of F <= lam L/(lam+L)", name, high, above, error),
        at_most("8.2 Lemma 1: -curvature of F <= lam C/(lam-C)", name, -low, below, error),
        at_most("8.2 Lemma 1: Lipschitz constant of grad F", name, steep, max(above, below), error),
    ]
    if problem.attains > 0:
        rows.append(equal("8.2 Lemma 1 is attained: lam L/(lam+L)", name, high, above, 1e-9))
    if problem.attains < 0:
        rows += [
            equal("8.2 Lemma 1 is attained: lam L/(lam-L)", name, -low, below, 1e-9),
            at_most("8.2 as printed, lam L/(lam+L), exceeded without convexity", name, above, steep),
        ]
    return rows


# --- 8.3 inexact local solutions --------------------------------------------------------------------


def inexactness_rows(
    problem: Problem, lam: float, rng: np.random.Generator, around: Around | None = None
) -> list[Row]:
    """8.3: ||g - grad F(md)|| <= lam/(lam-L) mean residual, after 1, 2, 4, 8 local steps."""
    factor = inexactness_factor(problem.smoothness, lam)
    found = []
    for md in (around or anywhere(problem)).draw(rng, CENTRES):
        exact = envelope(problem, md, lam)
        for steps in LOCAL_STEPS:
            settings = LocalSettings(lam, 1.0 / lam, steps)
            answers = [solve_local(LossTask(f), md, settings, rng).w for f in problem.losses]
            residuals = [local_residual(f, w, md, lam) for f, w in zip(problem.losses, answers, strict=True)]
            left = norm(lam * (md - np.mean(answers, axis=0)) - exact.gradient)
            found.append(Sides(left, factor * float(np.mean(residuals)), exact.gradient_error))
    rows = [worst("8.3 Lemma 3: error of g <= lam/(lam-L) mean residual", problem.name, found)]
    if problem.attains < 0:
        sized = [s for s in found if s.right > MEASURABLE * s.error]
        tightest = largest(abs(s.left - s.right) / s.right for s in sized)
        rows.append(at_most("8.3 Lemma 3 is attained, relative difference", problem.name, tightest, 1e-9))
    return rows


def contraction_rows(
    problem: Problem, lam: float, rng: np.random.Generator, around: Around | None = None
) -> list[Row]:
    """8.3: with eta = 1/lam each of 8 local steps brings w nearer to w* by L/lam."""
    md = (around or anywhere(problem)).draw(rng, 1)[0]
    rate, found, ratios = problem.smoothness / lam, [], []
    for loss in problem.losses:
        exact = solve_exactly(loss, md, lam)
        before = norm(md - exact.w)
        for s in range(1, LOCAL_STEPS[-1] + 1):
            after = norm(solve_local(LossTask(loss), md, LocalSettings(lam, 1.0 / lam, s), rng).w - exact.w)
            found.append(Sides(after, rate * before, 2 * exact.error))
            if after > MEASURABLE * exact.error:
                ratios.append(after / before)
            before = after
    rows = [worst("8.3 a local step contracts by L/lam", problem.name, found)]
    if problem.attains:
        slowest = min(ratios, default=np.nan)
        rows.append(equal("8.3 the contraction is attained", problem.name, slowest, rate, 1e-9))
    return rows


# --- Lemma 2: stationarity --------------------------------------------------------------------------


def stationarity_rows(
    problem: Problem, lam: float, beta: float, v: Vector, stationary: Vector | None
) -> list[Row]:
    """Lemma 2 in numbers: mapping and distance vanish together.

    At any v, ||G(v)|| <= dist(0, grad F(v) + dh(v)); at u = prox(v - b grad F(v)) the distance is at most
    (1 + b Lip) ||G(v)||, Lip the Lipschitz constant of grad F. At a stationary point both are zero; without
    one (None) that is unchecked.
    Source: mathematics.md §7; derived.
    """
    lipschitz = max(curvature_bounds(problem.smoothness, problem.concavity, lam))
    point, here = envelope(problem, v, lam), exact_gap(problem, v, lam, beta)
    u = v - beta * point.gradient
    problem.penalty.prox(u, beta, u)
    there, at_rest = exact_gap(problem, u, lam, beta), Gap(np.nan, np.nan, 0.0)
    if stationary is not None:
        at_rest = exact_gap(problem, stationary, lam, beta)
    name, error = problem.name, here.error + there.error
    mapping, allowed = here.mapping, (1.0 + beta * lipschitz) * here.mapping
    return [
        at_most("7 Lemma 2: ||G(v)|| <= dist(0, grad F(v) + dh(v))", name, mapping, here.distance, error),
        at_most(
            "7 Lemma 2: dist at the prox point <= (1 + b Lip) ||G(v)||", name, there.distance, allowed, error
        ),
        at_most("7 Lemma 2: mapping at the solution", name, at_rest.mapping, AT_REST),
        at_most("7 Lemma 2: distance form at the solution", name, at_rest.distance, AT_REST),
    ]
