"""A second implementation of what this package computes, in PyTorch and its automatic differentiation.

It is written from mathematics.md and PyTorch's documentation. Layers, networks and the levels that have a
template are computed by that template (`crosscheck/template`), so what users are given is what is compared
here; other levels are computed by this room. It reads the specifications of networks (sizes, names, where a
parameter lies in w) but uses none of the package's arithmetic. So an error would have to be made twice, in
two ways, to remain unseen.

PyTorch's conventions agree with ours where mistakes are easy: ReLU'(0) = 0, the first of equal values wins a
window of max-pooling, and batch normalisation divides by the biased variance of the batch. They differ in
three functions, which are therefore composed of others: PyTorch's softplus is linear above 20; the derivative
of its sigmoid is computed as y (1 - y), which has no correct digits left where a gate is sure to be on; and
its batch normalisation uses running statistics in evaluation, where ours uses the batch's.
"""

from refimpl.errors import InputError

try:
    import torch  # noqa: F401  (asked for here, once, for all modules of this room)
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise InputError(
        'the PyTorch bridge needs PyTorch, which is not installed; try pip install "refimpl[torch]"'
    ) from None
