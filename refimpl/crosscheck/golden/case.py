"""A case: one computation to compare, with all its inputs and the names of its outputs.

Nothing of this package is needed to compute a case. Its inputs are plain arrays (parameters under their
PyTorch names, data, masks or gate noise, the batches of every step), and its settings are plain JSON (shapes,
modes, rates). The modules of `levels/` say for each kind of case which names there are and what they mean.

Names of inputs

    param.<name>     a parameter by its PyTorch name, `param.conv3.weight`; Linear (out, in), Conv2d OIHW
    noise.<gate>     g_on - g_off for mode `gumbel` (mathematics.md §2.3), (..., N, K); added to d
    x, labels, dy    samples, labels (int64), cotangent: the gradient of the loss in the output

A *vector* w (iterates, gradients, md, xag, x, g) is the concatenation of all raveled parameters in the
order of `settings["parameters"]`, a list of [name, shape]: backbone first, gates last.

Source: mathematics.md §1-§6, §10. Derived.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refimpl.errors import one_of

LEVELS = ("ops", "networks", "prox", "local", "algorithm", "adapt", "baselines", "cooperative", "fewshot")
PARAM, NOISE = "param.", "noise."
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Case:
    """One computation, which belongs to a level.

    name: unique in a file, `<level>/<title>`; kind: what is computed (`conv2d`, `network`, `prox`, ...);
    dtype: `float32` or `float64`, that of all floating-point inputs and outputs; inputs: arrays by name;
    settings: JSON-able; outputs: names of what must come out, in the order of execution.
    """

    name: str
    kind: str
    dtype: str
    inputs: Arrays
    settings: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of("Case", "level", self.level, LEVELS)
        one_of("Case", "dtype", self.dtype, ("float32", "float64"))

    @property
    def level(self) -> str:
        """The level: the part of the name before the slash."""
        return self.name.split("/")[0]

    def named(self, prefix: str) -> Arrays:
        """The inputs whose names start with `prefix`, under the rest of their names."""
        return {key[len(prefix) :]: value for key, value in self.inputs.items() if key.startswith(prefix)}

    def params(self) -> Arrays:
        """The parameters by PyTorch name."""
        return self.named(PARAM)

    def places(self) -> dict[str, range]:
        """Where every parameter lies in a vector of all of them; nothing if the case has no such vector."""
        found, start = {}, 0
        for name, shape in self.settings.get("parameters", ()):
            found[name] = range(start, start + math.prod(shape))
            start = found[name].stop
        return found
