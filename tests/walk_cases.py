"""What the walk calls: one case for every public function that takes arrays, and those it leaves out.

Cases of networks are in `walk_networks`, those of penalties and solvers in `walk_solvers`.
"""

from __future__ import annotations

import numpy as np
from walk import Case, place
from walk_networks import (
    BOTH,
    NET,
    NETWORKS,
    PLAIN,
    SEEDS,
    SETTINGS,
    SINGLE,
    W,
    X,
    Y,
    eighths,
    rng,
    start_of,
    unwritten,
)
from walk_solvers import ACCEL, BOWL, PENALTY, PROX, SCHEDULE

from refimpl.data import deal
from refimpl.data.dataset import DataSet
from refimpl.data.node import Node
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import Experiment, adapt_targets, personalise
from refimpl.experiments.record import RunFolder
from refimpl.federated import adapt as adaptation
from refimpl.federated import local
from refimpl.federated.methods import maml, meta, metasnip, perfedavg_hf
from refimpl.federated.methods.fedavg import FedAvg
from refimpl.federated.methods.fomaml import FOMAML
from refimpl.federated.methods.maml import MAML
from refimpl.federated.methods.metagater import MetaGater
from refimpl.federated.methods.perfedavg import PerFedAvgFO
from refimpl.federated.methods.perfedavg_hf import PerFedAvgHF
from refimpl.federated.methods.pfedme import PFedMe
from refimpl.federated.methods.reptile import Reptile
from refimpl.federated.pruning import snip
from refimpl.federated.rounds import Participation, Sums, check_state, run_rounds, vectors_of
from refimpl.nn import (
    course,
    distillation,
    gate,
    gradcheck,
    hessian,
    joins,
    layers,
    lowering,
    masks,
    norms,
    objective,
    pointwise,
    program,
    run,
    starts,
    tangent,
    weightmask,
    work,
)
from refimpl.nn.context import Context
from refimpl.nn.course import Handover
from refimpl.nn.layers import Conv2d
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.task import CompiledObjective, NetworkTask
from refimpl.optim import accel, prox

# federated: the local problem, every method, rounds and adaptation


METHODS = (
    FedAvg(eta=0.125, local_steps=2),
    FOMAML(alpha=0.125, eta=0.25, local_steps=2),
    MAML(alpha=0.125, eta=0.25, local_steps=1),
    PerFedAvgFO(alpha=0.125, eta=0.25, local_steps=2),
    PerFedAvgHF(alpha=0.125, eta=0.25, local_steps=2, delta=0.125),
    PFedMe(lam=1.0, alpha=0.125, inner_steps=2, eta=0.25, local_steps=2, mix=0.5),
    Reptile(eta=0.125, local_steps=2, mix=0.5),
    MetaGater(local.LocalSettings(1.0, 0.125, 2), SCHEDULE, PENALTY),
)
TASK = NetworkTask(PLAIN, X, Y, batch_size=3)
LOCAL = local.LocalSettings(0.5, 0.125, 2)
VECTOR = start_of(PLAIN)
TWO_ROUNDS = range(1, 3), Participation(), SEEDS


TWO_TASKS = [TASK, TASK.on(TASK.x, TASK.y)]


def method_cases(method):
    names = tuple(method.start(VECTOR))
    arrays = {name: eighths(9, seed=i) for i, name in enumerate(names)}
    free = names if len(names) == 1 else ()

    def at(name, more=""):
        return place(getattr(method, name), method.name + more)

    return {
        at("start"): Case(lambda w0: method.start(w0), any_length=("w0",), w0=eighths(9)),
        at("broadcast"): Case(lambda **state: method.broadcast(state, 2), any_length=free, **arrays),
        at("model"): Case(lambda **state: method.model(state), any_length=free, blind=names[:-1], **arrays),
        at("local"): Case(lambda point: method.local(TASK, point, rng()).w, point=VECTOR),
        at("local", ", any task"): Case(
            lambda point: method.local(BOWL, point, rng()).w, any_length=("point",), point=eighths(9)
        ),
        at("server"): Case(
            lambda point, mean, **state: method.server(arrays | state, 2, point, mean),
            blind=("ag",),
            point=eighths(9, seed=3),
            mean=eighths(9, seed=4),
            **({} if free else arrays),  # where the model is the whole state, the mean replaces it
        ),
        place(run_rounds, method.name): Case(
            lambda w: [state for state, _ in run_rounds(method, [TASK, TASK], method.start(w), *TWO_ROUNDS)],
            w=VECTOR,
        ),
    } | {
        at(name): Case(
            lambda point: method.local_each(TWO_TASKS, point, [rng(), rng()]).of(1).w, point=VECTOR
        )
        for name in ("local_each",)
        if hasattr(method, name)
    }


def report_of(w, x, y, x_test, y_test):
    found = adaptation.report_node("walk", NET, w, (x, y), (x_test, y_test), SETTINGS)
    return found._replace(seconds_gate=0.0, seconds_backbone=0.0)


FEDERATED = {key: case for method in METHODS for key, case in method_cases(method).items()} | {
    place(local.solve_local): Case(
        lambda centre: local.solve_local(TASK, centre, LOCAL, rng()).w, centre=VECTOR
    ),
    place(local.solve_local, "any task"): Case(
        lambda centre: local.solve_local(BOWL, centre, LOCAL, rng()).w,
        any_length=("centre",),
        centre=eighths(9),
    ),
    place(local.solve_each): Case(
        lambda centre: local.solve_each(TWO_TASKS, centre, LOCAL, [rng(), rng()]).of(1).w, centre=VECTOR
    ),
    place(local.local_residual): Case(
        lambda w, centre: local.local_residual(BOWL, w, centre, 0.5), w=eighths(9), centre=eighths(9, seed=1)
    ),
    place(adaptation.report_node): Case(
        report_of, labels=("y", "y_test"), w=W, x=X, y=Y, x_test=X + 1, y_test=(Y + 1) % 3
    ),
}


# data, pruning, gradcheck, experiment


def data_set(images, y):
    return DataSet("walk", images, y, ("a", "b", "c"))


def experiment(x, y):
    """A prepared run of one target node, made of these samples."""
    node = Node("walk", np.ascontiguousarray(x), np.ascontiguousarray(y), 2, 0)
    config = resolve(method="metagater", model="digits", rounds=1, gates=["conv2"])
    return Experiment(config, NET, (node,), (node,), METHODS[-1], SEEDS)


def targets_of(w, x, y):
    [found] = adapt_targets(experiment(x, y), w)
    return found._replace(seconds_gate=0.0, seconds_backbone=0.0)


PRUNED = {"w": VECTOR, "x": X, "y": Y}
OBJECTIVE = NetworkObjective(PLAIN, X, Y)
DOUBLE = {"w": VECTOR.astype(np.float64), "x": X.astype(np.float64), "y": Y}
LAYER_PROBE = {"reads": np.ones((3, 2), bool), "wanted": np.ones((3, 4), bool)}
PROBED = Conv2d("conv", 2, 4, 3, padding=1)


def probe(cotangent, reads, wanted):
    return gradcheck.LayerProbe(PROBED, (2, 4, 5), 3, cotangent, reads, wanted)


COTANGENT = eighths(3, 4, 4, 5).astype(np.float64)
UNKNOWN = eighths(PROBED.out_channels * 19 + 120).astype(np.float64)


REST = {
    place(DataSet): Case(
        data_set, any_shape=("images",), images=np.arange(120, dtype=np.uint8).reshape(5, 1, 4, 6), y=Y
    ),
    place(DataSet, "of floats"): Case(data_set, any_shape=("images",), images=eighths(5, 1, 4, 6), y=Y),
    place(Node): Case(lambda x, y: Node("walk", x, y, 2, 1), labels=(), any_shape=("x",), x=X, y=Y),
    place(Node.split): Case(
        lambda x, y: Node.split(x, y, support=2, query=1, rng=rng()), labels=(), any_shape=("x",), x=X, y=Y
    ),
    place(metasnip.adapt_channels): Case(
        lambda w, x, y: metasnip.adapt_channels(PLAIN, NET, w, x, y, SETTINGS, 0.5).adapted.w, **PRUNED
    ),
    place(metasnip.adapt_weights): Case(
        lambda w, x, y: metasnip.adapt_weights(PLAIN, w, x, y, SETTINGS, 0.5).adapted.w, **PRUNED
    ),
    place(snip.keep_top): Case(
        lambda scores: snip.keep_top(scores, 0.5), any_length=("scores",), scores=eighths(9)
    ),
    place(snip.weight_scores): Case(lambda w: snip.weight_scores(OBJECTIVE, w), w=VECTOR),
    place(snip.channel_scores): Case(lambda w: snip.channel_scores(NET, OBJECTIVE, w), w=VECTOR),
    place(snip.prune_channels): Case(lambda w: snip.prune_channels(NET, OBJECTIVE, w, 0.5), w=VECTOR),
    place(snip.prune_weights): Case(lambda w: snip.prune_weights(PLAIN, OBJECTIVE, w, 0.5), w=VECTOR),
    place(distillation.soft_targets): Case(
        lambda teacher: NetworkObjective(
            PLAIN, X, Y, soft=distillation.soft_targets([teacher, teacher], [0.5, 2.0], 2.0)
        ).value(VECTOR),
        teacher=eighths(len(Y), PLAIN.classes),
    ),
    place(gradcheck.directional_difference): Case(
        lambda w, direction: gradcheck.directional_difference(lambda u: float(u @ u), w, direction),
        w=eighths(9).astype(np.float64),
        direction=eighths(9, seed=1).astype(np.float64),
    ),
    place(gradcheck.slot_errors): Case(
        lambda w: gradcheck.slot_errors(
            BOWL, lambda u: BOWL(u, np.empty_like(u)), w, [("all", slice(0, 4))], rng(), 1
        ),
        any_length=("w",),
        w=eighths(9).astype(np.float64),
    ),
    place(gradcheck.surrogate_context): Case(
        lambda w, x: gradcheck.surrogate_context(NET, w, x, BOTH).anchors, any_length=("x",), w=W, x=X
    ),
    place(gradcheck.check_network): Case(
        lambda w, x, y: gradcheck.check_network(PLAIN, w, x, y, BOTH, rng(), 1), **DOUBLE
    ),
    place(gradcheck.LayerProbe): Case(
        lambda cotangent, reads, wanted: probe(cotangent, reads, wanted).value(UNKNOWN),
        cotangent=COTANGENT,
        **LAYER_PROBE,
    ),
    place(gradcheck.LayerProbe.value): Case(lambda u: probe(COTANGENT, **LAYER_PROBE).value(u), u=UNKNOWN),
    place(gradcheck.LayerProbe.__call__): Case(
        lambda u, grad_out: probe(COTANGENT, **LAYER_PROBE)(u, grad_out),
        written=("grad_out",),
        u=UNKNOWN,
        grad_out=unwritten(UNKNOWN.size).astype(np.float64),
    ),
    place(gradcheck.probe): Case(
        lambda reads, wanted: gradcheck.probe(PROBED, (2, 4, 5), 3, rng(), reads, wanted).value(UNKNOWN),
        **LAYER_PROBE,
    ),
    place(adapt_targets): Case(targets_of, w=W, x=X, y=Y),
    place(personalise): Case(
        lambda w: personalise(experiment(X, Y), w, experiment(X, Y).target_nodes[0]).adapted.w, w=W
    ),
}

CASES = NETWORKS | SINGLE | PROX | ACCEL | FEDERATED | REST

PASSES = ("forward", "backward")
# Functions that only their own room calls: what they are given has been checked.
INNER = {
    place(function)
    for function in (
        accel.Result,
        objective.checked_samples,  # of tasks and objectives, which have cases
        run.run_forward,  # called by networks and blocks
        run.run_backward,
        *(
            getattr(norms.FrozenNorm2d, name) for name in PASSES
        ),  # positive variances only: see test_doors_nn.py
        norms.batch_means,
        norms.FrozenNorm2d.statistics,
        layers.Normalisation.affine,
        layers.Normalisation.forward,  # of no layer: each kind has its own
        *(getattr(layer, name) for layer in (joins.Fork, joins.Add, joins.Product) for name in PASSES),
        joins.scaled,
        joins.products,
        gate.Decide.forward,
        gate.to_logits,
        hessian.loss_rate,
        distillation.softened_rate,
        tangent.sum_of,
        pointwise.as_maps,
        pointwise.tidy_samples,  # the check itself
        Handover.begin,  # called by tasks
        Handover.end,
        CompiledObjective,  # made by a task
        course.Course.run,
        program.Program,
        program.Program.stack_noise,
        prox.Groups.spread,
        prox.Groups.check_size,
        vectors_of,  # the check itself
        check_state,
        snip.best,  # called by `keep_top`
        Sums,  # made by `run_rounds` and by the engine
        Sums.step,
        perfedavg_hf.difference,  # called by the method
        adaptation.report,  # called by `report_node` and `adapt_targets`
        local.Tally.solution,
        meta.look_ahead,
        meta.gradient_at,
        meta.LookingAhead.meta_gradient,  # called by `local`, which has cases
        MAML.meta_gradient,
        PerFedAvgHF.meta_gradient,
        Experiment.rounds,  # called by `train` and by replays
        *(rule.deal for rule in (deal.Classes, deal.Dirichlet, deal.Iid)),  # called by partitions
        deal.Classes.room,
        maml.carry_back,  # called by `meta_gradient`
        Context.pruned,  # called by objectives, tasks and predictors
        Conv2d.kept,
        NetworkTask.context,
        NetworkTask.on,  # a task on other samples, which it checks as every task does
        lowering.lower,
        work.Tally,
        weightmask.WeightMask,  # see test_weightmask.py
        weightmask.WeightMask.of,
        masks.node_mask,  # called by adaptation, with masks that it has made
        masks.conditional_share,
        masks.class_information,
        masks.frozen_gates,
        starts.Open.begin,  # called when an experiment starts
        starts.Calibrated.begin,
        starts.moments,
        RunFolder.load_checkpoint,  # to and from files, which have tests of their own
        RunFolder.load_model,
        RunFolder.save_checkpoint,
        RunFolder.save_model,
    )
}
