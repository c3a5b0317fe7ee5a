"""Any case of a golden file, computed by PyTorch: `run(case)`.

On the command line, `python -m refimpl.crosscheck.bridges.make_golden` writes golden files with it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from refimpl.crosscheck.bridges.torch import run_networks, run_ops
from refimpl.crosscheck.bridges.torch.rules import OURS, Rules
from refimpl.crosscheck.bridges.torch.weights import Tensors, array, tensor
from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.errors import InputError

WHOLE: dict[str, Callable[[Tensors, run_ops.Settings, Rules], Tensors]] = {
    "gated": run_networks.run_network,
    "network": run_networks.run_network,
    "prox": run_ops.run_prox,
    "local": run_networks.run_local,
    "algorithm": run_networks.run_algorithm,
    "adapt": run_networks.run_adapt,
    "baseline": run_networks.run_baseline,
}


def single_threaded() -> str:
    """PyTorch's name and version; from here on it uses one thread, so that sums have one order everywhere."""
    torch.set_num_threads(1)
    return f"PyTorch {torch.__version__}"


def run(case: Case, rules: Rules = OURS) -> Arrays:
    """The case's outputs by name, in its order of execution. `rules` other than ours make mistakes."""
    given = {name: tensor(value) for name, value in case.inputs.items()}
    if case.kind in run_ops.OPERATIONS:
        found = run_ops.run_operation(case.kind, given, case.settings, rules)
    elif case.kind in WHOLE:
        found = WHOLE[case.kind](given, case.settings, rules)
    else:
        raise InputError(f"PyTorch bridge: unknown kind of case {case.kind!r} ({case.name})")
    return {name: as_declared(found[name], case) for name in case.outputs}


def as_declared(value: Tensor, case: Case) -> np.ndarray:
    """The numbers in the case's dtype; masks stay booleans."""
    result = array(value)
    return result if result.dtype == np.bool_ else result.astype(case.dtype, copy=False)
