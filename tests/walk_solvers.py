"""Cases of the walk: penalties, and the accelerated proximal gradient method."""

from __future__ import annotations

import numpy as np
from quadratics import Quadratic
from walk import Case, place
from walk_networks import eighths, unwritten

from refimpl.optim import accel, prox

# prox: every method of every penalty, at a point of all domains


GROUPS = prox.Groups.from_lists([[0, 1, 2], [7, 3, 5], [], [6]], 9)
POINT = np.array([0.5, 0.25, 0.125, 0, 0, 0.125, 0, 0, 0], np.float32)
PENALTIES = (
    prox.Zero(),
    prox.SquaredL2(0.5),
    prox.ElasticNet(0.5, 1.0),
    prox.L1(0.5),
    prox.NonNegativeL1(0.5),
    prox.Box(-0.5, 0.75),
    prox.L2Ball(1.0),
    prox.L1Ball(1.0),
    prox.Simplex(1.0),
    prox.LinfNorm(0.5),
    prox.GroupLasso(GROUPS, 0.5),
    prox.BoundedGroupLasso(GROUPS, 0.5, 0.75),
    prox.SparseGroupLasso(GROUPS, 0.5, 0.25),
    prox.Rising(prox.GroupLasso(GROUPS, 0.5), rounds=4.0, factor=0.5),
    prox.Separable(((slice(1, 4), prox.L1(0.5)), (slice(5, 9), prox.L2Ball(1.0)))),
)
ANY_LENGTH = (prox.Zero, prox.SquaredL2, prox.ElasticNet, prox.L1, prox.NonNegativeL1, prox.Box, prox.L2Ball)
ANY_LENGTH += (prox.L1Ball, prox.Simplex, prox.LinfNorm, prox.Separable)


def penalty_cases(penalty):
    free = ("u",) if isinstance(penalty, ANY_LENGTH) else ()
    slope, out = eighths(9), unwritten(9)
    cases = {
        "value": Case(lambda u: penalty.value(u), any_length=free, u=POINT),
        "prox": Case(lambda v, out: penalty.prox(v, 0.25, out), written=("out",), v=slope, out=out),
        "subdifferential_distance": Case(
            lambda s, u: penalty.subdifferential_distance(s, u), s=slope, u=POINT
        ),
    }
    if isinstance(penalty, prox.Norm):
        cases["dual_norm"] = Case(lambda s: penalty.dual_norm(s), any_length=("s",) if free else (), s=slope)
        cases["conjugate_prox"] = Case(
            lambda v, out: penalty.conjugate_prox(v, 0.25, out), written=("out",), v=slope, out=out
        )
    return {place(getattr(penalty, method), type(penalty).__name__): case for method, case in cases.items()}


def weights_case(make):
    return Case(lambda weights: make(weights).value(POINT), weights=np.float32([1, 0.25, 3, 0.5]))


PROX = {key: case for penalty in PENALTIES for key, case in penalty_cases(penalty).items()} | {
    place(prox.Box): Case(
        lambda lower, upper: prox.Box(lower, upper).prox(eighths(9), 0.5, unwritten(9)),
        any_shape=("lower", "upper"),  # numbers as well
        lower=-np.abs(eighths(9, seed=1)),
        upper=np.abs(eighths(9, seed=2)),
    ),
    place(prox.GroupLasso): weights_case(lambda w: prox.GroupLasso(GROUPS, 0.5, w)),
    place(prox.BoundedGroupLasso): weights_case(lambda w: prox.BoundedGroupLasso(GROUPS, 0.5, 1.0, w)),
    place(prox.SparseGroupLasso): weights_case(lambda w: prox.SparseGroupLasso(GROUPS, 0.5, 0.5, w)),
    place(prox.Groups): Case(
        lambda indptr, indices: prox.Groups(indptr, indices, 9).owner,
        labels=(),
        indptr=np.array([0, 2, 3, 5]),
        indices=np.array([0, 1, 4, 7, 5]),
    ),
    place(prox.Groups.from_sizes): Case(
        lambda sizes: prox.Groups.from_sizes(sizes).owner, any_length=("sizes",), sizes=np.array([2, 0, 3])
    ),
    place(prox.Groups.from_lists): Case(
        lambda group: prox.Groups.from_lists([group, [5]], 9).owner,
        any_length=("group",),
        group=np.array([0, 3, 4]),
    ),
    place(prox.Groups.norms): Case(lambda x: prox.Groups.from_sizes([4, 5]).norms(x), x=eighths(9)),
}


# accel: one iteration, and all of them


BOWL = Quadratic(0.5, 2.0)
SCHEDULE, PENALTY = accel.GhadimiLan(0.25), prox.L1(0.25)


def state(x, ag):
    return accel.State(3, x, ag)


PAIR = {"x": eighths(9), "ag": eighths(9, seed=1)}
ACCEL = {
    place(accel.State.start): Case(lambda x0: accel.State.start(x0), any_length=("x0",), x0=eighths(9)),
    place(accel.middle_point): Case(
        lambda x, ag, out: accel.middle_point(state(x, ag), SCHEDULE, out),
        written=("out",),
        out=unwritten(9),
        **PAIR,
    ),
    place(accel.step): Case(
        lambda x, ag, md, gradient: accel.step(state(x, ag), md, gradient, PENALTY, SCHEDULE),
        blind=("ag",),
        md=eighths(9, seed=2),
        gradient=eighths(9, seed=3),
        **PAIR,
    ),
    place(accel.certify): Case(
        lambda x: accel.certify(BOWL, PENALTY, x, 0.25), any_length=("x",), x=eighths(9)
    ),
    place(accel.minimize_composite): Case(
        lambda x0: accel.minimize_composite(BOWL, PENALTY, x0, SCHEDULE, 5).x,
        any_length=("x0",),
        x0=eighths(9),
    ),
}
