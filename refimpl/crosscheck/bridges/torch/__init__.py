"""A second implementation of what this package computes, in PyTorch and its automatic differentiation.

It is written from mathematics.md and PyTorch's documentation. It reads the specifications of networks
(sizes, names, where a parameter lies in w) and none of the package's arithmetic, so that an error would
have to be made twice, in two ways, to go unseen.

PyTorch's own conventions agree with ours in what is easily got wrong: ReLU'(0) = 0, the first of equal
values wins a window of max-pooling, batch normalisation divides by the biased variance of the batch. Where
they differ, this is spelled out in other functions of PyTorch's: its softplus is linear above 20; the
derivative of its sigmoid is worked out as y (1 - y), which has no correct digits left where a gate is sure
to be on; and its batch normalisation in evaluation uses running statistics, where ours uses the batch's.
"""

from __future__ import annotations

from refimpl.errors import InputError

try:
    import torch  # noqa: F401  (asked for here, once, for all modules of this room)
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise InputError(
        'the PyTorch bridge needs PyTorch, which is not installed; try pip install "refimpl[torch]"'
    ) from None
