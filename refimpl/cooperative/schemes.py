"""Training schemes: which sub-networks there are, and what each one learns from in a step.

A scheme is a dataclass under `@SCHEMES.register("name")` with the method `students`. `cooperative` is the
third system; the others are what it is compared with.

Source: mathematics.md §15.2, §15.3; Yu & Huang 2019 (`sandwich`), Zhang et al. 2018 (`mutual`).
Reconstructed: all weights and who learns from whom.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from refimpl.cooperative.team import LEADER, Part
from refimpl.registry import SCHEMES

MATES, SINGLE = ("a", "b"), "net"


class Student(NamedTuple):
    """A sub-network in a step.

    part: which sub-network; teachers: those it learns from, each with a weight; labels: the weight of its
    cross-entropy.
    """

    part: Part
    teachers: tuple[tuple[Part, float], ...] = ()
    labels: float = 1.0


class Depths(NamedTuple):
    """full: the depth of the whole network; sets: the lesser depths of each of the two Teammates."""

    full: int
    sets: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def lesser(self) -> tuple[int, ...]:
        """All depths below the full one that some Teammate has."""
        return tuple(sorted({depth for own in self.sets for depth in own}))


class Weights(NamedTuple):
    """How much teaching counts.

    a: what the Leader teaches the Teammates; b: what these teach each other; c: what each teaches its
    sub-networks.
    """

    a: float = 1.0
    b: float = 1.0
    c: float = 1.0


def divide(depths: Sequence[int], full: int, complementary: bool) -> Depths:
    """Both Teammates have all the lesser depths, or each has every second one."""
    lesser = tuple(sorted(set(depths) - {full}))
    return Depths(full, (lesser[::2], lesser[1::2]) if complementary else (lesser, lesser))


class Scheme(Protocol):
    """What is trained."""

    @property
    def name(self) -> str:
        """The name by which it is chosen."""

    def parts(self, depths: Depths, weights: Weights) -> tuple[Part, ...]:
        """All sub-networks."""

    def students(self, depths: Depths, weights: Weights, rng: np.random.Generator) -> tuple[Student, ...]:
        """The sub-networks that learn in a step, in a fixed order; rng decides where there is a choice."""


class Fixed(ABC):
    """A scheme in which all sub-networks learn in every step."""

    def parts(self, depths: Depths, weights: Weights) -> tuple[Part, ...]:
        """The sub-networks, all of which learn."""
        return tuple(student.part for student in self.lessons(depths, weights))

    def students(self, depths: Depths, weights: Weights, rng: np.random.Generator) -> tuple[Student, ...]:
        """All sub-networks learn in every step."""
        return self.lessons(depths, weights)

    @abstractmethod
    def lessons(self, depths: Depths, weights: Weights) -> tuple[Student, ...]:
        """Every sub-network, and what it learns from."""


@SCHEMES.register("cooperative")
@dataclass(frozen=True)
class Cooperative(Fixed):
    """A Leader and two Teammates with sub-networks.

    The Leader teaches the Teammates, the Teammates teach each other, and each of them teaches its own
    sub-networks. A Leader who teaches nobody (a = 0) is left out.
    """

    def lessons(self, depths: Depths, weights: Weights) -> tuple[Student, ...]:
        """The losses of §15.2; a term of weight 0 is left out."""
        leader, pair = Part(LEADER, depths.full), [Part(mate, depths.full) for mate in MATES]
        found = [Student(leader)] if weights.a else []
        for part, other in zip(pair, reversed(pair), strict=True):
            found.append(Student(part, _taught((leader, weights.a), (other, weights.b))))
        for part, own in zip(pair, depths.sets, strict=True):
            lesson = _taught((part, weights.c))
            found += [Student(Part(part.member, depth), lesson) for depth in own]
        return tuple(found)


def _taught(*teachers: tuple[Part, float]) -> tuple[tuple[Part, float], ...]:
    """The teachers whose weight is not 0."""
    return tuple(teacher for teacher in teachers if teacher[1])


@SCHEMES.register("mutual")
@dataclass(frozen=True)
class Mutual(Cooperative):
    """Two Teammates with sub-networks who teach each other, without a Leader: a = 0."""

    def lessons(self, depths: Depths, weights: Weights) -> tuple[Student, ...]:
        """What each learns as in `cooperative`, with the weight a = 0."""
        return super().lessons(depths, weights._replace(a=0.0))


@SCHEMES.register("led")
@dataclass(frozen=True)
class Led(Cooperative):
    """A Leader and two Teammates who do not teach each other: b = 0."""

    def lessons(self, depths: Depths, weights: Weights) -> tuple[Student, ...]:
        """What each learns as in `cooperative`, with the weight b = 0."""
        return super().lessons(depths, weights._replace(b=0.0))


@SCHEMES.register("labels")
@dataclass(frozen=True)
class Labels(Cooperative):
    """Two Teammates with sub-networks who learn from labels only, without distillation: a = b = c = 0."""

    def lessons(self, depths: Depths, weights: Weights) -> tuple[Student, ...]:
        """Cross-entropy alone."""
        return super().lessons(depths, Weights(0.0, 0.0, 0.0))


@SCHEMES.register("alone")
@dataclass(frozen=True)
class Alone(Fixed):
    """A network of its own for every depth, each trained on labels."""

    def lessons(self, depths: Depths, weights: Weights) -> tuple[Student, ...]:
        """Cross-entropy; nothing is shared but the order of the samples."""
        return tuple(Student(Part(f"alone{depth}", depth)) for depth in (*depths.lesser, depths.full))


@SCHEMES.register("sandwich")
@dataclass(frozen=True)
class Sandwich:
    """One network with sub-networks, by the sandwich rule with in-place distillation (US-Nets).

    In a step the full depth learns from labels; the least depth and two of the others, drawn anew, learn from
    the full depth alone, with weight c.
    """

    drawn = 2

    def parts(self, depths: Depths, weights: Weights) -> tuple[Part, ...]:
        """One network at all depths."""
        return tuple(Part(SINGLE, depth) for depth in (depths.full, *depths.lesser))

    def students(self, depths: Depths, weights: Weights, rng: np.random.Generator) -> tuple[Student, ...]:
        """The full depth, the least one, and what is drawn between them."""
        full, between = Part(SINGLE, depths.full), depths.lesser[1:]
        drawn = sorted(rng.permutation(len(between))[: self.drawn].tolist())
        chosen = (*depths.lesser[:1], *(between[at] for at in drawn))
        lesson = ((full, weights.c),)
        return (Student(full), *(Student(Part(SINGLE, depth), lesson, labels=0.0) for depth in chosen))
