"""The objective of a team: against its formula, central differences, and what must not have a gradient."""

from __future__ import annotations

import numpy as np
import pytest
from checks import assert_same_bits
from team_cases import NETWORK, point, team

from refimpl.cooperative.objective import TeamObjective, step_work
from refimpl.cooperative.schemes import Depths, Student, Weights, divide
from refimpl.cooperative.team import Part, Team
from refimpl.errors import InputError
from refimpl.nn.work import dense_work
from refimpl.registry import SCHEMES

T = 2.5
LEADER = Part("leader", 3)


def objective(scheme="cooperative", **how):
    built, students = team(scheme, **how)
    w, x, y = point(built)
    return TeamObjective(built, students, x, y, T), w


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("own_norms", [True, False])
@pytest.mark.parametrize("complementary", [True, False])
def test_the_total_is_the_formula(own_norms, complementary):
    """Written out for the named sub-networks, from their logits alone."""
    found, w = objective(own_norms=own_norms, complementary=complementary)
    built, y = found.team, found.y
    z = {part: built.training(part).forward(w[built.entries(part)], found.x)[0] for part in built.parts}

    def ce(part):
        return -log_softmax(z[part])[np.arange(len(y)), y].mean()

    def kl(teacher, student):
        p, q = log_softmax(z[teacher] / T), log_softmax(z[student] / T)
        return T * T * (np.exp(p) * (p - q)).sum(axis=1).mean()

    full_a, full_b = Part("a", 3), Part("b", 3)
    expected = ce(LEADER)
    expected += ce(full_a) + 0.7 * kl(LEADER, full_a) + 1.3 * kl(full_b, full_a)
    expected += ce(full_b) + 0.7 * kl(LEADER, full_b) + 1.3 * kl(full_a, full_b)
    sets = {"a": (1,), "b": (2,)} if complementary else {"a": (1, 2), "b": (1, 2)}
    for member, full in (("a", full_a), ("b", full_b)):
        for depth in sets[member]:
            expected += ce(Part(member, depth)) + 0.4 * kl(full, Part(member, depth))
    assert found(w, np.empty_like(w)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("scheme", "own_norms"),
    [("cooperative", True), ("cooperative", False), ("mutual", True), ("sandwich", True)],
)
def test_the_gradient_agrees_with_central_differences(scheme, own_norms):
    """Along random directions, with the teachers' outputs held fixed; a small step passes no ReLU's kink."""
    found, w = objective(scheme, own_norms=own_norms)
    taught, rng, gradient, step = found.teach(w), np.random.default_rng(4), np.empty_like(w), 1e-7
    found(w, gradient, taught)
    for _ in range(3):
        v, unused = rng.standard_normal(w.size), np.empty_like(w)
        ahead, behind = found(w + step * v, unused, taught), found(w - step * v, unused, taught)
        assert (ahead - behind) / (2 * step) == pytest.approx(gradient @ v, rel=1e-6)


def test_teachers_get_no_gradient_from_what_they_teach():
    found, w = objective()
    gradient, alone = np.empty_like(w), np.empty_like(w)
    found(w, gradient)
    TeamObjective(found.team, [Student(LEADER)], found.x, found.y)(w, alone)
    own = found.team.entries(LEADER)
    assert alone[own].any()
    assert_same_bits(gradient[own], alone[own])


def test_teachers_are_asked_once_before_anybody_learns(monkeypatch):
    found, w = objective()
    asked = []
    teach = TeamObjective.teach
    monkeypatch.setattr(TeamObjective, "teach", lambda self, w: asked.append(0) or teach(self, w))
    found(w, np.empty_like(w))
    assert len(asked) == 1
    assert set(found.teach(w)) == {LEADER, Part("a", 3), Part("b", 3)}


def test_statistics_have_no_gradient_and_results_do_not_depend_on_threads():
    found, w = objective()
    one, many = np.empty_like(w), np.empty_like(w)
    loss = found(w, one)
    assert TeamObjective(found.team, found.students, found.x, found.y, T, threads=3)(w, many) == loss
    assert_same_bits(many, one)
    assert not one[found.team.layout.stats].any()


def test_sub_networks_share_weights_but_not_what_normalises():
    own, _ = team()
    shared, _ = team(own_norms=False)
    part, full = Part("a", 1), Part("a", 3)
    weights = {
        "a.conv1.weight",
        "a.stage1.block1.conv1.weight",
        "a.stage3.block1.shortcut.weight",
        "a.fc.bias",
    }

    def names(built: Team, of: Part, at_rest=False):
        where = set(built.entries(of, at_rest).tolist())
        return {slot.name for slot in built.layout.slots if slot.start in where}

    both = names(own, part) & names(own, full)
    assert weights <= both
    assert not any("norm" in name for name in both)
    assert "a.conv1.norm.depth1.weight" in names(own, part)
    assert names(shared, part) < names(shared, full)
    resting = names(shared, part, at_rest=True) - names(shared, part)
    assert resting
    assert all(name.rsplit(".", 1)[0].endswith("depth1") for name in resting)  # statistics


def test_calibrated_statistics_make_each_depth_do_what_it_did_in_training():
    """On the samples that calibrate, the statistics at rest are those of the batch."""
    built, _ = team(own_norms=False)
    w, x, _ = point(built)
    found = built.calibrated(w, x)
    for part in built.parts:
        trained, _ = built.training(part).forward(found[built.entries(part)], x)
        rested, _ = built.at_rest(part).forward(found[built.entries(part, at_rest=True)], x)
        np.testing.assert_allclose(rested, trained, rtol=1e-9, atol=1e-9)


def test_what_a_step_costs():
    """Every student's forward and backward passes, and a forward pass for each of the three teachers."""
    built, students = team()
    training = {d: dense_work(NETWORK.at_depth(d), 4, ("theta",)).total for d in (1, 2, 3)}
    expected = 3 * training[3] + 2 * (training[1] + training[2]) + 3 * dense_work(NETWORK, 4).total
    assert step_work(built, students, 4) == expected


@pytest.mark.parametrize(
    ("scheme", "members", "teachers"),
    [
        ("cooperative", {"leader", "a", "b"}, 8),
        ("mutual", {"a", "b"}, 6),
        ("led", {"leader", "a", "b"}, 6),
        ("labels", {"a", "b"}, 0),
        ("alone", {"alone1", "alone2", "alone3"}, 0),
        ("sandwich", {"net"}, 2),
    ],
)
def test_who_takes_part_in_a_scheme(scheme, members, teachers):
    built, students = team(scheme)
    assert {part.member for part in built.parts} == members
    assert sum(len(student.teachers) for student in students) == teachers


def test_a_weight_of_zero_leaves_its_term_out():
    assert team(weights=Weights(0.0, 1.3, 0.4))[1] == team("mutual")[1]
    assert team(weights=Weights(0.7, 0.0, 0.4))[1] == team("led")[1]


def test_the_sandwich_draws_what_lies_between():
    scheme, depths = SCHEMES.make("sandwich", {}), divide(range(1, 6), 6, False)
    rng = np.random.default_rng(0)
    drawn = {tuple(one.part.depth for one in scheme.students(depths, Weights(), rng)) for _ in range(50)}
    assert all(found[:2] == (6, 1) and len(set(found)) == 4 for found in drawn)
    assert len(drawn) == 6  # two of four


def test_depth_sets():
    assert divide((1, 2, 4), 5, True) == Depths(5, ((1, 4), (2,)))
    assert divide((1, 2, 5), 5, False).lesser == (1, 2)


def test_labels_must_count_for_whoever_has_no_teacher():
    built, _ = team()
    w, x, y = point(built)
    with pytest.raises(InputError, match="has no teachers"):
        TeamObjective(built, [Student(LEADER, labels=0.5)], x, y)(w, np.empty_like(w))
