"""Whatever reaches compiled code from Python is made tidy or refused: layers, kernels, objectives.

Arrays may lie in memory in any way and give the bits of the tidy ones. What would change numbers (another
precision, whole numbers), wrong shapes, and outputs that cannot be written are refused.
"""

from __future__ import annotations

import numpy as np
import pytest
from checks import assert_same_bits

from refimpl.errors import InputError
from refimpl.federated.adapt import evaluate
from refimpl.kernels import activation, conv, linear, loss, norm, pool, vector
from refimpl.nn import predict as predict_module
from refimpl.nn import zoo
from refimpl.nn.chain import Residual
from refimpl.nn.context import Context, Gating
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.hessian import hessian_vector
from refimpl.nn.layers import Back, BatchNorm2d, Conv2d, Flow, Linear
from refimpl.nn.layout import Layout
from refimpl.nn.norms import FrozenNorm2d, GroupNorm
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pointwise import LeakyReLU, ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d
from refimpl.nn.predict import open_channels, predict
from refimpl.nn.task import NetworkTask
from refimpl.nn.work import executed_work
from refimpl.rng import SeedTree

BOTH = Context(train=("theta", "phi"))


def strided(array):
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def misaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    raw[1:] = array.reshape(-1).view(np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


AWKWARD = {
    "columns first": np.asfortranarray,
    "axes turned": lambda array: array.T.copy().T,
    "backwards": lambda array: array[::-1].copy()[::-1],
    "strided": strided,
    "read-only": read_only,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "misaligned": misaligned,
}
REFUSED = {
    "half precision": lambda array: array.astype(np.float16),
    "whole numbers": lambda array: array.astype(np.int64),
    "complex": lambda array: array.astype(complex),
    "an axis less": lambda array: array[..., 0].copy(),
    "an axis more": lambda array: array[..., None].copy(),
    "no axes": lambda array: array.reshape(-1)[0],
    "text": lambda array: array.astype(str),
}

LAYERS = {
    "conv": (Conv2d("c", 3, 4, 3), (3, 6, 5)),
    "conv without bias": (Conv2d("c", 3, 4, 3, bias=False), (3, 6, 5)),
    "linear": (Linear("l", 6, 4), (6,)),
    "batch norm": (BatchNorm2d("b", 3), (3, 6, 5)),
    "group norm": (GroupNorm("b", 4, groups=2), (4, 6, 5)),
    "frozen norm": (FrozenNorm2d("b", 3), (3, 6, 5)),
    "relu": (ReLU(), (3, 6, 5)),
    "leaky relu": (LeakyReLU(0.1), (3, 6, 5)),
    "softplus": (Softplus(), (3, 6, 5)),
    "tanh": (Tanh(), (3, 6, 5)),
    "max": (MaxPool2d(2), (3, 6, 4)),
    "overlapping max": (MaxPool2d(3, 1), (3, 6, 5)),
    "average": (AvgPool2d(2), (3, 6, 4)),
    "overlapping average": (AvgPool2d(3, 2), (3, 7, 5)),
    "padded max": (MaxPool2d(3, 2, 1), (3, 6, 5)),
    "global": (GlobalAvgPool2d(), (3, 6, 5)),
    "flatten": (Flatten(), (3, 6, 5)),
    "residual": (Residual((Conv2d("c", 3, 3, 3, padding=1), ReLU())), (3, 6, 5)),
    "gated": (Gated(ChannelGate("g", 3, 4), (Conv2d("c", 3, 4, 3), ReLU())), (3, 6, 5)),
}
ANY_SHAPE = {
    "relu",
    "leaky relu",
    "softplus",
    "tanh",
    "flatten",
}  # these take samples with any number of axes
MASKED = [
    name for name in LAYERS if name not in ("batch norm", "group norm", "frozen norm", "residual", "gated")
]
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def refuses(call):
    """Assert that the call raises InputError, in one line."""
    with pytest.raises(InputError) as info:
        call()
    assert "\n" not in str(info.value)


class Passes:
    """A layer with parameters, samples and a gradient, run forward and backward."""

    def __init__(self, name, dtype, samples=4):
        self.layer, shape = LAYERS[name]
        self.layout, rng = Layout(self.layer.parameters()), np.random.default_rng(0)
        self.w = self.layout.initialise(SeedTree(0), dtype)
        self.x = rng.standard_normal((samples, *shape)).astype(dtype)
        self.dy = rng.standard_normal((samples, *self.layer.output_shape(shape))).astype(dtype)

    def forward(self, x, flow=None):
        return self.layer.forward(self.layout.views(self.w), x, flow or Flow(BOTH))

    def backward(self, cache, dy, back=None):
        gradient = np.full_like(self.w, 7)
        params, grads = self.layout.views(self.w), self.layout.views(gradient)
        return self.layer.backward(dy, cache, params, grads, back or Back(BOTH)), gradient


# Layers


@both_dtypes
@pytest.mark.parametrize("form", AWKWARD)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_take_arrays_however_they_lie(name, form, dtype):
    passes, awkward = Passes(name, dtype), AWKWARD[form]
    y, _, cache = passes.forward(passes.x)
    expected = passes.backward(cache, passes.dy)
    found, _, odd_cache = passes.forward(awkward(passes.x))
    assert_same_bits(found, y)
    for got, wanted in zip(passes.backward(odd_cache, awkward(passes.dy)), expected, strict=True):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_refuse_what_they_would_have_to_change(name, form):
    passes, spoil = Passes(name, "float32"), REFUSED[form]
    _, _, cache = passes.forward(passes.x)
    if not (name in ANY_SHAPE and form in ("an axis less", "an axis more")):
        refuses(lambda: passes.forward(spoil(passes.x)))
    refuses(lambda: passes.backward(cache, spoil(passes.dy)))
    refuses(lambda: passes.backward(cache, passes.dy[:-1].copy()))
    refuses(lambda: passes.backward(cache, passes.dy[:, :-1].copy()))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_give_nothing_for_no_samples(name):
    passes = Passes(name, "float32", samples=0)
    y, _, cache = passes.forward(passes.x)
    assert y.shape == passes.dy.shape
    dx, _ = passes.backward(cache, passes.dy)
    assert dx.shape == passes.x.shape


@pytest.mark.parametrize("name", MASKED)
def test_masks_are_boolean_and_fit(name):
    passes = Passes(name, "float64")
    is_weighted = bool(passes.layer.parameters())
    mask = np.random.default_rng(1).random((4, passes.x.shape[1])) < 0.5
    x = passes.x * mask.reshape(*mask.shape, *(1,) * (passes.x.ndim - 2))

    def flow(mask):
        return Flow(BOTH, None, mask) if name == "softplus" else Flow(BOTH, mask)

    def back(mask):
        return Back(BOTH, None if is_weighted else mask, mask)

    y, _, cache = passes.forward(x, flow(mask))
    dx, _ = passes.backward(cache, passes.dy, back(mask))
    for awkward in (np.asfortranarray, strided, read_only):
        odd = awkward(mask)
        found, _, odd_cache = passes.forward(x, flow(odd))
        assert_same_bits(found, y)
        assert_same_bits(passes.backward(odd_cache, passes.dy, back(odd))[0], dx)
    if name == "flatten":
        return  # it hands the mask on to layers that look at it
    for wrong in (
        mask.astype(float),
        mask.astype(int),
        mask[:-1],
        mask[:, :0],
        mask[0],
        np.ones((4, 7), bool),
    ):
        refuses(lambda wrong=wrong: passes.forward(x, flow(wrong)))
        refuses(lambda wrong=wrong: passes.backward(cache, passes.dy, back(wrong)))


# Kernels


def kernel_calls():
    """Of every function Python may call, its arguments; those it writes are zeros, those it reads are not."""
    rng = np.random.default_rng(0)

    def reals(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def new(*shape, dtype=np.float32):
        return np.zeros(shape, dtype)

    maps, on, image, small = reals(4, 3, 5), rng.random((4, 3)) < 0.5, reals(4, 3, 6, 4), reals(4, 3, 3, 2)
    where, window, none, double = (
        rng.integers(0, 4, (4, 3, 3, 2)).astype(np.int32),
        (2, 2),
        (0, 0),
        np.float64,
    )
    calls = {
        pool.max_forward: (image, window, window, none, on, new(4, 3, 3, 2), new(4, 3, 3, 2, dtype=np.int32)),
        pool.max_backward: (small, where, window, window, none, on, new(4, 3, 6, 4)),
        pool.average_forward: (image, window, window, none, on, new(4, 3, 3, 2)),
        pool.average_backward: (small, window, window, none, on, new(4, 3, 6, 4)),
        activation.sigmoid_scaled: (reals(4, 3), 0.5, new(4, 3), new(4, 3)),
        activation.scale_channels: (maps, reals(4, 3), new(4, 3, 5)),
        activation.channel_products: (maps, reals(4, 3, 5), new(4, 3)),
        activation.channel_means: (maps, on, new(4, 3)),
        activation.add_to_channels: (reals(4, 3), on, new(4, 3, 5)),
        norm.batch_norm_forward: (
            maps, reals(3), reals(3), 1e-5, new(4, 3, 5), new(3, dtype=double), new(4, 3, 5)
        ),
        norm.batch_norm_backward: (
            maps, reals(4, 3, 5), rng.random(3), reals(3), new(3), new(3), new(4, 3, 5)
        ),
        norm.group_norm_forward: (
            maps, reals(3), reals(3), 1e-5, new(4, 3, 5), new(4, 3, dtype=double), new(4, 3, 5)
        ),
        norm.group_norm_backward: (
            maps, reals(4, 3, 5), rng.random((4, 3)), reals(3), False, new(3), new(3), new(4, 3, 5)
        ),
        norm.frozen_norm_forward: (
            maps, reals(3), reals(3), reals(3), reals(3) ** 2, 1e-5, on, new(4, 3, 5)
        ),
        norm.frozen_norm_backward: (
            *(maps, reals(4, 3, 5), reals(3), reals(3), reals(3) ** 2, 1e-5, on, False),
            *(new(3), new(3), new(4, 3, 5)),
        ),
        activation.leaky_forward: (maps, 0.1, on, new(4, 3, 5)),
        activation.leaky_backward: (maps, reals(4, 3, 5), 0.1, on, new(4, 3, 5)),
        loss.softmax_cross_entropy: (reals(4, 3), np.array([0, 2, 1, 1]), new(4, 3)),
        vector.squared_norm: (reals(9),),
        vector.norm: (reals(9),),
        vector.local_step: (new(9), reals(9), reals(9), np.float32(0.1), np.float32(0.5)),
        vector.local_residual: (reals(9), reals(9), reals(9), np.float32(0.5)),
        vector.mean_of_rows: (reals(4, 9), rng.random(4), new(9)),
        vector.partial_shuffles: (
            np.array([[3, 0], [1, 2]]), new(4, dtype=np.int64), new(2, 2, dtype=np.int64)
        ),
        conv.forward: (image, reals(5, 3, 3, 3), reals(5), (1, 1), (1, 1), on),
        conv.input_grad: (reals(4, 5, 6, 4), reals(5, 3, 3, 3), (1, 1), (1, 1), (6, 4), None, on),
        conv.weight_grad: (image, reals(4, 5, 6, 4), (1, 1), (1, 1), new(5, 3, 3, 3), new(5), on),
        linear.forward: (reals(4, 6), reals(5, 6), reals(5), on),
        linear.input_grad: (reals(4, 5), reals(5, 6), None, on),
        linear.weight_grad: (reals(4, 6), reals(4, 5), new(5, 6), new(5), on),
    }  # fmt: skip
    for name in ("relu", "softplus", "tanh"):
        calls[getattr(activation, f"{name}_forward")] = (maps, on, new(4, 3, 5))
        calls[getattr(activation, f"{name}_backward")] = (maps, reals(4, 3, 5), on, new(4, 3, 5))
    return calls


def name_of(function):
    return getattr(function, "who", f"{function.__module__}.{function.__name__}")


CALLS = {name_of(function): (function, args) for function, args in kernel_calls().items()}


def is_written(array):
    return isinstance(array, np.ndarray) and array.size > 0 and not array.any()


def run(function, args):
    """The result, and the written arrays; the arguments stay as they are."""
    own = [array.copy() if is_written(array) else array for array in args]
    result = function(*own)
    return [result, *(array for array, given in zip(own, args, strict=True) if is_written(given))]


@pytest.mark.parametrize("form", AWKWARD)
@pytest.mark.parametrize("name", CALLS)
def test_kernels_read_arrays_however_they_lie(name, form):
    function, args = CALLS[name]
    expected = run(function, args)
    for at, array in enumerate(args):
        if isinstance(array, np.ndarray) and not is_written(array):
            found = run(function, (*args[:at], AWKWARD[form](array), *args[at + 1 :]))
            for got, wanted in zip(found, expected, strict=True):
                assert_same_bits(np.asarray(got), np.asarray(wanted), f"argument {at}")


def refused_forms(array):
    """Names of `REFUSED` that do not merely convert: labels, places and float64 weights may be narrower."""
    if array.dtype == np.bool_:
        return ["an axis less", "an axis more", "no axes", "whole numbers"]
    forms = set(REFUSED)
    if array.dtype == np.int64 or (array.dtype == np.int32 and not is_written(array)):
        forms.remove("whole numbers")
    if array.dtype == np.float64 and not is_written(array):
        forms -= {"whole numbers", "half precision"}
    return sorted(forms)


@pytest.mark.parametrize("name", CALLS)
def test_kernels_refuse_wrong_arrays_in_one_line(name):
    function, args = CALLS[name]

    def refuses_at(at, array):
        refuses(lambda: function(*(*args[:at], array, *args[at + 1 :])))

    arrays = {at: array for at, array in enumerate(args) if isinstance(array, np.ndarray)}
    for at, array in arrays.items():
        for form in refused_forms(array):
            refuses_at(at, REFUSED[form](array))
        if len(arrays) > 1:
            refuses_at(at, array[:-1].copy())
        if is_written(array):
            for form in ("strided", "read-only", "big-endian", "misaligned"):
                refuses_at(at, AWKWARD[form](array))
            refuses_at(at, array.tolist())


@pytest.mark.parametrize(
    "call",
    [
        lambda: loss.softmax_cross_entropy(np.ones((2, 3)), np.array([0, 3]), np.ones((2, 3))),
        lambda: loss.softmax_cross_entropy(np.ones((2, 3)), np.array([0, -1]), np.ones((2, 3))),
        lambda: loss.softmax_cross_entropy(np.ones((2, 3)), np.array([0.0, 1.0]), np.ones((2, 3))),
        lambda: loss.softmax_cross_entropy(np.ones((0, 3)), np.ones(0, int), np.ones((0, 3))),
        lambda: pool.max_forward(
            np.ones((1, 1, 4, 4)),
            (3, 3),
            (1, 1),
            (0, 0),
            None,
            np.ones((1, 1, 3, 3)),
            np.zeros((1, 1, 3, 3), np.int32),
        ),
        lambda: pool.max_backward(
            np.ones((1, 1, 2, 2)),
            np.full((1, 1, 2, 2), 4),
            (2, 2),
            (2, 2),
            (0, 0),
            None,
            np.ones((1, 1, 4, 4)),
        ),
        lambda: pool.max_backward(  # the first place of the first window is on the padding
            np.ones((1, 1, 2, 2)),
            np.zeros((1, 1, 2, 2), int),
            (3, 3),
            (2, 2),
            (1, 1),
            None,
            np.ones((1, 1, 4, 4)),
        ),
        lambda: vector.partial_shuffles(np.array([[0, 3]]), np.arange(4), np.zeros((1, 2), int)),
        lambda: vector.partial_shuffles(np.array([[-1]]), np.arange(4), np.zeros((1, 1), int)),
        lambda: conv.forward(np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), np.ones(1), (1,), (0, 0)),
    ],
)
def test_kernels_refuse_numbers_that_lead_outside(call):
    for _ in range(2):  # an entry checks such numbers each time, however familiar the shapes are
        refuses(call)


# Objectives

DIGITS = zoo.digits((2, 3))
W = DIGITS.layout.initialise(SeedTree(0))
X = np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32)
Y = np.array([0, 3, 9, 1])


def objective(kind):
    gating = Gating("gumbel" if "gumbel" in kind else "hard")
    task = NetworkTask(DIGITS, X, Y, gating, compiled="layers" not in kind)
    (found,) = task.draw(np.random.default_rng(0), 1)
    return found


@pytest.mark.parametrize("kind", ["compiled", "compiled, gumbel", "layers", "layers, gumbel"])
def test_objectives_refuse_vectors_that_do_not_fit(kind):
    loss_at = objective(kind)
    memory = np.full(len(W) + 1, 7, np.float32)
    for wrong in (
        memory[:-2],
        memory,
        np.zeros(len(W)),
        strided(W),
        read_only(W),
        W[None].copy(),
        W.tolist(),
    ):
        refuses(lambda wrong=wrong: loss_at(W, wrong))
        refuses(lambda wrong=wrong: loss_at(wrong, np.empty_like(W)))
        refuses(lambda wrong=wrong: loss_at.hessian_vector(W, wrong))
    assert (memory == 7).all()
    assert np.isfinite(loss_at(W, memory[:-1]))
    assert memory[-1] == 7


def test_a_descent_starts_from_any_vector_of_the_right_kind():
    task = NetworkTask(DIGITS, X, Y)
    expected = task.descend(W, 0.1, 1.0, 2, np.random.default_rng(0))
    for form in AWKWARD.values():
        assert_same_bits(task.descend(form(W), 0.1, 1.0, 2, np.random.default_rng(0)).w, expected.w)
    for wrong in (W[:-1].copy(), W.astype(float), W.astype(int)):
        refuses(lambda wrong=wrong: task.descend(wrong, 0.1, 1.0, 2, np.random.default_rng(0)))


def test_samples_and_labels_may_lie_in_any_way():
    expected, gradient = NetworkObjective(DIGITS, X, Y)(W, np.empty_like(W)), np.empty_like(W)
    for form in AWKWARD.values():
        assert NetworkObjective(DIGITS, form(X), form(Y))(W, gradient) == expected
        assert_same_bits(predict(DIGITS, W, form(X)).logits, DIGITS.forward(W, X)[0])


@pytest.mark.parametrize("call", [predict, open_channels, lambda network, w, x: network.forward(w, x)])
def test_samples_of_another_kind_are_refused(call):
    for wrong in (X[:0], X[:, 0], X.astype(float), X.astype(np.float16), X.astype(int), X[..., None]):
        refuses(lambda wrong=wrong: call(DIGITS, W, wrong))
    refuses(lambda: call(DIGITS, W.tolist(), X))


def test_second_derivatives_check_their_samples_and_labels():
    plain = zoo.digits((2, 3), gates=(), activation="tanh")
    w, context = plain.layout.initialise(SeedTree(0)), Context(train=("theta",))
    expected = hessian_vector(plain, w, w, X, Y, context)
    assert_same_bits(hessian_vector(plain, w, w, np.asfortranarray(X), read_only(Y), context), expected)
    for labels in (Y + 1, Y - 1, Y[:-1], Y.astype(float)):
        refuses(lambda labels=labels: hessian_vector(plain, w, w, X, labels, context))


def test_gradients_of_another_precision_are_refused():
    logits, trace = DIGITS.forward(W, X, BOTH)
    refuses(lambda: DIGITS.backward(W, np.ones_like(logits), trace, np.empty(len(W))))
    refuses(lambda: DIGITS.backward(W, np.ones_like(logits[:, 1:]), trace, np.empty_like(W)))


def test_masks_of_whole_numbers_are_no_masks():
    refuses(lambda: executed_work(DIGITS, {"conv2.gate": np.ones((4, 3), int)}, 4, Context()))


# Predictions


def test_predictions_have_no_noise_to_give():
    for call in (predict, open_channels):
        with pytest.raises(InputError, match="'gumbel' decides with noise"):
            call(DIGITS, W, X, Gating("gumbel"))
    plain = zoo.digits((2, 3), gates=())
    theta = W[DIGITS.layout.theta].copy()
    assert_same_bits(predict(plain, theta, X, Gating("gumbel")).logits, plain.forward(theta, X)[0])


@pytest.mark.parametrize("samples", [4, 5, 9])
def test_a_batch_that_is_normalised_is_never_split(samples, monkeypatch):
    monkeypatch.setattr(predict_module, "LAYERS_BATCH", 4)
    network, rng = zoo.residual(), np.random.default_rng(0)
    w = network.layout.initialise(SeedTree(0), "float64")
    w[network.layout.phi] += 0.5 * rng.standard_normal(len(w[network.layout.phi]))
    x, y = rng.standard_normal((samples, 2, 8, 8)), np.arange(samples) % 10
    logits, trace = network.forward(w, x)
    masks = network.masks(trace)["conv2.gate"]
    found = predict(network, w, x)
    assert_same_bits(found.logits, logits)
    assert np.array_equal(found.opened[:, 0], masks.sum(axis=1))
    assert np.array_equal(open_channels(network, w, x)["conv2.gate"], masks)
    assert 0 < masks.sum() < masks.size
    judged = evaluate(network, w, x, y)
    assert judged.accuracy == (logits.argmax(axis=1) == y).mean()
    assert np.array_equal(judged.closed, 1 - masks.sum(axis=1) / masks.shape[1])
