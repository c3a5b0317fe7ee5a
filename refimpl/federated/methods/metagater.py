"""MetaGater: federated accelerated proximal meta-learning of backbone and gates.

With a penalty on phi this is the gated method; on a network without gates and the zero penalty it is
"MetaGater without gating". With one local step the proximal term's gradient is zero at the start, so
the ungated method is then accelerated federated SGD; lam matters from two steps on.

Source: mathematics.md §4 ([MG] Algorithm 1; [GL] Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import numpy as np

from refimpl.contracts import LocalSolution, LocalSolutions, Penalty, Schedule, State, Task
from refimpl.errors import ConfigError
from refimpl.federated.local import LocalSettings, solve_each, solve_local
from refimpl.federated.methods.keys import eta_key, lam_key, local_steps_key
from refimpl.federated.rounds import vectors_of
from refimpl.optim import accel
from refimpl.optim.prox import Rising
from refimpl.optim.prox.contract import check_alike
from refimpl.registry import METHODS, check_keys, key


@dataclass(frozen=True)
class MetaGater:
    """local_settings: how a node solves its problem; schedule: a_k, b_k, l_k; penalty: h over all of w."""

    local_settings: LocalSettings
    schedule: Schedule
    penalty: Penalty
    name = "metagater"

    def start(self, w0: np.ndarray) -> State:
        """x_0 = xag_0 = w0."""
        start = accel.State.start(w0)
        return {"x": start.x, "ag": start.ag}

    def broadcast(self, state: State, round_: int) -> np.ndarray:
        """md_k = (1 - a_k) xag_{k-1} + a_k x_{k-1}."""
        return accel.middle_point(_accel(state, round_), self.schedule, np.empty_like(state["x"]))

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """Inexact solution of the local problem at centre md_k."""
        return solve_local(task, point, self.local_settings, rng)

    def local_each(
        self, tasks: Sequence[Task], point: np.ndarray, rngs: Sequence[np.random.Generator]
    ) -> LocalSolutions:
        """`local` of each node."""
        return solve_each(tasks, point, self.local_settings, rngs)

    def server(self, state: State, round_: int, point: np.ndarray, mean: np.ndarray) -> tuple[State, float]:
        """g_k = lam (md_k - mean of answers); accelerated proximal step; gap ||G_b(md_k)||."""
        check_alike(self.name, point=point, mean=mean)
        gradient = point.dtype.type(self.local_settings.lam) * (point - mean)
        penalty = self.penalty.at(round_) if isinstance(self.penalty, Rising) else self.penalty
        new, gap = accel.step(_accel(state, round_), point, gradient, penalty, self.schedule)
        return {"x": new.x, "ag": new.ag}, gap

    def model(self, state: State) -> np.ndarray:
        """xag_K."""
        return _accel(state, 1).ag


@METHODS.register("metagater-ungated")
@dataclass(frozen=True)
class UngatedMetaGater(MetaGater):
    """MetaGater without gates, from the keys of a configuration."""

    local_settings: LocalSettings = field(init=False, repr=False)
    _: KW_ONLY
    lam: float = lam_key()
    eta: float = eta_key()
    local_steps: int = local_steps_key()

    def __post_init__(self) -> None:
        check_keys(self.name, self)
        object.__setattr__(self, "local_settings", LocalSettings(self.lam, self.eta, self.local_steps))

    @staticmethod
    def check(config: Any) -> None:
        """Raise `ConfigError` if lam is zero."""
        if config.lam == 0:
            raise ConfigError(
                "config: lam must be positive for metagater: the server's gradient is lam (md - mean)"
            )


@METHODS.register("metagater")
@dataclass(frozen=True)
class GatedMetaGater(UngatedMetaGater):
    """MetaGater with gates, from the keys of a configuration; network: the one with the gates."""

    eta_gate: float = key(0.0, "local learning rate of the gates (0: eta)", at_least=0.0)
    network: Any = None
    gated = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta_gate > 0:
            phi = self.network.layout.phi
            own = replace(self.local_settings, own_rate=(phi.start, phi.stop, self.eta_gate))
            object.__setattr__(self, "local_settings", own)


def _accel(state: State, round_: int) -> accel.State:
    """The solver's state before round `round_`."""
    return accel.State(round_ - 1, *vectors_of("metagater", state, "x", "ag"))
