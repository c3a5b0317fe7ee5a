"""Wrong servers of Algorithm 1: what they give in every round. Source: mathematics.md §4, §5. Derived."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.levels.algorithm import Rounds
from refimpl.crosscheck.suspects.contract import Suspect, altered, suspect


class Server(NamedTuple):
    """A way to write the server's step: by default the right one, and each other value is a mistake.

    centre: the point at which the nodes start and from which g is taken; x_from, xag_from: the points that
    step along -g; x_prox, xag_prox: the step, `b` or `l`, that their prox is taken with; xag_step: the step
    of xag along -g; a: the weight of x in md where it is fixed; late_a, late: by how many rounds a, and b
    with l, lag behind; by_size: whether the nodes' answers are weighted by their numbers of samples.
    """

    centre: str = "md"
    x_from: str = "x"
    xag_from: str = "md"
    x_prox: str = "l"
    xag_prox: str = "b"
    xag_step: str = "b"
    a: float | None = None
    late_a: int = 0
    late: int = 0
    by_size: bool = False

    def rounds(self, case: Case) -> Arrays:
        """What this server gives in every round."""
        run = Rounds.of(case)
        schedule, points, found = run.method.schedule, {"x": run.w0, "xag": run.w0}, dict[str, np.ndarray]()
        sizes = [len(case.inputs[f"node{node}.labels"]) for node in range(case.settings["nodes"])]
        for k in range(1, case.settings["rounds"] + 1):
            _, b, l = schedule.steps(k - self.late)
            a = schedule.steps(k - self.late_a).a if self.a is None else self.a
            steps = {"b": b, "l": l}
            points["md"] = (1 - a) * points["xag"] + a * points["x"]
            centre = points[self.centre]
            g = case.settings["lam"] * (centre - run.mean(k, centre, sizes if self.by_size else None))
            x = points[self.x_from] - l * g
            xag = points[self.xag_from] - steps[self.xag_step] * g
            run.penalty(k).prox(x, steps[self.x_prox], x)
            run.penalty(k).prox(xag, steps[self.xag_prox], xag)
            made = {"md": points["md"], "g": g, "x": x, "xag": xag}
            found |= {f"round{k}.{name}": value for name, value in made.items()}
            points = {"x": x, "xag": xag}
        return found


_OTHER, _STALE, _LATE = "prox with the other point's step", "stale point", "late momentum"
_PROX = "; the prox of x takes the step l, that of xag the step b"
_MD = "; the nodes start at md, and g = lambda (md - mean)"
_FROM = "; x <- prox(x - l g), and xag <- prox(md - b g)"
_SCHEDULE = "; the first round has k = 1, a = 2/(k + 1)"
_SERVERS: tuple[tuple[str, str, Server], ...] = (
    (_OTHER, f"the prox of xag was taken with the step l of x{_PROX}", Server(xag_prox="l")),
    (_OTHER, f"the prox of x was taken with the step b of xag{_PROX}", Server(x_prox="b")),
    (_OTHER, f"xag made a step l, the prox included{_PROX}", Server(xag_prox="l", xag_step="l")),
    (_STALE, "md was the last x; md = (1 - a) xag + a x", Server(a=1.0)),
    (_STALE, "md was the last xag; md = (1 - a) xag + a x", Server(a=0.0)),
    (_STALE, f"the nodes started at the last x instead of md{_MD}", Server(centre="x")),
    (_STALE, f"the nodes started at the last xag instead of md{_MD}", Server(centre="xag")),
    (_STALE, f"xag stepped from the last x instead of md{_FROM}", Server(xag_from="x")),
    (_STALE, f"xag stepped from the last xag instead of md{_FROM}", Server(xag_from="xag")),
    (_STALE, f"x stepped from md instead of the last x{_FROM}", Server(x_from="md")),
    (_LATE, f"the momentum a was that of the round before{_SCHEDULE}", Server(late_a=1)),
    (_LATE, f"a, b and l were those of the round before{_SCHEDULE}", Server(late_a=1, late=1)),
    (
        "mean weighted by |D_i|",
        "the nodes' answers were averaged with their numbers of samples as weights; all nodes weigh the same",
        Server(by_size=True),
    ),
)


def wrong_server(case: Case) -> Iterator[Suspect]:
    """The server mistakes its points, its steps, the round's number or the nodes' weights."""
    if case.kind == "algorithm":
        for rule, hint, server in _SERVERS:
            yield Suspect(rule, hint, partial(server.rounds, case))


def group_weight(case: Case) -> Iterator[Suspect]:
    """Every group weighs 1, or the groups lack the biases of the gates."""
    penalty = case.settings.get("penalty", {})
    if "group" not in penalty.get("type", ""):
        return
    hint = "every group had the weight 1; a group weighs the root of its number of entries"
    yield suspect("group weight", hint, altered(case, penalty={**penalty, "group_weight": 1}))
    biases = _gate_biases(case)
    if np.isin(case.inputs["indices"], biases).any():
        hint = "the gates' biases were in no group; a group holds a channel's rows of fc2 and their biases"
        yield suspect("gate bias outside its group", hint, altered(case, _groups_without(case, biases)))


def _gate_biases(case: Case) -> np.ndarray:
    """Where the biases of the gates' logits lie in phi."""
    biases = [place for name, place in case.places().items() if name.endswith(".gate.fc2.bias")]
    whole = np.concatenate([np.empty(0, dtype=np.int64), *biases])
    return whole - case.settings.get("backbone_size", 0)


def _groups_without(case: Case, entries: np.ndarray) -> Arrays:
    """The groups of a case without some entries."""
    indptr, indices = case.inputs["indptr"], case.inputs["indices"]
    kept = ~np.isin(indices, entries)
    before = np.concatenate([[0], np.cumsum(kept)])
    return {"indptr": before[indptr].astype(np.int64), "indices": indices[kept]}
