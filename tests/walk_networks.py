"""Cases of the walk: networks, tasks, objectives and single layers, and the numbers all cases are made of.

All numbers are multiples of 1/8 (1/1024 in parameters), so that half precision holds them exactly.
"""

from __future__ import annotations

import numpy as np
from walk import Case, place

from refimpl.federated import adapt as adaptation
from refimpl.nn import zoo
from refimpl.nn.chain import Residual
from refimpl.nn.context import Context, Gating
from refimpl.nn.gate import ChannelGate, Decide, Gated
from refimpl.nn.hessian import hessian_vector
from refimpl.nn.layers import Back, BatchNorm2d, Conv2d, Flow, Linear
from refimpl.nn.layout import Layout
from refimpl.nn.network import Network
from refimpl.nn.norms import GroupNorm, calibrate, fold, frozen
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pointwise import LeakyReLU, ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d
from refimpl.nn.predict import Predictor, open_channels, predict
from refimpl.nn.task import CompiledObjective, NetworkTask
from refimpl.nn.work import executed_work
from refimpl.rng import SeedTree

SEEDS = SeedTree(0)
BOTH = Context(train=("theta", "phi"))
SOFT = Context(Gating("soft"), train=("theta", "phi"))


def rng():
    return np.random.default_rng(0)


def eighths(*shape, seed=0):
    """Multiples of 1/8 between -2 and 2, none of them zero, float32."""
    draw = np.random.default_rng((seed, *shape))
    return (draw.integers(1, 17, shape) / 8 * draw.choice([-1, 1], shape)).astype(np.float32)


def unwritten(*shape):
    return np.full(shape, np.nan, np.float32)


# nn: a gated network with a compiled program, one without, and an ungated one


NET = zoo.digits((3, 4), classes=3)
LAYERS_ONLY = zoo.residual((2, 4, 5), (3, 4), classes=3)
PLAIN = zoo.digits((3, 4), classes=3, gates=())


def start_of(network):
    """Initial parameters, rounded to multiples of 1/1024, which half precision holds."""
    return (np.rint(network.layout.initialise(SEEDS) * 1024) / 1024).astype(np.float32)


def network_arrays(network, samples=5):
    return {
        "w": start_of(network),
        "x": eighths(samples, *network.input_shape),
        "y": np.arange(samples) % 3,
    }


W, X, Y = network_arrays(NET).values()
TASK = NetworkTask(NET, X, Y)


def end_of(task, centre):
    """Where the task's compiled descent ends."""
    return task.descend_each([task], centre, 0.125, 0.5, 2, [rng()]).of(0).w


DIRECTION = eighths(W.size, seed=1)


def named(network, arrays):
    """Cases of a network, told apart by its name."""
    return {
        place(NetworkObjective.__call__, network.name): Case(
            lambda w, x, y, grad_out: NetworkObjective(network, x, y)(w, grad_out),
            written=("grad_out",),
            grad_out=unwritten(arrays["w"].size),
            **arrays,
        ),
        place(NetworkObjective.value, network.name): Case(
            lambda w, x, y: NetworkObjective(network, x, y).value(w), **arrays
        ),
        place(predict, network.name): Case(
            lambda w, x: predict(network, w, x).logits, any_length=("x",), w=arrays["w"], x=arrays["x"]
        ),
        place(Network.forward, network.name): Case(
            lambda w, x: network.forward(w, x)[0], any_length=("x",), w=arrays["w"], x=arrays["x"]
        ),
        place(Network.backward, network.name): Case(
            lambda w, dlogits, grad: network.backward(
                w, dlogits, network.forward(arrays["w"], arrays["x"], BOTH)[1], grad
            ),
            written=("grad",),
            blind=("w",),  # the first layer's weights, which no gradient needs
            w=arrays["w"],
            dlogits=eighths(5, 3),
            grad=unwritten(arrays["w"].size),
        ),
        place(adaptation.evaluate, network.name): Case(
            lambda w, x, y: adaptation.evaluate(network, w, x, y), **arrays
        ),
        place(adaptation.adapt, network.name): Case(
            lambda w, x, y: adaptation.adapt(network, w, x, y, SETTINGS).w, **arrays
        ),
    }


STILL = frozen(Network("still", (BatchNorm2d("norm", 1), Flatten(), Linear("fc", 16, 3)), (1, 4, 4)))
SETTINGS = adaptation.AdaptSettings(0.125, 0.125, 2)
NETWORKS = {
    **named(NET, network_arrays(NET)),
    **named(LAYERS_ONLY, network_arrays(LAYERS_ONLY)),
    place(calibrate): Case(
        lambda w, x: calibrate(STILL, w, x),
        any_length=("x",),
        blind=("w",),  # only the statistics are looked at, and they are replaced
        w=start_of(STILL),
        x=eighths(5, 1, 4, 4),
    ),
    place(fold): Case(lambda w: fold(STILL, w), w=start_of(STILL)),
    place(Layout.check): Case(lambda w: (NET.layout.check("walk", w), w), w=W),
    place(Layout.check_pair): Case(
        lambda w, v: (NET.layout.check_pair("walk", w, v, "v"), w, v), w=W, v=DIRECTION
    ),
    place(Layout.views): Case(lambda w: NET.layout.views(w), w=W),
    place(Layout.to_arrays): Case(lambda w: NET.layout.to_arrays(w), w=W),
    place(Layout.from_arrays): Case(
        lambda **a: PLAIN.layout.from_arrays(a), **PLAIN.layout.to_arrays(start_of(PLAIN))
    ),
    place(Network.check_batch): Case(
        lambda x: NET.check_batch("walk", x, np.dtype(np.float32)), any_length=("x",), x=X
    ),
    place(Network.check_labels): Case(lambda y: NET.check_labels("walk", y, 5), y=Y),
    place(NetworkObjective): Case(lambda x, y: NetworkObjective(NET, x, y).value(W), x=X, y=Y),
    place(NetworkObjective.hessian_vector): Case(
        lambda w, v: NetworkObjective(NET, X, Y, SOFT).hessian_vector(w, v), w=W, v=DIRECTION
    ),
    place(hessian_vector): Case(
        lambda w, v, x, y: hessian_vector(NET, w, v, x, y, SOFT), w=W, v=DIRECTION, x=X, y=Y
    ),
    place(Predictor): Case(lambda w: Predictor(NET, w)(X).logits, w=W),
    place(Predictor.__call__): Case(lambda x: Predictor(NET, W)(x).logits, any_length=("x",), x=X),
    place(open_channels): Case(
        lambda w, x: open_channels(NET, w, x), any_length=("x",), blind=("w", "x"), w=W, x=X
    ),
    place(NetworkTask): Case(lambda x, y: end_of(NetworkTask(NET, x, y), W), x=X, y=Y),
    place(NetworkTask.descend_each): Case(lambda centre: end_of(TASK, centre), centre=W),
    place(CompiledObjective.__call__): Case(
        lambda w, grad_out: next(iter(NetworkTask(NET, X, Y, batch_size=3).draw(rng(), 1)))(w, grad_out),
        written=("grad_out",),
        w=W,
        grad_out=unwritten(W.size),
    ),
    place(CompiledObjective.hessian_vector): Case(
        lambda w, v: next(iter(NetworkTask(NET, X, Y, Gating("soft")).draw(rng(), 1))).hessian_vector(w, v),
        w=W,
        v=DIRECTION,
    ),
    place(Context): Case(
        lambda noise: NET.forward(W, X, Context(Gating("gumbel"), noise={"conv2.gate": noise}))[0],
        noise=eighths(5, 4),
    ),
    place(executed_work): Case(
        lambda mask: vars(executed_work(NET, {"conv2.gate": mask}, 5, BOTH)),
        mask=np.tile([True, False], (5, 2)),
    ),
}


# nn: single layers


LAYERS = (
    (Conv2d("conv", 2, 3, 3, padding=1), (2, 4, 5), True),
    (Linear("fc", 6, 4), (6,), True),
    (BatchNorm2d("norm", 2), (2, 4, 5), False),
    (GroupNorm("norm", 2, groups=2), (2, 4, 5), False),
    (ReLU(), (2, 4, 5), True),
    (Tanh(), (2, 4, 5), True),
    (LeakyReLU(), (2, 4, 5), True),
    (Softplus(), (2, 4, 5), False),
    (MaxPool2d(2), (2, 4, 6), True),
    (AvgPool2d(2), (2, 4, 6), True),
    (GlobalAvgPool2d(), (2, 4, 5), True),
    (Flatten(), (2, 4, 5), False),
    (Residual((Conv2d("conv", 2, 2, 3, padding=1), ReLU())), (2, 4, 5), False),
    (Gated(ChannelGate("gate", 2, 3), (Conv2d("conv", 2, 3, 3, padding=1), ReLU())), (2, 4, 5), True),
)
ANY_SHAPE = (ReLU, LeakyReLU, Tanh, Softplus, Flatten)
GRADIENT = "gradient of "


def gradients(params):
    """Arrays for the gradients of parameters, by their names."""
    return {f"{GRADIENT}{name}": unwritten(*value.shape) for name, value in params.items()}


def weights(params):
    """The parameters that a backward pass needs."""
    return {name: value for name, value in params.items() if name.endswith(".weight")}


def layer_cases(layer, shape, reads_masks):
    """Forward and backward of one layer: its input, parameters, mask and gradients, each an array."""
    params = {p.name: eighths(*p.shape) for p in layer.parameters()}
    x, reads = eighths(3, *shape), np.ones((3, shape[0]), dtype=bool)
    reads[1, 1] = False
    x[1, 1] = 0
    x.flat[[0, -1]] = 4  # the largest of their windows, and positive: their gradients count
    masks = {"reads": reads} if reads_masks else {}
    y, mask, cache = layer.forward(params, x, Flow(BOTH, masks.get("reads")))

    def forward(x, reads=None, **params):
        return layer.forward(params, x, Flow(BOTH, reads))[0]

    def backward(dy, **arrays):
        grads = {name.removeprefix(GRADIENT): a for name, a in arrays.items() if name.startswith(GRADIENT)}
        return layer.backward(dy, cache, params | arrays, grads, Back(BOTH, mask))

    grads, shape = gradients(params), ("x",) if type(layer) in ANY_SHAPE else ()
    return {
        place(type(layer).forward, type(layer).__name__): Case(
            forward, any_length=() if masks else ("x",), any_shape=shape, x=x, **masks, **params
        ),
        place(type(layer).backward, type(layer).__name__): Case(
            backward, written=tuple(grads), dy=eighths(*y.shape), **weights(params), **grads
        ),
    }


def gate_cases():
    decision, _, _ = Decide("gate").forward({}, eighths(3, 8), Flow(SOFT))
    return {
        place(Decide.backward): Case(
            lambda dmask: Decide("gate").backward(dmask, decision, {}, {}, Back(SOFT)), dmask=eighths(3, 4)
        ),
    }


SINGLE = {key: case for row in LAYERS for key, case in layer_cases(*row).items()} | gate_cases()
