"""Numbers that settings are made of: what is no number, or no number for this, is refused in one line."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refimpl.errors import InputError, expect_numbers
from refimpl.federated.adapt import AdaptSettings
from refimpl.federated.local import LocalSettings
from refimpl.federated.methods.fedavg import FedAvg
from refimpl.federated.methods.fomaml import FOMAML
from refimpl.federated.methods.maml import MAML
from refimpl.federated.methods.perfedavg import PerFedAvgFO
from refimpl.federated.methods.perfedavg_hf import PerFedAvgHF
from refimpl.federated.methods.pfedme import PFedMe
from refimpl.federated.methods.reptile import Reptile
from refimpl.federated.pruning.snip import keep_top
from refimpl.federated.rounds import Participation
from refimpl.optim import accel, prox

NEVER = (math.nan, math.inf, -math.inf, -1, "1", None, True, np.ones((2, 2)), 1j)
GROUPS = prox.Groups.from_sizes([2, 3])
FROM_ZERO, ABOVE_ZERO, WHOLE_FROM_ZERO, WHOLE_ABOVE_ZERO = NEVER, (*NEVER, 0), (*NEVER, 0.5), (*NEVER, 0, 1.5)

# What is made, with good numbers: for each of them, those that are refused in its place.
SETTINGS = {
    "LocalSettings": (LocalSettings, {"lam": FROM_ZERO, "eta": ABOVE_ZERO, "steps": WHOLE_ABOVE_ZERO}),
    "AdaptSettings": (
        AdaptSettings,
        {"eta_phi": FROM_ZERO, "eta_theta": FROM_ZERO, "steps": WHOLE_FROM_ZERO, "lam": FROM_ZERO},
    ),
    "Participation": (Participation, {"per_round": WHOLE_FROM_ZERO}),
    "FedAvg": (FedAvg, {"eta": ABOVE_ZERO, "local_steps": WHOLE_ABOVE_ZERO}),
    "Reptile": (Reptile, {"eta": ABOVE_ZERO, "local_steps": WHOLE_ABOVE_ZERO, "mix": ABOVE_ZERO}),
    "MAML": (
        MAML,
        {
            "alpha": FROM_ZERO,
            "eta": ABOVE_ZERO,
            "local_steps": WHOLE_ABOVE_ZERO,
            "inner_steps": WHOLE_ABOVE_ZERO,
        },
    ),
    "FOMAML": (FOMAML, {"alpha": FROM_ZERO, "eta": ABOVE_ZERO, "local_steps": WHOLE_ABOVE_ZERO}),
    "PerFedAvgFO": (PerFedAvgFO, {"alpha": FROM_ZERO, "eta": ABOVE_ZERO, "local_steps": WHOLE_ABOVE_ZERO}),
    "PerFedAvgHF": (
        PerFedAvgHF,
        {"alpha": FROM_ZERO, "eta": ABOVE_ZERO, "local_steps": WHOLE_ABOVE_ZERO, "delta": FROM_ZERO},
    ),
    "PFedMe": (
        PFedMe,
        {
            "lam": ABOVE_ZERO,
            "alpha": ABOVE_ZERO,
            "inner_steps": WHOLE_ABOVE_ZERO,
            "eta": ABOVE_ZERO,
            "local_steps": WHOLE_ABOVE_ZERO,
            "mix": ABOVE_ZERO,
        },
    ),
    "GhadimiLan": (accel.GhadimiLan, {"beta": ABOVE_ZERO}),
    "Bounded": (accel.Bounded, {"beta": ABOVE_ZERO, "fraction": (*FROM_ZERO, 1.5)}),
    "Nesterov": (accel.Nesterov, {"beta": ABOVE_ZERO}),
    "ProximalGradient": (accel.ProximalGradient, {"beta": ABOVE_ZERO}),
    "SquaredL2": (prox.SquaredL2, {"rho": FROM_ZERO}),
    "ElasticNet": (prox.ElasticNet, {"rho": FROM_ZERO, "ridge": FROM_ZERO}),
    "L1": (prox.L1, {"rho": FROM_ZERO}),
    "NonNegativeL1": (prox.NonNegativeL1, {"rho": FROM_ZERO}),
    "L2Ball": (prox.L2Ball, {"radius": ABOVE_ZERO}),
    "L1Ball": (prox.L1Ball, {"radius": ABOVE_ZERO}),
    "Simplex": (prox.Simplex, {"total": ABOVE_ZERO}),
    "LinfNorm": (prox.LinfNorm, {"rho": FROM_ZERO}),
    "LinfBall": (prox.LinfBall, {"radius": ABOVE_ZERO}),
    "GroupLasso": (lambda rho: prox.GroupLasso(GROUPS, rho), {"rho": FROM_ZERO}),
    "SparseGroupLasso": (
        lambda rho, rho_l1: prox.SparseGroupLasso(GROUPS, rho, rho_l1),
        {"rho": FROM_ZERO, "rho_l1": FROM_ZERO},
    ),
    "BoundedGroupLasso": (
        lambda rho, radius: prox.BoundedGroupLasso(GROUPS, rho, radius),
        {"rho": FROM_ZERO, "radius": ABOVE_ZERO},
    ),
    "Groups": (lambda size: prox.Groups([0, 1], [0], size), {"size": WHOLE_ABOVE_ZERO}),
    "prox": (lambda step: prox.L1().prox(np.ones(2), step, np.ones(2)), {"step": FROM_ZERO}),
    "conjugate_prox": (
        lambda step: prox.L1().conjugate_prox(np.ones(2), step, np.ones(2)),
        {"step": FROM_ZERO},
    ),
    "keep_top": (lambda keep: keep_top(np.ones(4), keep), {"keep": (*ABOVE_ZERO, 1.5)}),
}
CHOICES = [
    pytest.param(make, list(refused), name, value, id=f"{who}-{name}-{value!r}".split("\n")[0])
    for who, (make, refused) in SETTINGS.items()
    for name, values in refused.items()
    for value in values
]


@pytest.mark.parametrize(("make", "names", "name", "value"), CHOICES)
def test_no_other_numbers_are_taken(make, names, name, value):
    make(**dict.fromkeys(names, 1))
    with pytest.raises(InputError) as caught:
        make(**{**dict.fromkeys(names, 1), name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [1, 0.5, np.float32(0.5), np.float64(2), np.int64(3), np.uint8(1)])
def test_numbers_of_any_kind_are_taken(number):
    expect_numbers("who", positive=True, number=number)
    expect_numbers("who", zero=0, also=0.0)
