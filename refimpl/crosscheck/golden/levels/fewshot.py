"""Level `fewshot`: what a task of few-shot meta-learning answers, how it is tested, what a ticket keeps.

All cases have the settings of a network without gates (`levels/networks.py`), whose batch normalisations take
the statistics of the batch in every pass.

Kind `episode`. Inputs: param.* (w); support.x (n, *input_shape) with support.labels (n,); query.x with
query.labels; under a ticket also mask.<name>, booleans in the shape of that weight, true where it is kept.
Settings: method, alpha, inner_steps, for anil and boil also exact. From w, which is zero where a mask is
false, the inner loop takes `inner_steps` steps w <- w - alpha g(w), with the gradient g of the mean
cross-entropy:

| method | what the steps move | samples of a step | gradient, the answer |
| --- | --- | --- | --- |
| maml | everything | support | that of the query loss after the steps, as a function of w before them |
| fomaml | everything | support | that of the query loss where the steps end |
| anil | the last layer (the head) | support | as maml; as fomaml if `exact` is false |
| boil | all layers but the last (the body) | support | as maml; as fomaml if `exact` is false |
| reptile | everything | support and query together | w before the steps minus w after them |

Under a ticket, steps and answer are zero wherever a mask is false. Outputs: step<s>.w after each step;
query.loss after the last one, but for reptile; gradient. All but the loss are vectors.

Kind `episode_test`. Inputs and settings are the same without query.labels, and the setting `statistics`.
After the steps the query samples are classified. With `transductive` they are normalised with statistics of
their own, with `support` with those of the support samples at the same weights (the variance is biased).
Outputs: step<s>.w, query.logits.

Kind `ticket`. Input `weights` (T + 1, d) holds w after 0, 1, ... T iterations of dense training. Prunable are
the weights of convolutions with windows larger than 1x1. With a share `pruned`, n - round(pruned n) of n are
kept, those of the highest scores; of equal ones that which comes first in w. By the setting `finder`:

    mwt    Scores are |w| after T iterations. n counts all layers together (`scope` is global), or each by
           itself (layers). The ticket starts from w after `rewind` iterations.
    pmt    Each layer has a number of its own, which smart ratios give: with the weights R of all layers that
           are still to be kept, layer l of L keeps round(R q_l n_l / sum over j >= l of q_j n_j), but at most
           n_l, with q_l = (L - l + 1)(L - l + 2). After every `gamma` iterations a mask of the first layer is
           taken by |w|. The share of it that the mask before had too, its overlap, enters a queue of `length`
           overlaps. The search stops, after `stopped` iterations, when the queue is full and its smallest
           overlap is at least `delta` (`rule` is min), or its largest is above delta (max). The first layer
           keeps its last mask. Scores of the other layers are the inputs random.<name>. The ticket starts
           from w after 0 iterations.

Outputs: for pmt overlaps, the queue, and stopped; mask.<name> for every prunable weight; start, the
vector from which the ticket is trained, which is zero where a mask is false.

Source: mathematics.md §13.2, §13.3, §14.1, §14.2. Derived.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import DTypeLike

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.describe import network_of
from refimpl.crosscheck.golden.draw import Draw, network_settings
from refimpl.crosscheck.golden.levels.local import NO_RANDOM_NUMBERS, start
from refimpl.crosscheck.golden.models import blocks
from refimpl.crosscheck.golden.subject import Subject
from refimpl.data.episodes import Episodes
from refimpl.data.node import Node, Samples
from refimpl.federated.local import Tally
from refimpl.federated.methods.meta import look_ahead
from refimpl.fewshot.config import FewShotConfig
from refimpl.fewshot.evaluate import normalising
from refimpl.fewshot.experiment import build_learner
from refimpl.fewshot.learner import Learner
from refimpl.fewshot.tasks import EpisodeTask, losses
from refimpl.fewshot.tickets.finders import PMT, Search
from refimpl.fewshot.tickets.masks import Mask, choose, counts_in, prunable
from refimpl.nn.context import Gating
from refimpl.nn.layers import Linear
from refimpl.nn.layout import Layout
from refimpl.nn.network import Network
from refimpl.nn.norms import without_gates
from refimpl.nn.predict import predict
from refimpl.nn.weightmask import WeightMask
from refimpl.registry import FINDERS, check_keys, keys_of
from refimpl.rng import SeedTree

STEPS = 2
BATCH, RATES = 4, {"alpha": 0.4, "inner_steps": STEPS}
MASK, RANDOM = "mask.", "random."
# By title: the method, its own settings, and whether there is a ticket.
EPISODES: dict[str, tuple[str, dict[str, Any], bool]] = {
    **{method: (method, {}, False) for method in ("maml", "fomaml", "reptile")},
    **{method: (method, {"exact": True}, False) for method in ("anil", "boil")},
    "boil-first-order": ("boil", {"exact": False}, False),
    "masked": ("maml", {}, True),
    "masked-fomaml": ("fomaml", {}, True),
}
# By title: the method that adapts, and the statistics of the query samples.
TESTS = {"transductive": ("maml", "transductive"), "support": ("anil", "support")}
# By title: the settings of a ticket.
TICKETS: dict[str, dict[str, Any]] = {
    "global": {"finder": "mwt", "scope": "global", "rewind": 1},
    "layers": {"finder": "mwt", "scope": "layers", "rewind": 2},
    "primary": {"finder": "pmt", "gamma": 2, "length": 2, "delta": 0.8, "rule": "min"},
}
PRUNED, ITERATIONS = 0.6, {"mwt": 3, "pmt": 12}


def cases(seed: int, dtype: str) -> Iterator[Case]:
    """Cases of every method, of both statistics and of tickets, with two plain blocks and two classes."""
    network = blocks("episodes", 2, Linear("fc", 2, 2, gain=4.0), (1, 4, 4), pooled=True)
    yield from _cases("", Subject(network, BATCH), seed, dtype)


def own_cases(own: Subject, seed: int, dtype: str) -> Iterator[Case]:
    """Cases of a user's network without its gates, if all of it learns; without convolutions, no tickets."""
    network = without_gates(own.network)
    if network.layout.stats.start == network.layout.size:
        yield from _cases(f"{own.name}-", replace(own, network=network), seed, dtype)


def _cases(prefix: str, subject: Subject, seed: int, dtype: str) -> Iterator[Case]:
    network = subject.network
    shapes = {slot.name: slot.shape for slot in prunable(network.layout)} if _convolves(network) else {}

    def draw(title: str) -> Draw:
        return subject.draw(f"fewshot {prefix}{title}", seed, dtype)

    for title, (method, own, masked) in EPISODES.items():
        if shapes or not masked:
            numbers = draw(title)
            case = _episode(numbers, f"{prefix}{title}", subject, {"method": method, **own})
            masks = {MASK + name: numbers.mask(*shape) for name, shape in shapes.items()}
            yield replace(case, inputs=case.inputs | masks) if masked else case
    for title, (method, statistics) in TESTS.items():
        settings = {"method": method, "statistics": statistics}
        yield _episode(draw(title), f"{prefix}{title}", subject, settings)
    for title, settings in TICKETS.items() if shapes else ():
        yield _ticket(draw(title), f"{prefix}{title}", network, settings)


def _convolves(network: Network) -> bool:
    return any(len(slot.shape) == 4 and slot.shape[2:] != (1, 1) for slot in network.layout.slots)


def _episode(draw: Draw, title: str, subject: Subject, settings: dict[str, Any]) -> Case:
    network, batch = subject.network, subject.batch
    inputs, test = draw.params(network.layout, zeros=False), "statistics" in settings
    for part in ("support", "query"):
        x, labels = draw.samples(network, batch)
        inputs[f"{part}.x"] = x
        if part == "support" or not test:  # normal numbers have each class equally often
            inputs[f"{part}.labels"] = np.arange(batch) % network.classes if draw.data is None else labels
    steps = [f"step{s}.w" for s in range(1, STEPS + 1)]
    if test:
        kind, outputs = "episode_test", (*steps, "query.logits")
    else:
        loss = () if settings["method"] == "reptile" else ("query.loss",)
        kind, outputs = "episode", (*steps, *loss, "gradient")
    settings = network_settings(network, Gating()) | RATES | settings
    return Case(f"fewshot/{title}", kind, draw.dtype, inputs, settings, outputs)


def _ticket(draw: Draw, title: str, network: Network, own: dict[str, Any]) -> Case:
    """Weights that move ever less from one iteration to the next; |w| has ties after the last one."""
    layout, iterations = network.layout, ITERATIONS[own["finder"]]
    moves = draw.normal(iterations + 1, layout.size) * 0.7 ** np.arange(iterations + 1)[:, None]
    weights = (draw.coarse(layout.size) + moves - moves[-1]).astype(draw.dtype)
    inputs, masks = {"weights": weights}, []
    for slot in prunable(layout):
        masks.append(MASK + slot.name)
        if own["finder"] == "pmt":
            inputs[RANDOM + slot.name] = draw.rng.random(slot.shape).astype(draw.dtype)
    outputs = (*(("overlaps", "stopped") if own["finder"] == "pmt" else ()), *masks, "start")
    settings = network_settings(network, Gating()) | {"pruned": PRUNED} | own
    return Case(f"fewshot/{title}", "ticket", draw.dtype, inputs, settings, outputs)


# --- what this package computes ---------------------------------------------------------------------


class Given(NamedTuple):
    """Episodes of which all are the same node."""

    only: Node

    def draw(self, rng: np.random.Generator, dtype: DTypeLike, name: str) -> Node:
        """The node."""
        return self.only


def ticket_of(case: Case, layout: Layout) -> np.ndarray | None:
    """Booleans (d,), true where the masks of a case keep w; None where it has no masks."""
    masks = case.named(MASK)
    return Mask({slot.name: masks[slot.name] for slot in prunable(layout)}).over(layout) if masks else None


def learner_of(case: Case, network: Network) -> Learner:
    """The method of a case, under its ticket."""
    names = ("method", "exact", "alpha", "inner_steps", "statistics")
    config = FewShotConfig(**{name: case.settings[name] for name in names if name in case.settings})
    return build_learner(config, network, ticket_of(case, network.layout))


def episode(case: Case) -> Arrays:
    """The inner steps and the answer."""
    network, w = start(case)
    mask = ticket_of(case, network.layout)
    weights = None if mask is None else WeightMask(network.layout, mask)
    return answer(case, network, w, learner_of(case, network), weights)


def answer(
    case: Case, network: Network, w: np.ndarray, learner: Learner, weights: WeightMask | None = None
) -> Arrays:
    """The inner steps and the answer of any method, from any w (d,)."""
    parts = [(case.inputs[f"{part}.x"], case.inputs[f"{part}.labels"]) for part in ("support", "query")]
    sizes = [len(labels) for _, labels in parts]
    x, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    episodes = cast(Episodes, Given(Node("episode", x, labels, *sizes)))
    task = EpisodeTask(network, episodes, SeedTree(0), "episode", 1, 0, case.dtype, weights)
    w, steps = learner.start(w)["w"], learner.inner_steps
    if learner.follows:
        inners = task.mixed(NO_RANDOM_NUMBERS, steps, 0)
    else:
        inners = task.draw(NO_RANDOM_NUMBERS, steps + 1)[:-1]
    points = look_ahead(w, inners, learner.alpha, Tally(), learner.moves)
    found = learner.local(task, w, NO_RANDOM_NUMBERS)
    own = {"query.loss": np.array(found.loss), "gradient": found.w}
    return {f"step{s}.w": point for s, point in enumerate(points)} | own


def episode_test(case: Case) -> Arrays:
    """The inner steps, and what is then said about the query samples."""
    network, w = start(case)
    learner, x = learner_of(case, network), case.inputs["support.x"]
    inners = losses(network, Samples(x, case.inputs["support.labels"]), learner.inner_steps)
    points = look_ahead(w, inners, learner.alpha, Tally(), learner.moves)
    network, w = normalising(network, points[-1], x, case.settings["statistics"])
    logits = predict(network, w, case.inputs["query.x"]).logits
    return {f"step{s}.w": point for s, point in enumerate(points)} | {"query.logits": logits}


class Trained(NamedTuple):
    """Stands for a `Search` whose dense training is given as weights (T + 1, d) by iteration."""

    layout: Layout
    pruned: float
    weights: np.ndarray

    def counts(self, scope: str) -> list[int]:
        """How many weights to keep."""
        return counts_in(self.layout, scope, self.pruned)

    def theta(self, iterations: int) -> np.ndarray:
        """The weights after so many iterations."""
        row: np.ndarray = self.weights[iterations]
        return row

    def dense(self) -> np.ndarray:
        """The weights after the last one."""
        return self.theta(-1)


def ticket(case: Case) -> Arrays:
    """The decisions of a finder."""
    settings, layout = case.settings, network_of(case.settings).layout
    trained = Trained(layout, settings["pruned"], case.inputs["weights"])
    kind = FINDERS[settings["finder"]]
    finder: Any = kind(**{name: settings[name] for name in keys_of(kind)})
    check_keys("golden", finder)
    if isinstance(finder, PMT):
        return primary(case, finder, trained)
    return found_ticket(layout, *finder.find(cast(Search, trained)))


def primary(case: Case, finder: PMT, trained: Trained) -> Arrays:
    """Looks at the first layer until its mask is stable, then random masks for the others."""
    counts, (slot, *_) = trained.counts("smart"), prunable(trained.layout)
    sizes = np.abs(trained.weights[:, slot.start : slot.stop])
    queue, mask = np.full(finder.length, np.nan), np.zeros(sizes.shape[1], dtype=bool)
    stopped = 0
    for stopped in range(finder.gamma, len(sizes), finder.gamma):
        queue, mask = finder.look(queue, mask, sizes[stopped], counts[0])
        if finder.stable(queue):
            break
    scores = np.zeros(trained.layout.size)
    for name, random in case.named(RANDOM).items():
        trained.layout.views(scores)[name][:] = random
    scores[slot.start : slot.stop] = sizes[stopped]
    own = {"overlaps": queue, "stopped": np.array(float(stopped))}
    return own | found_ticket(trained.layout, choose(trained.layout, scores, counts), trained.theta(0))


def found_ticket(layout: Layout, mask: Mask, first: np.ndarray) -> Arrays:
    """The arrays of a ticket, from its mask and the weights (d,) that it starts from."""
    masks = {MASK + name: kept for name, kept in mask.layers.items()}
    return masks | {"start": WeightMask(layout, mask.over(layout)).of(first)}


KINDS = {"episode": episode, "episode_test": episode_test, "ticket": ticket}
