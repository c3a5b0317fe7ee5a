"""Problem families: gradients, curvature and constants, solutions in closed form, what spread does."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.errors import InputError
from refimpl.optim.prox import GroupLasso, Zero
from refimpl.theory import problems
from refimpl.theory.soft_network import soft_network


def points(seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Samples (90, 5) and labels of -1 and 1 that no plane separates."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((90, 5))
    return x, np.where(x @ rng.standard_normal(5) + rng.standard_normal(90) > 0, 1, -1)


FAMILIES = {
    "quadratic": lambda rng, spread: problems.quadratics(np.linspace(-1, 2, 5), rng, 3, spread),
    "attained": lambda rng, spread: problems.attained(-1, 2.0, size=3, nodes=2),
    "sparse": lambda rng, spread: problems.sparse_least_squares(rng, 3, spread),
    "logistic": lambda rng, spread: problems.logistic_regression(*points(), rng, 3, spread),
    "cosines": lambda rng, spread: problems.cosines(rng, 3, spread, decay=0.1, smoothness=2.0),
}


@pytest.fixture(params=FAMILIES)
def problem(request):
    return FAMILIES[request.param](np.random.default_rng(1), 0.5)


def hessian(loss, w):
    return np.column_stack([loss.hessian_vector(w, d) for d in np.eye(w.size)])


def test_gradient_is_written_whole_and_right(problem):
    rng = np.random.default_rng(2)
    for loss in problem.losses:
        w, g = rng.standard_normal(problem.size), np.full(problem.size, np.nan)
        kept = w.copy()
        loss(w, g)
        assert w.tobytes() == kept.tobytes()
        scratch, h = np.empty_like(w), 1e-3
        numeric = np.array(
            [
                (
                    8 * (loss(w + e, scratch) - loss(w - e, scratch))
                    - loss(w + 2 * e, scratch)
                    + loss(w - 2 * e, scratch)
                )
                / (12 * h)
                for e in h * np.eye(w.size)
            ]
        )
        np.testing.assert_allclose(g, numeric, rtol=1e-9, atol=1e-9)


def test_hessian_vector_is_the_derivative_of_the_gradient(problem):
    rng = np.random.default_rng(3)
    for loss in problem.losses:
        w, d = rng.standard_normal((2, problem.size))
        ahead, behind = np.empty_like(w), np.empty_like(w)
        loss(w + 1e-5 * d, ahead)
        loss(w - 1e-5 * d, behind)
        np.testing.assert_allclose(loss.hessian_vector(w, d), (ahead - behind) / 2e-5, rtol=1e-7, atol=1e-8)


def test_curvature_stays_within_the_stated_constants(problem):
    rng = np.random.default_rng(4)
    for loss in problem.losses:
        assert 0 <= loss.concavity <= loss.smoothness
        for w in 3 * rng.standard_normal((30, problem.size)):
            eigenvalues = np.linalg.eigvalsh(hessian(loss, w))
            assert eigenvalues[-1] <= loss.smoothness * (1 + 1e-12)
            assert eigenvalues[0] >= -loss.concavity - 1e-12 * loss.smoothness


@pytest.mark.parametrize("name", ["quadratic", "attained", "sparse", "cosines"])
def test_the_constants_are_reached(name):
    """Not only bounds: some point has that curvature, so a smaller constant would be wrong."""
    problem = FAMILIES[name](np.random.default_rng(1), 0.5)
    for loss in problem.losses:
        w = np.zeros(problem.size)
        if name == "cosines":
            w = (np.pi - loss.c) / loss.b  # where every cosine is at its minimum
        top = np.linalg.eigvalsh(hessian(loss, w))
        assert max(abs(top[0]), abs(top[-1])) == pytest.approx(loss.smoothness, rel=1e-12)
        if name == "cosines":
            w = -loss.c / loss.b
        below = max(0.0, -np.linalg.eigvalsh(hessian(loss, w))[0])
        assert below == pytest.approx(loss.concavity, rel=1e-12, abs=1e-12)


def test_logistic_constant_is_reached_where_margins_vanish():
    problem = FAMILIES["logistic"](np.random.default_rng(1), 0.5)
    for loss in problem.losses:
        assert np.linalg.eigvalsh(hessian(loss, np.zeros(5)))[-1] == pytest.approx(loss.smoothness, rel=1e-12)


def test_local_points_solve_the_local_problem(problem):
    rng = np.random.default_rng(5)
    for loss in problem.losses:
        if not isinstance(loss, problems.ClosedForm):
            continue
        for ratio in (1.1, 2.0, 10.0):
            lam, centre = ratio * loss.smoothness, rng.standard_normal(problem.size)
            w, g = loss.local_point(centre, lam), np.empty(problem.size)
            loss(w, g)
            assert np.linalg.norm(g + lam * (w - centre)) <= 1e-12 * lam * (1 + np.linalg.norm(w))


def test_quadratic_envelope_is_the_minimum_of_the_local_problem():
    problem = FAMILIES["quadratic"](np.random.default_rng(1), 0.5)
    v, g = np.random.default_rng(2).standard_normal((2, problem.size))
    for loss in problem.losses:
        w = loss.local_point(v, 5.0)
        expected = loss(w, g) + 2.5 * float((w - v) @ (w - v))
        assert loss.envelope(5.0)(v, g) == pytest.approx(expected, rel=1e-13)
        np.testing.assert_allclose(g, 5.0 * (v - w), rtol=1e-11, atol=1e-12)


def test_envelope_minimiser_has_no_gradient():
    problem = problems.quadratics(np.array([0.1, 0.5, 2.0]), np.random.default_rng(3))
    v, g = problems.envelope_minimiser(problem, 4.0), np.empty(3)
    total = np.zeros(3)
    for loss in problem.losses:
        loss.envelope(4.0)(v, g)
        total += g
    assert np.linalg.norm(total) <= 1e-14


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "logistic"])  # it deals without replacement
def test_spread_zero_makes_all_nodes_the_same(name):
    problem = FAMILIES[name](np.random.default_rng(1), 0.0)
    if name == "sparse":  # other samples of the same noiseless model: the same minimiser, other curvature
        centres = [loss.centre for loss in problem.losses]
        np.testing.assert_allclose(centres, centres[:1] * 3, atol=1e-12)
        return
    w = np.random.default_rng(2).standard_normal(problem.size)
    gradients = np.empty((len(problem.losses), problem.size))
    for loss, g in zip(problem.losses, gradients, strict=True):
        loss(w, g)
    np.testing.assert_allclose(gradients, np.broadcast_to(gradients[0], gradients.shape), rtol=1e-12)


def test_spread_deals_labels():
    """All samples are dealt once; with spread 1 at most one node sees both labels."""
    x, y = points()
    for spread in (0.0, 0.5, 1.0):
        problem = problems.logistic_regression(x, y, np.random.default_rng(0), 3, spread)
        dealt = np.vstack([loss.x for loss in problem.losses])
        assert sorted(map(tuple, dealt)) == sorted(map(tuple, x))
        mixed = sum(len(set(loss.y)) == 2 for loss in problem.losses)
        assert mixed <= 1 if spread == 1.0 else mixed == 3


def test_the_seed_fixes_everything(problem):
    name = next(n for n, make in FAMILIES.items() if make(np.random.default_rng(1), 0.5).name == problem.name)
    again = FAMILIES[name](np.random.default_rng(1), 0.5)
    w = np.ones(problem.size)
    for one, other in zip(problem.losses, again.losses, strict=True):
        g, h = np.empty_like(w), np.empty_like(w)
        assert one(w, g) == other(w, h)
        assert g.tobytes() == h.tobytes()


def test_sparse_least_squares_is_least_squares():
    problem = problems.sparse_least_squares(np.random.default_rng(0))
    assert isinstance(problem.penalty, GroupLasso)
    assert problem.concavity == 0.0
    assert problem.size == 12


def test_soft_network_is_smooth_around_its_point_and_bends_no_more_than_said():
    rng = np.random.default_rng(0)
    problem, w = soft_network(rng, nodes=2)
    assert isinstance(problem.penalty, Zero)
    for loss in problem.losses:
        g, ahead, behind = np.empty((3, w.size))
        for _ in range(20):
            d, e = rng.standard_normal((2, w.size))
            at = w + 0.3 * rng.random() * d / np.linalg.norm(d)
            e /= np.linalg.norm(e)
            h = 1e-3
            loss(at, g)
            value = [loss(at + t * h * e, ahead) for t in (-2, -1, 1, 2)]
            slope = (8 * (value[2] - value[1]) - (value[3] - value[0])) / (12 * h)
            assert slope == pytest.approx(g @ e, rel=1e-8, abs=1e-10)
            loss(at + 1e-4 * e, ahead)
            loss(at - 1e-4 * e, behind)
            assert np.linalg.norm(ahead - behind) / 2e-4 <= loss.smoothness
        _, trace = loss.loss.network.forward(w, loss.loss.x, loss.loss.context)
        hidden = loss.loss.network.decisions(trace)["fc1.gate"].hidden
        assert hidden.min() > 1.0  # far from the kinks of the gate's rectified units


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda rng: problems.quadratics(np.ones(2), rng, nodes=0), "nodes >= 1"),
        (lambda rng: problems.quadratics(np.ones(2), rng, spread=-1.0), "spread >= 0"),
        (lambda rng: problems.cosines(rng, spread=np.nan), "spread >= 0"),
        (lambda rng: problems.cosines(rng, bowl=1.0), "bowl < 1"),
        (lambda rng: problems.cosines(rng, decay=0.0), "decay <= 1"),
        (lambda rng: problems.attained(0), "sign 1 or -1"),
        (lambda rng: problems.logistic_regression(np.ones((3, 2)), np.array([0, 1, 1]), rng), "-1 and 1"),
        (lambda rng: problems.logistic_regression(np.ones((3, 2)), np.ones(3), rng, 4), "m >= nodes"),
        (lambda rng: problems.logistic_regression(np.ones(3), np.ones(3), rng, 1), r"x \(m, d\)"),
        (lambda rng: problems.envelope_minimiser(problems.cosines(rng), 2.0), "not a convex quadratic"),
        (lambda rng: problems.envelope_minimiser(problems.attained(-1), 2.0), "not a convex quadratic"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make(np.random.default_rng(0))
