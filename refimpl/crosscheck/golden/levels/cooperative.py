"""Level `cooperative`: the loss of a team on one batch, term by term, and its gradient.

Kind `cooperative`. Inputs: param.<name> of the whole team, x (N, *input_shape), labels (N,). Settings:
layers, input_shape and gating of a member at the full depth (`levels/networks.py`); parameters: [name, shape]
of the team, the order of the gradient; temperature T; weights, the numbers a, b and c; own_norms; and

    parts      by the name of each sub-network: its member, depth and layers, and as `parameters` the pairs
               [name in its layers, name in the team]. Normalisations take the statistics of the batch.
    students   a list of {"part", "labels", "teachers"}: who learns, the weight of the cross-entropy, and by
               the name of each teacher, which of a, b and c is its weight

Outputs: logits.<part> of every part; for each student, <part>.labels.loss = labels * mean cross-entropy (if
labels is not 0) and, for each teacher, <part>.from.<teacher>.loss = weight T^2 KL(p_teacher || p_student),
with p = softmax(logits/T) and the mean over the batch; total.loss, their sum; gradient, a vector in which
teachers are constants. Entries that no student has are zero, as the running statistics, which are not used.

Source: mathematics.md §15.1, §15.2. Reconstructed.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from refimpl.cooperative.objective import TeamObjective
from refimpl.cooperative.schemes import Depths, Student, Weights, divide
from refimpl.cooperative.team import Part, Team
from refimpl.crosscheck.golden.case import PARAM, Arrays, Case
from refimpl.crosscheck.golden.describe import describe, network_of
from refimpl.crosscheck.golden.draw import network_settings
from refimpl.crosscheck.golden.models import blocks
from refimpl.crosscheck.golden.subject import Subject
from refimpl.nn.context import Gating
from refimpl.nn.layers import Linear
from refimpl.registry import SCHEMES

BATCH, TEMPERATURE, WEIGHTS = 4, 2.5, Weights(0.7, 1.3, 0.4)
# By title: the scheme, whether the sets of depths are complementary, whether a depth has norms of its own.
TITLES = {
    "cooperative": ("cooperative", False, True),
    "complementary": ("cooperative", True, True),
    "shared": ("cooperative", True, False),
    **{name: (name, False, True) for name in ("mutual", "led", "labels", "sandwich", "alone")},
}


def cases(seed: int, dtype: str) -> Iterator[Case]:
    """Cases of every scheme, of complementary depths and of shared normalisation, on three plain blocks."""
    network = blocks("team", 3, Linear("fc", 2, 3, gain=8.0), (1, 5, 4))
    for title, chosen in TITLES.items():
        yield _case(title, Subject(network, BATCH), *chosen, seed, dtype)


def own_cases(own: Subject, seed: int, dtype: str) -> Iterator[Case]:
    """The case of a user's network at all of its depths, if it has stages."""
    if own.network.depth:
        yield _case(f"{own.name}-cooperative", own, *TITLES["cooperative"], seed, dtype)


def _case(
    title: str,
    subject: Subject,
    scheme: str,
    complementary: bool,
    own_norms: bool,
    seed: int,
    dtype: str,
) -> Case:
    draw, network = subject.draw(f"cooperative {title}", seed, dtype), subject.network
    depths: Depths = divide(range(1, network.depth), network.depth, complementary)
    made = SCHEMES.make(scheme, {})
    team = Team(network, made.parts(depths, WEIGHTS), own_norms)
    students = made.students(depths, WEIGHTS, draw.rng)
    inputs = draw.params(team.layout, zeros=False)
    inputs["x"], inputs["labels"] = draw.samples(network, subject.batch)
    parts = {name_of(part): _described(team, part) for part in team.parts}
    settings = network_settings(network, Gating()) | {
        "parameters": [[slot.name, list(slot.shape)] for slot in team.layout.slots],
        "parts": parts,
        "students": [_lesson(student) for student in students],
        "weights": WEIGHTS._asdict(),
        "temperature": TEMPERATURE,
        "own_norms": own_norms,
    }
    terms = [term for student in settings["students"] for term in term_names(student)]
    outputs = (*(f"logits.{part}" for part in parts), *terms, "total.loss", "gradient")
    return Case(f"cooperative/{title}", "cooperative", dtype, inputs, settings, outputs)


def name_of(part: Part) -> str:
    """A sub-network's name in a file."""
    return f"{part.member}.depth{part.depth}"


def _described(team: Team, part: Part) -> dict[str, Any]:
    network = team.training(part)
    places = team.entries(part)
    whole = {slot.start: slot.name for slot in team.layout.slots}
    pairs = [[slot.name, whole[int(places[slot.start])]] for slot in network.layout.slots]
    own = {"layers": describe(network.layers), "parameters": pairs}
    return {"member": part.member, "depth": part.depth, **own}


def _lesson(student: Student) -> dict[str, Any]:
    letters = {value: letter for letter, value in WEIGHTS._asdict().items()}
    teachers = {name_of(part): letters[weight] for part, weight in student.teachers}
    return {"part": name_of(student.part), "labels": student.labels, "teachers": teachers}


def term_names(student: dict[str, Any]) -> list[str]:
    """The outputs that are terms of a student's loss."""
    own = [f"{student['part']}.labels.loss"] if student["labels"] else []
    return [*own, *(f"{student['part']}.from.{teacher}.loss" for teacher in student["teachers"])]


# --- what this package computes ---------------------------------------------------------------------


def compute(case: Case) -> Arrays:
    """What every part says, every term by itself, then all of them at once with the gradient."""
    team, students = team_of(case)
    w = team.layout.from_arrays(case.params(), case.dtype)
    gradient = np.empty_like(w)

    def objective(*chosen: Student) -> TeamObjective:
        x, labels = case.inputs["x"], case.inputs["labels"]
        return TeamObjective(
            team, chosen, x, labels, case.settings["temperature"], Gating(**case.settings["gating"])
        )

    everyone = [Student(team.parts[0], tuple((part, 1.0) for part in team.parts))]
    said = objective(*everyone).teach(w)
    found = {f"logits.{name_of(part)}": logits for part, logits in said.items()}
    for student, lesson in zip(students, case.settings["students"], strict=True):
        # Labels count 1 where there are no teachers, whose weights are part of what they teach.
        alone = [(student.labels, Student(student.part, labels=1.0))] if student.labels else []
        alone += [(1.0, Student(student.part, (teacher,), labels=0.0)) for teacher in student.teachers]
        for name, (weight, term) in zip(term_names(lesson), alone, strict=True):
            found[name] = np.array(weight * objective(term)(w, gradient, said))
    found["total.loss"] = np.array(objective(*students)(w, gradient, said))
    return found | {"gradient": gradient}


def team_of(case: Case) -> tuple[Team, list[Student]]:
    """The team of a case, and those who learn."""
    settings = case.settings
    parts = {name: Part(own["member"], own["depth"]) for name, own in settings["parts"].items()}
    team = Team(network_of(settings), tuple(parts.values()), settings["own_norms"])
    students = [
        Student(
            parts[lesson["part"]],
            tuple((parts[name], settings["weights"][key]) for name, key in lesson["teachers"].items()),
            lesson["labels"],
        )
        for lesson in settings["students"]
    ]
    return team, students


def arrays_of(case: Case, part: str) -> Arrays:
    """The inputs `param.<name>` of one part, by the names in its layers."""
    pairs = case.settings["parts"][part]["parameters"]
    return {PARAM + own: case.inputs[PARAM + name] for own, name in pairs}


KINDS = {"cooperative": compute}
