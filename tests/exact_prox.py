"""Proximal operators in exact arithmetic: fractions, and roots to 100 digits. Nothing of the package is used.

Vectors are lists of fractions. A `Rule` states one penalty by its value, prox, subdifferential distance and,
for norms, dual norm and projection on the dual ball, each from its definition by optimality.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

Exact = list[Fraction]
ZERO = Fraction(0)


def exact(x: Sequence[float]) -> Exact:
    """The numbers as they are, every digit."""
    return [Fraction(float(value)) for value in x]


def root(x: Fraction) -> Fraction:
    """The square root of x >= 0, right to 100 digits."""
    shift = max(0, 340 - (x.numerator.bit_length() - x.denominator.bit_length()) // 2)
    return Fraction(isqrt((x.numerator << (2 * shift)) // x.denominator), 1 << shift)


def norm(x: Exact) -> Fraction:
    return root(sum((a * a for a in x), ZERO))


def sign(a: Fraction) -> int:
    return (a > 0) - (a < 0)


def soft(a: Fraction, threshold: Fraction) -> Fraction:
    return sign(a) * max(abs(a) - threshold, ZERO)


def level(free: Exact, total: Fraction, tied: Exact | None = None) -> Fraction:
    """The t with sum(tied - t) + sum(max(free - t, 0)) = total, trying every number of kept entries."""
    tied, ordered = tied or [], sorted(free, reverse=True)
    for count in range(0 if tied else 1, len(ordered) + 1):
        kept = tied + ordered[:count]
        t = (sum(kept) - total) / len(kept)
        if count == len(ordered) or ordered[count] <= t:
            return t
    raise AssertionError("the last count always fits")


def on_l1_ball(v: Exact, radius: Fraction) -> Exact:
    t = max(level([abs(a) for a in v], radius), ZERO)
    return [soft(a, t) for a in v]


def on_l2_ball(v: Exact, radius: Fraction) -> Exact:
    size = norm(v)
    return v if size <= radius else [a * radius / size for a in v]


def shrunk(v: Exact, threshold: Fraction) -> Exact:
    """The block soft threshold of one group."""
    size = norm(v)
    return [a * (size - threshold) / size if size > threshold else ZERO for a in v]


def from_ray(s: Exact, along: Exact) -> Exact:
    """s minus the nearest of its non-negative multiples of `along`."""
    length = max(sum((a * b for a, b in zip(s, along, strict=True)), ZERO), ZERO) / sum(a * a for a in along)
    return [a - length * b for a, b in zip(s, along, strict=True)]


def cone(tied: Exact, free: Exact, signed: bool) -> Fraction:
    """min over t of ||(tied - t, max(free - t, 0))||, t >= 0 unless signed."""
    t = level(free, ZERO, tied)
    t = t if signed else max(t, ZERO)
    return norm([a - t for a in tied] + [max(a - t, ZERO) for a in free])


def l1_rest(s: Exact, u: Exact, rho: Fraction) -> Exact:
    return [a - rho * sign(b) if b else soft(a, rho) for a, b in zip(s, u, strict=True)]


def blockwise(
    groups: list[list[int]], function: Callable[[Exact, int], Exact], v: Exact, outside: bool
) -> Exact:
    """function(entries of group g, g) on every group; elsewhere v if `outside`, else 0."""
    result = list(v) if outside else [ZERO] * len(v)
    for g, members in enumerate(groups):
        for i, value in zip(members, function([v[i] for i in members], g), strict=True):
            result[i] = value
    return result


def block_rest(groups: list[list[int]], s: Exact, u: Exact, weights: Exact) -> Exact:
    """s minus the nearest subgradient of the group lasso at u."""

    def rest(part: Exact, g: int) -> Exact:
        here = [u[i] for i in groups[g]]
        if not any(here):
            return shrunk(part, weights[g])
        size = norm(here)
        return [a - weights[g] * b / size for a, b in zip(part, here, strict=True)]

    return blockwise(groups, rest, s, outside=True)


@dataclass(frozen=True)
class Rule:
    """One penalty; what it lacks is None. `distance` assumes a u of the domain, on the boundary of balls."""

    value: Callable[[Exact], Fraction]
    prox: Callable[[Exact, Fraction], Exact]
    distance: Callable[[Exact, Exact], Fraction]
    conjugate: Callable[[Exact], Exact] | None = None
    dual_excess: Callable[[Exact, Fraction], Fraction] | None = None  # > 0 where the dual norm exceeds t


def entrywise(groups: list[list[int]], rho: Fraction, second: Fraction) -> dict[str, Rule]:
    """The penalties that act on each entry by itself; `second` is the ridge or the bound."""

    def l1(u: Exact) -> Fraction:
        return rho * sum(map(abs, u))

    def positive(s: Exact, u: Exact) -> Fraction:
        return norm([a - rho if b else max(a - rho, ZERO) for a, b in zip(s, u, strict=True)])

    def in_box(s: Exact, u: Exact) -> Fraction:
        pairs = zip(s, u, strict=True)
        return norm([a if abs(b) < second else sign(b) * min(sign(b) * a, ZERO) for a, b in pairs])

    def ridge(s: Exact, u: Exact, weight: Fraction) -> Exact:
        return [a - weight * b for a, b in zip(s, u, strict=True)]

    return {
        "zero": Rule(lambda u: ZERO, lambda v, c: v, lambda s, u: norm(s)),
        "squared_l2": Rule(
            lambda u: rho / 2 * sum(a * a for a in u),
            lambda v, c: [a / (1 + c * rho) for a in v],
            lambda s, u: norm(ridge(s, u, rho)),
        ),
        "l1": Rule(
            l1,
            lambda v, c: [soft(a, c * rho) for a in v],
            lambda s, u: norm(l1_rest(s, u, rho)),
            lambda v: [max(min(a, rho), -rho) for a in v],
            lambda s, t: max(map(abs, s)) - t * rho,
        ),
        "elastic_net": Rule(
            lambda u: l1(u) + second / 2 * sum(a * a for a in u),
            lambda v, c: [soft(a, c * rho) / (1 + c * second) for a in v],
            lambda s, u: norm(l1_rest(ridge(s, u, second), u, rho)),
        ),
        "non_negative_l1": Rule(l1, lambda v, c: [max(a - c * rho, ZERO) for a in v], positive),
        "box": Rule(lambda u: ZERO, lambda v, c: [max(min(a, second), -second) for a in v], in_box),
    }


def coupled(groups: list[list[int]], rho: Fraction, second: Fraction) -> dict[str, Rule]:
    """The penalties that couple all entries; `second` is the radius or the total."""

    def in_simplex(s: Exact, u: Exact) -> Fraction:
        pairs = list(zip(s, u, strict=True))
        return cone([a for a, b in pairs if b], [a for a, b in pairs if not b], signed=True)

    def in_l1_ball(s: Exact, u: Exact) -> Fraction:
        pairs = list(zip(s, u, strict=True))
        return cone([a * sign(b) for a, b in pairs if b], [abs(a) for a, b in pairs if not b], signed=False)

    def at_top(s: Exact, u: Exact) -> Fraction:
        top = max(map(abs, u))
        if not top:
            return norm([a - b for a, b in zip(s, on_l1_ball(s, rho), strict=True)])
        pairs = list(zip(s, u, strict=True))
        tied = [a * sign(b) for a, b in pairs if abs(b) == top]
        t = level(tied, rho)
        return norm([min(a, t) for a in tied] + [a for a, b in pairs if abs(b) < top])

    def on_simplex(v: Exact, c: Fraction) -> Exact:
        t = level(v, second)
        return [max(a - t, ZERO) for a in v]

    def clipped(v: Exact, c: Fraction) -> Exact:
        t = max(level([abs(a) for a in v], c * rho), ZERO)
        return [max(min(a, t), -t) for a in v]

    return {
        "l2_ball": Rule(
            lambda u: ZERO, lambda v, c: on_l2_ball(v, second), lambda s, u: norm(from_ray(s, u))
        ),
        "l1_ball": Rule(lambda u: ZERO, lambda v, c: on_l1_ball(v, second), in_l1_ball),
        "simplex": Rule(lambda u: ZERO, on_simplex, in_simplex),
        "linf_norm": Rule(
            lambda u: rho * max(map(abs, u)),
            clipped,
            at_top,
            lambda v: on_l1_ball(v, rho),
            lambda s, t: sum(map(abs, s)) - t * rho,
        ),
    }


def grouped(groups: list[list[int]], rho: Fraction, second: Fraction) -> dict[str, Rule]:
    """The group penalties with weights 1; `second` is the radius or the weight of the l1 part."""
    weights = [rho] * len(groups)

    def blocks(u: Exact) -> Fraction:
        return rho * sum((norm([u[i] for i in members]) for members in groups), ZERO)

    def sparse(v: Exact, c: Fraction) -> Exact:
        v = [soft(a, c * second) for a in v]
        return blockwise(groups, lambda part, g: shrunk(part, c * rho), v, outside=True)

    def sparse_conjugate(v: Exact) -> Exact:
        box = [max(min(a, second), -second) for a in v]
        rest = [a - b for a, b in zip(v, box, strict=True)]
        balls = blockwise(groups, lambda part, g: on_l2_ball(part, rho), rest, outside=False)
        return [a + b for a, b in zip(box, balls, strict=True)]

    def sparse_distance(s: Exact, u: Exact) -> Fraction:
        moving = [rho if any(u[i] for i in members) else ZERO for members in groups]
        rest = l1_rest(block_rest(groups, s, u, moving), u, second)
        resting = [rho - weight for weight in moving]
        return norm(blockwise(groups, lambda part, g: shrunk(part, resting[g]), rest, outside=True))

    def sparse_excess(s: Exact, t: Fraction) -> Fraction:
        squares = [sum((soft(s[i], t * second) ** 2 for i in members), ZERO) for members in groups]
        owned = {i for members in groups for i in members}
        free = [abs(a) - t * second for i, a in enumerate(s) if i not in owned]
        return max([square - (t * rho) ** 2 for square in squares] + free)

    def bounded(v: Exact, c: Fraction) -> Exact:
        return blockwise(groups, lambda part, g: on_l2_ball(shrunk(part, c * rho), second), v, outside=True)

    def bounded_distance(s: Exact, u: Exact) -> Fraction:
        def rest(part: Exact, g: int) -> Exact:
            here = [u[i] for i in groups[g]]
            full = any(here) and norm(here) > second * (1 - Fraction(1, 10**6))
            return from_ray(part, here) if full else part

        return norm(blockwise(groups, rest, block_rest(groups, s, u, weights), outside=True))

    return {
        "group_lasso": Rule(
            blocks,
            lambda v, c: blockwise(groups, lambda part, g: shrunk(part, c * rho), v, outside=True),
            lambda s, u: norm(block_rest(groups, s, u, weights)),
            lambda v: blockwise(groups, lambda part, g: on_l2_ball(part, rho), v, outside=False),
            lambda s, t: max(sum((s[i] ** 2 for i in m), ZERO) for m in groups) - (t * rho) ** 2,
        ),
        "bounded_group_lasso": Rule(blocks, bounded, bounded_distance),
        "sparse_group_lasso": Rule(
            lambda u: blocks(u) + second * sum(map(abs, u)),
            sparse,
            sparse_distance,
            sparse_conjugate,
            sparse_excess,
        ),
    }


def rules(groups: list[list[int]], rho: float, second: float) -> dict[str, Rule]:
    """Every penalty with the weight rho and the second parameter, as it stands in the three tables above."""
    a, b = Fraction(rho), Fraction(second)
    return {**entrywise(groups, a, b), **coupled(groups, a, b), **grouped(groups, a, b)}
