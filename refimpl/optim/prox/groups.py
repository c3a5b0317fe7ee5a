"""Penalties on groups of entries: group lasso, sparse group lasso, bounded group lasso.

Source: mathematics.md §5; Yuan & Lin 2006 (group lasso, weights sqrt of the group size); Simon et al.
2013 (sparse group lasso); Ndiaye et al. 2016 (its dual norm). The bounded form is derived: penalty and
ball are radial in each group, so the prox shrinks the norm and then clips it. Verified by test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from refimpl.contracts import Vector
from refimpl.errors import InputError, expect_numbers, shown
from refimpl.kernels import groups as kernels
from refimpl.optim.prox.contract import (
    CheckedPenalty,
    Norm,
    check_form,
    radius_key,
    slack,
    times,
    weight_key,
    wide,
)
from refimpl.optim.prox.elementwise import l1_residual, over
from refimpl.registry import PENALTIES, key


def _whole(name: str, x: object) -> np.ndarray:
    """x as a 1-D int64 copy."""
    array = np.asarray(x)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise InputError(f"`Groups`: expected {name} as a 1-D array of whole numbers, got {array.dtype}")
    return array.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Groups:
    """Disjoint groups of coordinates of a vector of length `size`, as CSR arrays.

    `from_sizes` makes groups of consecutive coordinates, `from_lists` any others, such as the columns of a
    weight matrix; penalties of your own networks take them, too.

    Group g holds indices[indptr[g]:indptr[g+1]]; groups may be empty and need not cover the vector: a
    coordinate outside every group carries no group penalty. Consecutive indices are merged into runs
    once, here, so that contiguous groups are read as plain slices.
    """

    indptr: np.ndarray
    indices: np.ndarray
    size: int
    runs: tuple[np.ndarray, np.ndarray, np.ndarray] = field(init=False, repr=False)  # indptr, starts, stops
    owner: np.ndarray = field(init=False, repr=False)  # group of each coordinate, -1 for none

    def __post_init__(self) -> None:
        expect_numbers("`Groups`", whole=True, size=self.size)
        indptr, indices = _whole("indptr", self.indptr), _whole("indices", self.indices)
        if indptr.size == 0 or indptr[0] != 0 or indptr[-1] != indices.size or np.any(np.diff(indptr) < 0):
            raise InputError(
                f"`Groups`: expected indptr to rise from 0 to {indices.size}, the number of indices; got "
                f"{indptr.tolist() if indptr.size < 8 else f'{indptr[0]}..{indptr[-1]}'}"
            )
        if indices.size and not (indices.min() >= 0 and indices.max() < self.size):
            raise InputError(
                f"`Groups`: expected indices in 0..{self.size - 1}, got {indices.min()}..{indices.max()}"
            )
        owner = np.full(self.size, -1, dtype=np.int64)
        owner[indices] = np.repeat(np.arange(indptr.size - 1), np.diff(indptr))
        if np.count_nonzero(owner >= 0) != indices.size:
            raise InputError(
                "`Groups`: groups overlap or repeat an index; the closed form needs disjoint groups"
            )
        for name, value in (("indptr", indptr), ("indices", indices), ("owner", owner)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "runs", _runs(indptr, indices))

    @classmethod
    def from_sizes(cls, sizes: Sequence[int] | np.ndarray) -> Groups:
        """Consecutive groups of the given sizes, covering a vector of length sum(sizes)."""
        indptr = np.concatenate([[0], np.cumsum(_whole("sizes", sizes))]).astype(np.int64)
        return cls(indptr, np.arange(indptr[-1]), int(indptr[-1]))

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int] | np.ndarray], size: int) -> Groups:
        """Groups given as lists of coordinates of a vector of length `size`."""
        arrays = [_whole("a group", indices) for indices in lists]
        indptr = np.concatenate([[0], np.cumsum([a.size for a in arrays])]).astype(np.int64)
        return cls(indptr, np.concatenate([np.zeros(0, dtype=np.int64), *arrays]), size)

    def __len__(self) -> int:
        return self.indptr.size - 1

    @property
    def sizes(self) -> np.ndarray:
        """Number of coordinates of each group, int64 (G,)."""
        return np.diff(self.indptr)

    def norms(self, x: Vector) -> np.ndarray:
        """Euclidean norm of x on each group, float64 (G,)."""
        check_form("Groups.norms", "x", x)
        self.check_size("Groups.norms", x)
        out = np.empty(len(self))
        kernels.group_norms(x, *self.runs, out)
        return out

    def spread(self, per_group: np.ndarray) -> np.ndarray:
        """per_group (G,) -> (size,): each coordinate gets its group's number, 0 outside every group."""
        return np.append(per_group, 0.0)[self.owner]  # owner -1 picks the appended zero

    def members(self, g: int) -> np.ndarray:
        """Coordinates of group g."""
        return self.indices[self.indptr[g] : self.indptr[g + 1]]

    def check_size(self, who: str, x: Vector) -> None:
        """Raise `InputError` unless x has the length the groups were made for."""
        if x.size != self.size:
            raise InputError(f"`{who}`: the groups are for vectors of {self.size} entries, got {x.size}")


def _runs(indptr: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CSR by coordinate -> CSR by run of consecutive coordinates: (indptr, starts, stops)."""
    opens = np.ones(indices.size, dtype=bool)
    opens[1:] = np.diff(indices) != 1
    opens[indptr[:-1][np.diff(indptr) > 0]] = True  # a run never crosses into the next group
    first = np.flatnonzero(opens)
    lengths = np.diff(np.append(first, indices.size))
    starts = indices[first]
    return np.searchsorted(first, indptr).astype(np.int64), starts, starts + lengths


def group_weights(who: str, groups: Groups, rho: float, weights: np.ndarray | None) -> np.ndarray:
    """rho w_g, float64 (G,); w_g = sqrt(|group|) unless given."""
    chosen = np.sqrt(groups.sizes) if weights is None else np.asarray(weights)
    real = chosen.dtype.kind in "biuf" and chosen.shape == (len(groups),)
    if not real or not np.all(np.isfinite(chosen)) or np.any(chosen < 0):
        raise InputError(
            f"`{who}`: expected {len(groups)} finite weights >= 0, one a group, got {shown(weights)}"
        )
    with np.errstate(over="ignore"):
        scaled = rho * chosen.astype(np.float64)
    if not np.all(np.isfinite(scaled)):
        raise InputError(f"`{who}`: rho times a group's weight is too large a number; got rho = {rho!r}")
    return scaled


class GroupPenalty(CheckedPenalty):
    """What the penalties on groups share: `scaled`, the weights rho w_g, and the length of vectors."""

    groups: Groups
    rho: float
    weights: np.ndarray | None
    scaled: np.ndarray  # rho w_g

    def __post_init__(self) -> None:
        super().__post_init__()
        scaled = group_weights(type(self).__name__, self.groups, self.rho, self.weights)
        object.__setattr__(self, "scaled", scaled)

    def _fits(self, who: str, x: Vector) -> None:
        self.groups.check_size(who, x)


@PENALTIES.register("group-lasso")
@dataclass(frozen=True, eq=False)
class GroupLasso(GroupPenalty, Norm):
    """R(u) = rho sum_g w_g ||u_g|| over the `groups` g, w_g = sqrt(|g|) unless `weights` (G,) are given."""

    groups: Groups
    rho: float = weight_key()
    weights: np.ndarray | None = None

    def _value(self, u: Vector) -> float:
        return weigh(self.scaled, self.groups.norms(u))

    def _prox(self, v: Vector, step: float, out: Vector) -> float:
        """Block soft threshold: u_g = max(0, 1 - step rho w_g / ||v_g||) v_g."""
        return shrink(self.groups, self.scaled, v, step, np.inf, out)

    def _distance(self, s: Vector, u: Vector) -> float:
        """Per group ||s_g - rho w_g u_g/||u_g|| ||, or max(||s_g|| - rho w_g, 0) where u_g = 0."""
        return kernels.safe_norm(group_residual(self.groups, wide(s), u, self.scaled))

    def _dual_norm(self, s: Vector) -> float:
        """max_g ||s_g|| / (rho w_g); infinite if s is not zero outside the groups."""
        if np.any(s[self.groups.owner < 0]):
            return np.inf
        pairs = zip(self.groups.norms(s), self.scaled, strict=True)
        return max((over(float(norm), float(weight)) for norm, weight in pairs), default=0.0)

    def _project_dual(self, v: Vector, out: Vector) -> None:
        """Each group onto its ball of radius rho w_g; 0 outside the groups."""
        out[:] = _project_on_balls(self.groups, wide(v), self.scaled)


@PENALTIES.register("bounded-group-lasso")
@dataclass(frozen=True, eq=False)
class BoundedGroupLasso(GroupPenalty):
    """Group lasso plus the indicator of ||u_g|| <= radius for every group: a bounded domain.

    This is what makes assumption 2 of the MetaGater paper hold (mathematics.md §5).
    """

    groups: Groups
    rho: float = weight_key()
    radius: float = radius_key()
    weights: np.ndarray | None = None

    def _value(self, u: Vector) -> float:
        """Infinite if a group is longer than the radius (up to `contract.slack`)."""
        norms = self.groups.norms(u)
        outside = np.any(norms > self.radius * (1.0 + slack(u)))
        return np.inf if outside else weigh(self.scaled, norms)

    def _prox(self, v: Vector, step: float, out: Vector) -> float:
        """Scale each group to norm min(max(||v_g|| - step rho w_g, 0), radius)."""
        return shrink(self.groups, self.scaled, v, step, self.radius, out)

    def _distance(self, s: Vector, u: Vector) -> float:
        """As for the group lasso, with every longer multiple of u_g allowed where ||u_g|| = radius."""
        norms = self.groups.norms(u)
        if np.any(norms > self.radius * (1.0 + slack(u))):
            return np.inf
        residual = group_residual(self.groups, wide(s), u, self.scaled)
        for g in np.flatnonzero(norms >= self.radius * (1.0 - slack(u))):
            where = self.groups.members(int(g))
            direction = wide(u[where]) / norms[g]
            residual[where] -= max(float(np.sum(residual[where] * direction)), 0.0) * direction
        return kernels.safe_norm(residual)


def shrink(groups: Groups, weights: np.ndarray, v: Vector, step: float, radius: float, out: Vector) -> float:
    """Copy what no group holds, scale the groups (`kernels.shrink_groups`); out may be v."""
    if out is not v and groups.indices.size < groups.size:
        out[:] = v
    norms = np.empty(len(groups))
    return float(kernels.shrink_groups(v, float(step), weights, float(radius), *groups.runs, norms, out))


def weigh(weights: np.ndarray, norms: np.ndarray) -> float:
    """sum_g weights[g] norms[g], infinite where that is too large; a weight of 0 counts for nothing."""
    with np.errstate(over="ignore"):
        return float(np.sum(weights * np.where(weights > 0, norms, 0.0)))


def _project_on_balls(groups: Groups, v: Vector, radii: np.ndarray) -> Vector:
    """Each group onto its ball, one group at a time, and 0 outside the groups; float64."""
    result = np.zeros_like(v)
    for g, radius in enumerate(radii):
        where = groups.members(g)
        part, norm = v[where], kernels.safe_norm(v[where])
        if norm > radius:
            if norm == np.inf:
                part = kernels.SMALLER * part
                norm = kernels.safe_norm(part)
            ratio = float(radius) / norm  # where it loses digits, v/||v|| times the radius is taken instead
            part = ratio * part if ratio >= kernels.TINY else part / norm * radius
        result[where] = part
    return result


def pulls(groups: Groups, weights: np.ndarray, u: Vector, norms: np.ndarray) -> Vector:
    """weights[g] u_g/||u_g|| of every group, 0 where the group is zero and outside the groups; float64.

    The exponent of the norm is taken out of u first (which changes no digit), so that weights/norms stays
    in range.
    """
    mantissas, exponents = np.frexp(np.where(norms > 0, norms, 1.0))
    pull = np.where(norms > 0, weights / mantissas, 0.0)
    return groups.spread(pull) * np.ldexp(wide(u), -groups.spread(exponents).astype(np.int64))


def group_residual(groups: Groups, s: Vector, u: Vector, weights: np.ndarray) -> Vector:
    """s minus its nearest element of the group lasso's subdifferential at u, float64."""
    norms = groups.norms(u)
    sizes = groups.norms(s)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        kept = np.where(norms > 0, 1.0, np.where(sizes > weights, 1.0 - weights / sizes, 0.0))
    kept_all = np.where(groups.owner < 0, 1.0, groups.spread(kept))
    return kept_all * s - pulls(groups, weights, u, norms)


@PENALTIES.register("sparse-group-lasso")
@dataclass(frozen=True, eq=False)
class SparseGroupLasso(GroupPenalty, Norm):
    """R(u) = rho_l1 ||u||_1 + rho sum_g w_g ||u_g||; the l1 part acts on every entry."""

    groups: Groups
    rho: float = weight_key()
    rho_l1: float = key(0.01, "weight of the l1 norm in the sparse group lasso", at_least=0.0, alone=1.0)
    weights: np.ndarray | None = None

    def _value(self, u: Vector) -> float:
        return times(self.rho_l1, kernels.absolute_sum(u)) + weigh(self.scaled, self.groups.norms(u))

    def _prox(self, v: Vector, step: float, out: Vector) -> float:
        """Soft threshold by step rho_l1, then block soft threshold by step rho w_g: exact in this order."""
        soft = np.empty(v.size)  # wide, so that the result is rounded once
        kernels.soft_threshold(v, times(step, self.rho_l1), 1.0, soft)
        blocks = shrink(self.groups, self.scaled, soft, step, np.inf, out)
        return times(self.rho_l1, kernels.absolute_sum(out)) + blocks

    def _distance(self, s: Vector, u: Vector) -> float:
        """Entries by the l1 part first; a zero group is free up to norm rho w_g of what that leaves."""
        norms = self.groups.norms(u)
        rest = l1_residual(wide(s) - pulls(self.groups, self.scaled, u, norms), u, self.rho_l1)
        at_zero = np.where(norms > 0, 0.0, self.scaled)
        return kernels.safe_norm(group_residual(self.groups, rest, np.zeros_like(rest), at_zero))

    def _dual_norm(self, s: Vector) -> float:
        """The smallest t with ||soft(s_g, t rho_l1)|| <= t rho w_g per group, |s_i| <= t rho_l1 outside."""
        free = np.abs(wide(s)[self.groups.owner < 0])
        largest = over(float(np.max(free, initial=0.0)), self.rho_l1)
        for g, weight in enumerate(self.scaled):
            where = self.groups.members(g)
            largest = max(largest, _epsilon_norm(np.abs(wide(s)[where]), self.rho_l1, float(weight)))
        return largest

    def _project_dual(self, v: Vector, out: Vector) -> None:
        """The dual ball is the sum of a box and of balls: clip, then project what is left on the balls."""
        clipped = np.clip(wide(v), -self.rho_l1, self.rho_l1)
        out[:] = clipped + _project_on_balls(self.groups, wide(v) - clipped, self.scaled)


def _epsilon_norm(sizes: np.ndarray, l1: float, l2: float) -> float:
    """The t >= 0 with ||max(sizes - t l1, 0)|| = t l2, by sorting: one quadratic a piece.

    Sizes and weights are taken relative to the largest of them. The discriminant is written with the sum of
    squared distances from the mean, as no digits cancel in it then.
    """
    top, weight = float(np.max(sizes, initial=0.0)), max(l1, l2)
    if top == 0 or weight == 0:
        return over(top, weight)
    l1, l2 = l1 / weight, l2 / weight
    ordered = -np.sort(-sizes / top)
    counts = np.arange(1, sizes.size + 1)
    totals, squares = np.cumsum(ordered), np.cumsum(ordered**2)
    steps = ordered[1:] - totals[:-1] / counts[:-1]  # of each entry from the mean of those before
    spreads = np.append(0.0, np.cumsum(steps**2 * counts[:-1] / counts[1:]))
    # sum over the first `count` of (size - t l1)^2 = t^2 l2^2, the smaller positive root of it
    discriminants = l2**2 * squares - l1**2 * counts * spreads
    roots = squares / (l1 * totals + np.sqrt(np.maximum(discriminants, 0.0)))
    # the first piece that ends before the next entry
    last = np.argmax(roots * l1 >= np.append(ordered[1:], 0.0))
    return over(float(roots[last]) * top, weight)
