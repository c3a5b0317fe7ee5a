"""The true stationarity gap of a training run, beside the gap that its server computed.

The server's gap uses the g of its round: mini-batches, a few local steps, the nodes of that round. The true
gap uses grad F(v) = lam (v - mean_i w_i*(v)) over all training nodes, each local problem solved in
float64 on all of the node's data. Points are the meta-model of the last checkpoint, or the centres md_k of
any rounds, which are found by running the training again. Training is deterministic, so they need not be
stored, and the metrics of each repeated round must equal those that the run recorded.

What a network with 0/1 gates minimises locally is not smooth in phi: masks jump, and the derivative used in
training (mathematics.md §2.3) is that of a relaxation. So the local problem is that of a surrogate loss,
whose masks are M_0 + r(d) - r(d_0), with M_0 and d_0 those of the centre and r the relaxation of the gate
mode. At the centre its gradient is that of training; away from the centre its masks change smoothly instead
of jumping. How much that matters is measured: `flipped` is the share of masks that would be decided
differently at the solutions, `residual_decided` the residual with masks decided there. Gumbel noise is left
out: masks are then the `hard` ones.

Source: mathematics.md §3, §7 (gap), §2.3b (derivatives); the surrogate as a local problem is derived.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refimpl.contracts import Vector, nothing
from refimpl.errors import InputError
from refimpl.experiments.experiment import Experiment
from refimpl.experiments.record import RunFolder
from refimpl.experiments.replay import replay
from refimpl.federated.adapt import quiet
from refimpl.federated.methods.metagater import MetaGater
from refimpl.federated.rounds import RoundRecord
from refimpl.files.environment import cores
from refimpl.kernels import vector
from refimpl.nn.context import Context
from refimpl.nn.gradcheck import surrogate_context
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.theory.measured import Effort, measured_gap


class Point(NamedTuple):
    """Where a gap is wanted."""

    round: int
    kind: str  # "centre" (md of that round) or "model" (xag after it)
    v: Vector  # float64 (d,)
    server_gap: float  # the server's at md of that round


class GapRow(NamedTuple):
    """Both gaps at a point of a run.

    round, point: which point it is, a round's "centre" md or the "model" after it; server_gap: the gap that
    the server saw at the centre; true_gap: ||G_b|| with every local problem solved; distance: dist(0, grad F
    + dh); error: a conditional bound on the error of both; spread: the largest change of grad F with other
    starts of the solver; residual: what the local solutions leave, mean over nodes; residual_decided: the
    same with the masks that are decided at the solutions; residual_at_centre: the same before solving;
    flipped: share of masks that are decided differently at the solutions; smoothness, concavity: the largest
    of the nodes' estimates of L and C; lam: the weight of the proximal term; lam_above_l, lam_above_c:
    whether it exceeds these estimates, the second being the condition of `error`; estimate: always true for
    networks, for which no L is proven.
    """

    round: int
    point: str
    server_gap: float
    true_gap: float
    error: float
    spread: float
    distance: float
    residual: float
    residual_decided: float
    residual_at_centre: float
    flipped: float
    smoothness: float
    concavity: float
    lam: float
    lam_above_l: bool
    lam_above_c: bool
    estimate: bool = True


@dataclass(frozen=True)
class Inspection:
    """A run's experiment, and the effort to spend on its local problems."""

    experiment: Experiment
    effort: Effort = Effort()
    threads: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.experiment.method, MetaGater):
            raise InputError(
                f"the stationarity gap belongs to the methods metagater*, metasnip*, "
                f"not to {self.experiment.config.method}, which takes other server steps"
            )

    @property
    def method(self) -> MetaGater:
        """The experiment's method, typed as `MetaGater`."""
        assert isinstance(self.experiment.method, MetaGater)
        return self.experiment.method

    def last_checkpoint(self, folder: RunFolder) -> Point:
        """The meta-model of the run's last checkpoint, with the server's gap of that round."""
        found = folder.load_checkpoint(like=self.experiment.start())
        gaps = {entry["round"]: entry["gap"] for entry in folder.metrics()}
        model, gap = self.method.model(found.arrays).astype(np.float64), gaps.get(found.round)
        return Point(found.round, "model", model, math.nan if gap is None else float(gap))

    def replay(
        self,
        folder: RunFolder,
        wanted: Sequence[int],
        on_round: Callable[[RoundRecord], None] = nothing,
    ) -> Iterator[Point]:
        """The centres md_k of the `wanted` rounds, found by repeating them; `on_round` is called after each.

        Raises `InputError` for rounds the run does not have, `RunError` where a round does not repeat.
        """
        written = {entry["round"] for entry in folder.metrics()}
        missing = sorted(set(wanted) - written)
        if missing or not wanted:
            raise InputError(f"{folder.path}: has rounds 1..{len(written)}, asked for {missing or 'none'}")
        for record, before, _ in replay(self.experiment, folder, max(wanted), self.threads):
            on_round(record)
            if record.round in wanted:
                md = self.method.broadcast(before, record.round).astype(np.float64)
                yield Point(record.round, "centre", md, record.gap)

    def measure(self, point: Point, on_node: Callable[[], None] = lambda: None) -> GapRow:
        """Both gaps at the point; `on_node` is called after every node."""
        config, method = self.experiment.config, self.method
        nodes = self.nodes()
        sizes = np.array([len(node.y) if config.weighted else 1 for node in nodes], dtype=np.float64)
        weights, lam = sizes / sizes.sum(), method.local_settings.lam
        found = measured_gap(
            [node.around(point.v) for node in nodes],
            weights,
            point.v,
            lam,
            method.schedule.steps(max(point.round, 1)).b,
            method.penalty,
            self.effort,
            self.experiment.seeds.seed,
            self.threads or cores(),
            on_node,
        )
        pairs = zip(nodes, found.points, strict=True)
        residual, flipped = np.mean([node.decide_again(point.v, w, lam) for node, w in pairs], axis=0)
        return GapRow(
            round=point.round,
            point=point.kind,
            server_gap=point.server_gap,
            true_gap=found.mapping,
            residual_decided=float(residual),
            residual_at_centre=found.before,
            flipped=float(flipped),
            lam=lam,
            lam_above_l=lam > found.smoothness,
            lam_above_c=lam > found.concavity,
            **{name: value for name, value in found._asdict().items() if name in GapRow._fields},
        )

    def nodes(self) -> list["FullNode"]:
        """The training nodes with all their training data in float64."""
        experiment = self.experiment
        context = Context(quiet(experiment.gating), ("theta", "phi"))
        return [
            FullNode(experiment.network, context, x.astype(np.float64), y)
            for x, y in (node.train for node in experiment.train_nodes)
        ]


NOTE = """\
true gap: ||G_b|| with grad F over all training nodes, local problems solved in float64. An estimate, as a
ReLU network has no Lipschitz constant. distance: dist(0, grad F + dh). residual: mean norm of what is left
of the gradients of the local problems. +- starts: change of grad F when they are solved from other starts.
+- if: error bound if each of them is (lam - C)-strongly convex, -C the lowest curvature found (a dash where
lam <= C: nothing follows)."""
NOTE_GATES = """\
Gates are 0/1, so the loss jumps: a local problem is that of the surrogate with training's gradient, the
masks of its centre moving smoothly. flipped: masks decided differently at the solutions (those of a group
that is zero have d = 0, a tie, and any move may decide it)."""
NOTE_MODEL = (
    "The true gap is that of the meta-model after the round, the server's that of the round's centre."
)


def note(experiment: Experiment, rows: Sequence[GapRow]) -> list[str]:
    """A few lines about what was computed and how far it can be trusted."""
    highest, lowest, lam = max(r.smoothness for r in rows), max(r.concavity for r in rows), rows[0].lam
    above = "exceeds" if lam > highest else "does not exceed"
    found = f"{-lowest:.3g} to {highest:.3g} on the way to the solutions"
    gated = bool(experiment.network.gates) and experiment.gating.mode != "soft"
    return [
        *NOTE.splitlines(),
        *(NOTE_GATES.splitlines() if gated else []),
        *([NOTE_MODEL] if any(row.point == "model" for row in rows) else []),
        f"lam = {lam:g} {above} the curvature found: {found}.",
        *([f"Data: {experiment.note}."] if experiment.note else []),
    ]


@dataclass(frozen=True)
class FullNode:
    """A node's loss on all its samples x (n, ...) float64, y (n,)."""

    network: Network
    context: Context
    x: np.ndarray
    y: np.ndarray

    def around(self, centre: Vector) -> NetworkObjective:
        """The loss, or for 0/1 gates its surrogate around the centre."""
        context = self.context
        if self.network.gates:
            context = surrogate_context(self.network, centre, self.x, context)
        return NetworkObjective(self.network, self.x, self.y, context)

    def decide_again(self, centre: Vector, w: Vector, lam: float) -> tuple[float, float]:
        """Residual of the local problem at w with the masks of w, and the share that changed."""
        objective = NetworkObjective(self.network, self.x, self.y, self.context)
        gradient = np.empty_like(w)
        objective(centre, gradient)
        before = {name: mask > 0.5 for name, mask in objective.masks.items()}
        objective(w, gradient)
        changed = [np.mean(before[name] != (mask > 0.5)) for name, mask in objective.masks.items()]
        residual = float(vector.norm(gradient + lam * (w - centre)))
        return residual, float(np.mean(changed)) if changed else 0.0
