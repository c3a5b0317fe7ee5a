"""Depth in federated learning: a method trains one depth-adaptive network, each node at a depth of its own.

    team = depth_team(network)                       # the full depth and all lesser ones, in one w
    depths = depths_within(network, budgets)         # FLOPs of a sample that each node can spend
    tasks = depth_tasks(team, samples, depths, batch_size=20)
    run_rounds(FedAvg(...), tasks, method.start(team.layout.initialise(seeds)), ...)

A node's learning problem is the loss of its sub-network as a function of the whole w, L_i(w) = L(P_d w), on
which most entries have no effect. So methods need not know of depths: a node's answer leaves the entries
beyond its depth where the server put them. Methods that need Hessians (`maml`) are not for these tasks.

Source: mathematics.md §15.6. Derived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.cooperative.schemes import SINGLE
from refimpl.cooperative.team import Part, Team
from refimpl.errors import InputError
from refimpl.nn.context import Gating
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.task import CompiledObjective, NetworkTask
from refimpl.nn.work import dense_work
from refimpl.optim import prox


def depth_team(network: Network, own_norms: bool = True) -> Team:
    """One member with the full depth and all lesser ones."""
    depths = range(network.depth, 0, -1)
    return Team(network, tuple(Part(SINGLE, depth) for depth in depths), own_norms)


def depths_within(network: Network, budgets: Sequence[float]) -> list[int]:
    """For each budget, in dense FLOPs of a sample's forward pass, the greatest depth that costs no more.

    Raises `InputError` where not even depth 1 fits.
    """
    costs = {d: dense_work(network.at_depth(d), 1).total for d in range(1, network.depth + 1)}
    found = []
    for budget in budgets:
        fitting = [depth for depth, cost in costs.items() if cost <= budget]
        if not fitting:
            raise InputError(
                f"depths_within: expected a budget of at least {costs[1]} FLOPs, which depth 1 of "
                f"{network.name} needs, got {budget:g}"
            )
        found.append(max(fitting))
    return found


@dataclass(frozen=True)
class DepthTask:
    """A node's problem.

    own: the problem in the parameters of the sub-network that the node can afford; entries: where these lie
    in the team's w.
    """

    own: NetworkTask
    entries: np.ndarray

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.own.size

    def draw(self, rng: np.random.Generator, count: int) -> Iterator[DepthObjective]:
        """Objectives on `count` batches, as those of `NetworkTask`."""
        for objective in self.own.draw(rng, count):
            yield DepthObjective(objective, self.entries)


@dataclass(frozen=True)
class DepthObjective:
    """A sub-network's loss as a function of the team's w.

    objective: the loss as a function of the sub-network's own parameters; entries: where these lie in w.
    """

    objective: NetworkObjective | CompiledObjective
    entries: np.ndarray

    def __call__(self, w: np.ndarray, grad_out: np.ndarray) -> float:
        """Value at w; its gradient is zero outside the entries."""
        own = w[self.entries]
        gradient = np.empty_like(own)
        loss = self.objective(own, gradient)
        grad_out[:] = 0
        grad_out[self.entries] = gradient
        return loss

    def measure(self) -> tuple[float, float]:
        """Executed FLOPs of the last evaluation, and the share of gated channels off in it."""
        return self.objective.measure()


def depth_tasks(
    team: Team,
    samples: Sequence[tuple[np.ndarray, np.ndarray]],
    depths: Sequence[int],
    gating: Gating = Gating(),  # noqa: B008 - frozen
    batch_size: int = 0,
) -> list[DepthTask]:
    """A task for each node, from its samples (x, y) and its depth."""
    tasks = []
    for (x, y), depth in zip(samples, depths, strict=True):
        part = Part(team.parts[0].member, depth)
        if part not in team.parts:
            raise InputError(f"depth_tasks: the team has no sub-network of depth {depth}")
        own = NetworkTask(team.training(part), x, y, gating, batch_size=batch_size)
        tasks.append(DepthTask(own, team.entries(part)))
    return tasks


def gate_penalty(team: Team, rho: float) -> prox.Separable:
    """The group lasso on the gates of the team's first member, zero on all else: a penalty for MetaGater."""
    phi = team.layout.phi
    groups = prox.Groups(*team.network.gate_groups, size=phi.stop - phi.start)
    return prox.Separable(((phi, prox.GroupLasso(groups, rho)),))
