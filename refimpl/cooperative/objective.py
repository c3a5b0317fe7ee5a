"""The loss of all students of a step on one batch, as a function of the team's w.

    total = sum over students of  labels * CE + sum of weight * T^2 KL(p_teacher || p_student)

Teachers' outputs are computed once, before any gradient, and are numbers from then on: their networks get no
gradient from what they teach. Each student's loss and gradient come from its network's compiled program.

Source: mathematics.md §15.2. Reconstructed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.cooperative.schemes import Student
from refimpl.cooperative.team import Part, Team
from refimpl.errors import InputError
from refimpl.kernels.loss import SoftTargets
from refimpl.nn.context import Gating
from refimpl.nn.distillation import soft_targets
from refimpl.nn.predict import Predictor
from refimpl.nn.task import NetworkTask
from refimpl.nn.work import dense_work
from refimpl.threads import share

Taught = dict[Part, np.ndarray]  # logits (n, classes) of each teacher


@dataclass(frozen=True)
class TeamObjective:
    """The total loss of `students` on samples x (n, *input_shape), labels y (n,), at a temperature.

    threads: for the students; results do not depend on it.
    """

    team: Team
    students: Sequence[Student]
    x: np.ndarray
    y: np.ndarray
    temperature: float = 1.0
    gating: Gating = Gating()
    threads: int = 1

    def teach(self, w: np.ndarray) -> Taught:
        """What every teacher says about the samples at w (d,): logits (n, classes)."""
        self.team.layout.check("cooperative", w)
        parts = sorted({part for student in self.students for part, _ in student.teachers})

        def logits(at: int) -> np.ndarray:
            part = parts[at]
            own = w[self.team.entries(part)]
            return Predictor(self.team.training(part), own, self.gating)(self.x).logits

        return dict(zip(parts, share(logits, len(parts), self.threads), strict=True))

    def __call__(self, w: np.ndarray, grad_out: np.ndarray, taught: Taught | None = None) -> float:
        """Total loss at w (d,); writes the whole gradient. Teachers are `taught`, or what they say at w."""
        return sum(self.losses(w, grad_out, taught))

    def losses(self, w: np.ndarray, grad_out: np.ndarray, taught: Taught | None = None) -> list[float]:
        """The loss of each student at w; writes the gradient of their sum."""
        self.team.layout.check_pair("cooperative", w, grad_out, "grad_out")
        known = self.teach(w) if taught is None else taught
        grad_out[:] = 0

        def learn(at: int) -> tuple[float, np.ndarray]:
            return self._learn(self.students[at], w, known)

        def add(at: int, found: tuple[float, np.ndarray]) -> None:
            grad_out[self.team.entries(self.students[at].part)] += found[1]

        return [loss for loss, _ in share(learn, len(self.students), self.threads, add)]

    def _learn(self, student: Student, w: np.ndarray, taught: Taught) -> tuple[float, np.ndarray]:
        """A student's loss, and its gradient with respect to its own parameters."""
        network, own = self.team.training(student.part), w[self.team.entries(student.part)]
        trained = ("theta", "phi") if network.gates else ("theta",)
        soft = self._soft(student, taught)
        task = NetworkTask(network, self.x, self.y, self.gating, trained, soft=soft)
        (objective,) = task.draw(np.random.default_rng(0), 1)  # all samples: nothing is drawn
        gradient = np.empty_like(own)
        return objective(own, gradient), gradient

    def _soft(self, student: Student, taught: Taught) -> SoftTargets | None:
        """What the student's teachers say; None if it learns from labels alone."""
        if not student.teachers:
            if student.labels != 1.0:
                raise InputError(f"cooperative: {student.part} has no teachers, so labels must count 1")
            return None
        parts, weights = zip(*student.teachers, strict=True)
        return soft_targets([taught[part] for part in parts], weights, self.temperature, student.labels)

    @property
    def flops(self) -> int:
        """Dense FLOPs of one evaluation: every student's gradient, and the outputs of the teachers."""
        return step_work(self.team, self.students, len(self.y))


def step_work(team: Team, students: Sequence[Student], batch: int) -> int:
    """Dense FLOPs of a step on `batch` samples, without gates. Source: mathematics.md §9, §15.3. Derived."""
    teachers = {part for student in students for part, _ in student.teachers}
    learning = [dense_work(team.training(one.part), batch, ("theta",)).total for one in students]
    return sum(learning) + sum(dense_work(team.training(part), batch).total for part in teachers)
