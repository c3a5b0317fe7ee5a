"""Networks of the zoo in JAX: arrays by name, in the layout XLA's CPU convolutions are fastest in (NHWC).

The mask is multiplied on; its gradient is straight-through, as in the package's `hard` mode.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from refimpl.nn.gate import Gated
from refimpl.nn.layers import Conv2d, Layer, Linear
from refimpl.nn.network import Network
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import Flatten, MaxPool2d

Params = dict[str, jax.Array]


def map_shape(network: Network) -> tuple[int, ...]:
    """(C, H, W) of the feature map that is flattened, or () where there is none."""
    shape = network.input_shape
    for layer in network.layers:
        if len(layer.output_shape(shape)) == 1:
            return shape if len(shape) == 3 else ()
        shape = layer.output_shape(shape)
    return ()


def to_jax(network: Network, w: np.ndarray) -> Params:
    """The vector as arrays: convolution weights (kh, kw, I, O), columns of `fc` in order (h, w, c)."""
    maps, out = map_shape(network), {}
    for name, view in network.layout.views(w).items():
        if view.ndim == 4:
            view = view.transpose(2, 3, 1, 0)
        elif maps and name == "fc.weight":
            view = view.reshape(len(view), *maps).transpose(0, 2, 3, 1).reshape(len(view), -1)
        out[name] = jnp.asarray(np.ascontiguousarray(view))
    return out


def from_jax(network: Network, params: Params) -> np.ndarray:
    """The inverse of `to_jax`."""
    maps, arrays = map_shape(network), {}
    for name, array in params.items():
        view = np.asarray(array)
        if view.ndim == 4:
            view = view.transpose(3, 2, 0, 1)
        elif maps and name == "fc.weight":
            channels, height, width = maps
            shaped = view.reshape(len(view), height, width, channels)
            view = shaped.transpose(0, 3, 1, 2).reshape(len(view), -1)
        arrays[name] = view
    return network.layout.from_arrays(arrays)


def to_images(x: np.ndarray) -> jax.Array:
    """Images (..., C, H, W) as (..., H, W, C); vectors as they are."""
    return jnp.asarray(np.ascontiguousarray(np.moveaxis(x, -3, -1)) if x.ndim >= 4 else x)


def pool(x: jax.Array) -> jax.Array:
    """2x2 max-pooling as maxima of strided slices: its gradient is much faster than select-and-scatter."""
    rows = jnp.maximum(x[:, 0::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


def run_layers(layers: tuple[Layer, ...], p: Params, x: jax.Array, gates_learn: bool) -> jax.Array:
    """Forward pass."""
    for layer in ordered(layers):
        if isinstance(layer, Conv2d):
            pads = [(pad, pad) for pad in layer.pad]
            x = lax.conv_general_dilated(
                x, p[f"{layer.name}.weight"], layer.step, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = x + p[f"{layer.name}.bias"]
        elif isinstance(layer, Linear):
            x = x @ p[f"{layer.name}.weight"].T + p[f"{layer.name}.bias"]
        elif isinstance(layer, ReLU):
            x = jax.nn.relu(x)
        elif isinstance(layer, MaxPool2d):
            x = pool(x)
        elif isinstance(layer, Flatten):
            x = x.reshape(len(x), -1)
        elif isinstance(layer, Gated):
            mask = gate(layer.gate.name, p, x, gates_learn)
            x = run_layers(layer.body, p, x, gates_learn) * mask[:, None, None, :]
        else:
            raise TypeError(type(layer).__name__)
    return x


def ordered(layers: tuple[Layer, ...]) -> list[Layer]:
    """The layers with ReLU behind max-pooling (they commute): ReLU then touches a quarter of the pixels."""
    out = list(layers)
    for i in range(len(out) - 1):
        if isinstance(out[i], ReLU) and isinstance(out[i + 1], MaxPool2d):
            out[i], out[i + 1] = out[i + 1], out[i]
    return out


def gate(name: str, p: Params, x: jax.Array, learns: bool) -> jax.Array:
    """0/1 mask (N, C) with the gradient of the softmax over the two logits, or a constant."""
    summary = x.mean((1, 2))
    hidden = jax.nn.relu(summary @ p[f"{name}.fc1.weight"].T + p[f"{name}.fc1.bias"])
    logits = hidden @ p[f"{name}.fc2.weight"].T + p[f"{name}.fc2.bias"]
    margin = logits[:, 1::2] - logits[:, 0::2]
    hard, soft = (margin > 0).astype(x.dtype), jax.nn.sigmoid(margin)
    return hard + (soft - lax.stop_gradient(soft)) if learns else lax.stop_gradient(hard)


def split_parts(network: Network, params: Params, train: tuple[str, ...]) -> tuple[Params, Params]:
    """(trained, fixed)."""
    parts = {slot.name: slot.parameter.part in train for slot in network.layout.slots}
    trained = {name: array for name, array in params.items() if parts[name]}
    return trained, {name: array for name, array in params.items() if not parts[name]}


def loss_and_gradient(network: Network, params: Params, x: jax.Array, y: jax.Array, train: tuple[str, ...]):
    """Mean cross-entropy and its gradient w.r.t. the trained parameters."""
    trained, fixed = split_parts(network, params, train)

    def loss(trained: Params) -> jax.Array:
        logs = jax.nn.log_softmax(run_layers(network.layers, {**trained, **fixed}, x, "phi" in train))
        return -jnp.take_along_axis(logs, y[:, None], 1).mean()

    return jax.value_and_grad(loss)(trained)
