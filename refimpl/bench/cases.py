"""What is timed: layer shapes, passes, batch sizes and shares of channels that are off, with their data."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refimpl.shares import nearest

RESULTS = {"forward": ("y",), "input_grad": ("dx",), "weight_grad": ("dw", "db")}  # of each pass
PASSES = tuple(RESULTS)
OFF_SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)


class Geometry(NamedTuple):
    """A layer whose samples are images of size x size pixels.

    `filters` output channels are computed from `channels` input channels, with windows of `kernel` x `kernel`
    taps. `pad` zeros are put on each side of an image; `stride` is the step from window to window, and
    `dilation` the step from tap to tap. Each of the `groups` groups of output channels reads its own share of
    the input channels. A fully connected layer is the case kernel = size = 1, pad = 0.
    """

    channels: int
    filters: int
    size: int
    kernel: int = 3
    pad: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    @property
    def result_size(self) -> int:
        """Height and width of the output."""
        return (self.size + 2 * self.pad - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    @property
    def linear(self) -> bool:
        """Whether this is a fully connected layer."""
        return self.size == self.kernel == 1 and self.pad == 0

    @property
    def plain(self) -> bool:
        """Whether it has no stride, dilation or groups."""
        return self.stride == self.dilation == self.groups == 1

    @property
    def label(self) -> str:
        """The name in tables: `64->128@8x8`, `784->100`, `64->128@8x8 k5 pad 0 stride 2`."""
        where = "" if self.linear else f"@{self.size}x{self.size}"
        kernel = "" if self.linear or self.kernel == 3 else f" k{self.kernel}"
        usual = {"pad": self.dilation * (self.kernel - 1) // 2, "stride": 1, "dilation": 1, "groups": 1}
        more = {name: getattr(self, name) for name in usual}
        rest = "".join(f" {name} {number}" for name, number in more.items() if number != usual[name])
        return f"{self.channels}->{self.filters}{where}{kernel}{rest}"

    @property
    def flops_per_filter(self) -> int:
        """FLOPs of one output channel of one sample, without bias. Source: mathematics.md §9."""
        return 2 * self.channels // self.groups * self.kernel**2 * self.result_size**2


def linear(features: int, outputs: int) -> Geometry:
    """A fully connected layer."""
    return Geometry(features, outputs, 1, 1, 0)


GRID = (Geometry(32, 64, 16), Geometry(64, 64, 16), Geometry(64, 128, 8), Geometry(128, 128, 8))
FIRST_LAYER = Geometry(3, 32, 32)
LINEARS = (linear(784, 100), linear(2048, 10))


@dataclass(frozen=True)
class Case:
    """One pass of one layer; `off`: share of output channels closed, different ones in each sample."""

    geometry: Geometry
    pass_: str
    batch: int
    off: float = 0.0
    dtype: str = "float32"

    @property
    def open_filters(self) -> int:
        """The number of open output channels, the same in every sample."""
        return self.geometry.filters - nearest(self.off, self.geometry.filters)

    @property
    def flops(self) -> int:
        """Executed FLOPs when off channels are skipped. Source: mathematics.md §9."""
        return self.batch * self.open_filters * self.geometry.flops_per_filter

    @property
    def dense_flops(self) -> int:
        """FLOPs when nothing is skipped."""
        return self.batch * self.geometry.filters * self.geometry.flops_per_filter

    @property
    def terms(self) -> int:
        """Number of terms of the longest sum that makes up one result."""
        g = self.geometry
        return {
            "forward": g.channels // g.groups * g.kernel**2,
            "input_grad": g.filters // g.groups * g.kernel**2,
            "weight_grad": self.batch * g.result_size**2,
        }[self.pass_]

    @property
    def label(self) -> str:
        """The name in progress lines and tables."""
        return f"{self.pass_} {self.geometry.label} batch {self.batch} off {self.off:.0%} {self.dtype}"


class LayerData(NamedTuple):
    """x (N,C,H,W), weight (K,C,k,k), bias (K,), dy (N,K,P,Q), mask bool (N,K) or None for all on."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    dy: np.ndarray
    mask: np.ndarray | None


def layer_data(case: Case) -> LayerData:
    """Standard normal data from a fixed seed; each sample opens its own random `open_filters` channels."""
    g, rng = case.geometry, np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32).astype(case.dtype)

    x = normal(case.batch, g.channels, g.size, g.size)
    weight, bias = normal(g.filters, g.channels // g.groups, g.kernel, g.kernel), normal(g.filters)
    dy = normal(case.batch, g.filters, g.result_size, g.result_size)
    if case.off == 0:
        return LayerData(x, weight, bias, dy, None)
    order = rng.permuted(np.tile(np.arange(g.filters), (case.batch, 1)), axis=1)
    return LayerData(x, weight, bias, dy, order < case.open_filters)


def grid(
    geometries: Iterable[Geometry], batches: Iterable[int], shares: Iterable[float], dtype: str = "float32"
) -> list[Case]:
    """All passes of all geometries, except the input gradient of the first layer, which needs none."""
    return [
        Case(geometry, pass_, batch, off, dtype)
        for geometry in geometries
        for batch in batches
        for pass_ in PASSES
        if not (pass_ == "input_grad" and geometry == FIRST_LAYER)
        for off in shares
    ]
