"""How gates decide and what is trained: the settings of one evaluation of a network.

Source: mathematics.md §2.3 (modes; reconstructed from [MG] appendix F) and §2.3b (what may be skipped
when; derived).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np

from refimpl.errors import InputError, one_of
from refimpl.kernels.shaping import LEAST, MOST, Shaping
from refimpl.nn.layout import PARTS
from refimpl.nn.weightmask import WeightMask
from refimpl.rng import SeedTree
from refimpl.shares import nearest

MODES = ("hard", "gumbel", "ste", "soft")
GATE_GRADS = ("dense", "active")
DECISIVE = 1e6  # noise that decides whatever d is, unless that is NaN


@dataclass(frozen=True)
class Gating:
    """How the channel gates of a network decide and how gradients reach them.

    mode: `hard`, `gumbel`, `ste` or `soft` (§2.3); tau: temperature; gate_grad: `dense` computes the
    would-be output of off channels while gates are trained, `active` skips them in every pass (§2.3b);
    detach_gate_input: do not pass the gate's gradient on to the layer's input; shaping: what the loss has
    besides while gates are trained (§2.3c), none unless its weight is positive.
    """

    mode: str = "hard"
    tau: float = 1.0
    gate_grad: str = "dense"
    detach_gate_input: bool = False
    shaping: Shaping = Shaping()

    def __post_init__(self) -> None:
        one_of("Gating", "mode", self.mode, MODES)
        one_of("Gating", "gate_grad", self.gate_grad, GATE_GRADS)
        if not self.tau > 0:
            raise InputError(f"Gating: tau must be positive, got {self.tau}")
        object.__setattr__(self, "tau", float(self.tau))  # one type for compiled code
        object.__setattr__(self, "shaping", _checked(Shaping(*map(float, self.shaping))))


def _checked(shaping: Shaping) -> Shaping:
    """The shaping itself; raises `InputError` for a weight below zero, or a distribution out of range."""
    weight, a, b = shaping
    if not (0 <= weight < math.inf and LEAST <= a <= MOST and LEAST <= b <= MOST):
        raise InputError(
            f"Gating: expected shaping with a weight of at least 0 and a and b from {LEAST} to {MOST}, got "
            f"{weight}, {a} and {b}"
        )
    return shaping


@dataclass(frozen=True)
class FixedShare(Gating):
    """Gates that close a given share of their channels, others in each sample, whatever they look at.

    off: share of each gate's channels that is closed; seed: of the choice; mode, tau, gate_grad,
    detach_gate_input and shaping are as in `Gating`, and need not be given. Row i of a mask is that of the
    i-th sample of a batch. It is a `Gating` wherever one is taken: the readable and the compiled code decide
    by the same masks. No gradient reaches the gates. Source: mathematics.md §2.3 (derived: mode `gumbel` with
    noise so large that it decides alone).
    """

    mode: str = "gumbel"
    off: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode != "gumbel" or not 0 <= self.off <= 1:
            raise InputError(f"FixedShare: expected a share 0 <= off <= 1 alone, got {self.mode}, {self.off}")

    def noise(self, gate: str, samples: int, channels: int) -> np.ndarray:
        """The noise (samples, channels) of a gate, float64, which is positive where a channel is open."""
        return _fixed_noise(self.off, self.seed, gate, samples, channels)


@lru_cache(maxsize=256)
def _fixed_noise(off: float, seed: int, gate: str, samples: int, channels: int) -> np.ndarray:
    rng = SeedTree(seed).generator("fixed share", crc32(gate.encode()))
    order = rng.permuted(np.tile(np.arange(channels), (samples, 1)), axis=1)
    noise = np.where(order < channels - nearest(off, channels), DECISIVE, -DECISIVE)
    noise.flags.writeable = False
    return noise


class Routing(NamedTuple):
    """What decides, besides the network, which channels and gradients are computed.

    train: the parts that are trained; smooth: masks are not 0/1, so nothing is skipped; dense: closed
    channels are computed for gates that learn; detach: gates pass no gradient on to their input; gated: False
    stands for the network without its gates.
    """

    train: tuple[str, ...] = ()
    smooth: bool = False
    dense: bool = True
    detach: bool = False
    gated: bool = True

    @property
    def gates_learn(self) -> bool:
        """Whether gates want a gradient: phi is trained, or masks depend smoothly on theta."""
        return "phi" in self.train or self.smooth

    @property
    def closed_channels_matter(self) -> bool:
        """Whether closed channels are computed all the same, because their gates learn from them."""
        return self.gates_learn and self.dense


class Anchor(NamedTuple):
    """Replaces a mask by `offset + gain * r(d)`, r the mode's relaxation.

    This is the surrogate whose exact derivative the mode's backward pass returns: with offset chosen so
    that the value at the current d is the 0/1 mask, finite differences can check the surrogate gradient.
    Both arrays are float (N, C).
    """

    offset: np.ndarray
    gain: np.ndarray


@dataclass(frozen=True)
class Context:
    """One evaluation's settings: gating, the trained parts, and per-gate inputs by gate name.

    train: subset of ("theta", "phi"); noise: g_on - g_off arrays (N, C) for `gumbel`;
    anchors: see `Anchor` (gradient checks only); weights: which entries of w are kept (all, if None).
    """

    gating: Gating = Gating()
    train: tuple[str, ...] = ()
    noise: Mapping[str, np.ndarray] = field(default_factory=dict)
    anchors: Mapping[str, Anchor] = field(default_factory=dict)
    weights: WeightMask | None = None

    def __post_init__(self) -> None:
        for part in self.train:
            one_of("Context", "part to train", part, PARTS)
        object.__setattr__(self, "train", tuple(self.train))

    @property
    def routing(self) -> Routing:
        """What plans depend on."""
        smooth = self.gating.mode == "soft" or bool(self.anchors)
        return Routing(self.train, smooth, self.gating.gate_grad == "dense", self.gating.detach_gate_input)

    @property
    def shapes_gates(self) -> bool:
        """Whether batch-shaping is a part of the loss: it has a weight, and phi is trained."""
        return self.gating.shaping.weight > 0 and "phi" in self.train

    def pruned(self, w: np.ndarray) -> np.ndarray:
        """w as the network is evaluated at it: zero where it is pruned."""
        return w if self.weights is None else self.weights.of(w)
