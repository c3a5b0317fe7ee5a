"""A gated convolutional network in PyTorch, tuned by hand: no autograd, buffers updated in place.

The parameter vector is laid out for the memory format: with channels-last, convolution weights are stored
(O, kh, kw, I) and the last layer's columns follow (h, w, c), so that no step copies between layouts.
Pooling comes before ReLU (they commute, and ReLU then touches a quarter of the pixels).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from refimpl.nn.gate import Gated
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.network import Network

aten = torch.ops.aten


class Block(NamedTuple):
    """Convolution (padding 1), ReLU, 2x2 max-pooling, and perhaps a gate: names of their parameters."""

    conv: str
    gate: str | None


class Saved(NamedTuple):
    """What a block's backward pass needs."""

    x: torch.Tensor
    z: torch.Tensor
    where: torch.Tensor
    out: torch.Tensor  # before the mask
    mask: torch.Tensor | None
    gate: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None  # summary, hidden, margin


class ConvNet:
    """Blocks and a last linear layer, with the order of parameters for `channels_last` or NCHW."""

    def __init__(self, network: Network, channels_last: bool) -> None:
        self.network, self.channels_last = network, channels_last
        self.blocks = [self._block(layer) for layer in network.layers if isinstance(layer, (Conv2d, Gated))]
        (self.last,) = (layer.name for layer in network.layers if isinstance(layer, Linear))
        places = network.layout.views(np.arange(network.layout.size, dtype=np.float64))
        stored = [self._stored(name, part).ravel() for name, part in places.items()]
        self.order = torch.from_numpy(np.concatenate(stored).astype(np.int64))
        self.sizes = [part.size for part in places.values()]

    @staticmethod
    def _block(layer: Conv2d | Gated) -> Block:
        return (
            Block(layer.body[0].name, layer.gate.name)
            if isinstance(layer, Gated)
            else Block(layer.name, None)
        )

    def _stored(self, name: str, places: np.ndarray) -> np.ndarray:
        """Where the entries of a parameter come from, in the order in which they are stored."""
        if not self.channels_last:
            return places
        if places.ndim == 4:
            return places.transpose(0, 2, 3, 1)
        if name == f"{self.last}.weight":
            return places.reshape(len(places), *self._map_shape()).transpose(0, 2, 3, 1)
        return places

    def _map_shape(self) -> tuple[int, ...]:
        """Shape of the last feature map: what is flattened."""
        shape = self.network.input_shape
        for layer in self.network.layers:
            if len(layer.output_shape(shape)) == 1:
                return shape
            shape = layer.output_shape(shape)
        raise ValueError("no flattening layer")

    def parameters(self, w: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named views of a vector in this net's order."""
        named = {}
        for slot, part in zip(self.network.layout.slots, w.split(self.sizes), strict=True):
            if len(slot.shape) == 4 and self.channels_last:
                out, channels, height, width = slot.shape
                named[slot.name] = part.view(out, height, width, channels).permute(0, 3, 1, 2)
            else:
                named[slot.name] = part.view(slot.shape)
        return named

    def store_images(self, x: np.ndarray) -> torch.Tensor:
        """Images (..., C, H, W) in the order of the memory format."""
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -3, -1)) if self.channels_last else x)

    def images(self, stored: torch.Tensor) -> torch.Tensor:
        """A batch of stored images as (N, C, H, W)."""
        return stored.permute(0, 3, 1, 2) if self.channels_last else stored

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        """Feature maps as rows, without copying."""
        return x.permute(0, 2, 3, 1).flatten(1) if self.channels_last else x.flatten(1)

    def unflatten(self, rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The inverse of `flatten`."""
        if not self.channels_last:
            return rows.view(like.shape)
        n, channels, height, width = like.shape
        return rows.view(n, height, width, channels).permute(0, 3, 1, 2)

    def forward(self, p: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, list[Saved]]:
        """Logits and what the backward pass needs."""
        saved = []
        for block in self.blocks:
            z = torch.conv2d(x, p[f"{block.conv}.weight"], p[f"{block.conv}.bias"], padding=1)
            out, where = aten.max_pool2d_with_indices(z, [2, 2], [2, 2])
            out.relu_()
            mask, gate, masked = None, None, out
            if block.gate:
                mask, gate = decide(block.gate, p, x)
                masked = out * mask[:, :, None, None]
            saved.append(Saved(x, z, where, out, mask, gate))
            x = masked
        return torch.addmm(p[f"{self.last}.bias"], self.flatten(x), p[f"{self.last}.weight"].t()), saved

    def logits(self, p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Forward pass alone."""
        for block in self.blocks:
            z = torch.conv2d(x, p[f"{block.conv}.weight"], p[f"{block.conv}.bias"], padding=1)
            out = torch.max_pool2d(z, 2).relu_()
            x = out.mul_(decide(block.gate, p, x)[0][:, :, None, None]) if block.gate else out
        return torch.addmm(p[f"{self.last}.bias"], self.flatten(x), p[f"{self.last}.weight"].t())

    def gradients(
        self, p: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, train: tuple[str, ...]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and gradients of the trained parameters by name."""
        logits, saved = self.forward(p, x)
        loss, dlogits = cross_entropy(logits, y)
        last = saved[-1]
        top = last.out if last.mask is None else last.out * last.mask[:, :, None, None]
        g = {}
        if "theta" in train:
            g[f"{self.last}.weight"] = dlogits.t() @ self.flatten(top)
            g[f"{self.last}.bias"] = dlogits.sum(0)
        dy = self.unflatten(dlogits @ p[f"{self.last}.weight"], last.out)
        for number in reversed(range(len(self.blocks))):
            wanted = number > 0 and self._trained_below(number, train)
            dx = self._backward(self.blocks[number], saved[number], p, dy, train, wanted, g)
            if dx is None:
                break
            dy = dx
        return loss, g

    def _trained_below(self, number: int, train: tuple[str, ...]) -> bool:
        return "theta" in train or any(block.gate for block in self.blocks[:number])

    def _backward(self, block, saved, p, dy, train, wanted, g):
        """Gradients of one block into g; returns dx if wanted."""
        ds = None
        if block.gate:
            if "phi" in train:
                ds = gate_gradients(block.gate, p, saved, (dy * saved.out).sum((2, 3)), wanted, g)
            dy = dy * saved.mask[:, :, None, None]
        if not wanted and "theta" not in train:
            return None
        dz = aten.threshold_backward(dy, saved.out, 0)
        dz = aten.max_pool2d_with_indices_backward(
            dz, saved.z, [2, 2], [2, 2], [0, 0], [1, 1], False, saved.where
        )
        weight, ones = p[f"{block.conv}.weight"], [1, 1]
        which = [wanted, "theta" in train, "theta" in train]
        dx, dw, db = aten.convolution_backward(
            dz, saved.x, weight, [len(weight)], ones, ones, ones, False, [0, 0], 1, which
        )
        if "theta" in train:
            g[f"{block.conv}.weight"], g[f"{block.conv}.bias"] = dw, db
        if ds is not None and wanted:
            dx += (ds / (dx.shape[2] * dx.shape[3]))[:, :, None, None]
        return dx


def decide(name: str, p: dict[str, torch.Tensor], x: torch.Tensor):
    """0/1 mask as floats, and (summary, hidden, margin)."""
    summary = x.mean((2, 3))
    hidden = torch.addmm(p[f"{name}.fc1.bias"], summary, p[f"{name}.fc1.weight"].t()).relu_()
    logits = torch.addmm(p[f"{name}.fc2.bias"], hidden, p[f"{name}.fc2.weight"].t())
    margin = logits[:, 1::2] - logits[:, 0::2]
    return (margin > 0).to(x.dtype), (summary, hidden, margin)


def gate_gradients(name, p, saved, dmask, need_ds, g):
    """The gate's gradients into g from dL/dM; returns dL/ds if wanted."""
    summary, hidden, margin = saved.gate
    soft = torch.sigmoid(margin)
    dmargin = dmask * soft * (1 - soft)
    dlogits = torch.stack((-dmargin, dmargin), dim=2).flatten(1)
    g[f"{name}.fc2.weight"], g[f"{name}.fc2.bias"] = dlogits.t() @ hidden, dlogits.sum(0)
    dhidden = aten.threshold_backward(dlogits @ p[f"{name}.fc2.weight"], hidden, 0)
    g[f"{name}.fc1.weight"], g[f"{name}.fc1.bias"] = dhidden.t() @ summary, dhidden.sum(0)
    return dhidden @ p[f"{name}.fc1.weight"] if need_ds else None


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss and its gradient w.r.t. the logits."""
    logs = torch.log_softmax(logits, 1)
    column = y[:, None]
    loss = -logs.gather(1, column).mean()
    dlogits = logs.exp_()
    dlogits.scatter_add_(1, column, dlogits.new_full(column.shape, -1.0))
    return loss, dlogits.div_(len(y))
