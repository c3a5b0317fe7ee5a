"""The configuration keys that several methods have, declared once so that they mean the same in all.

Source: mathematics.md §3 and §10, which use these numbers.
"""

from __future__ import annotations

from typing import Any

from refimpl.registry import key


def eta_key(search: tuple[float, float] = (0.005, 0.5)) -> Any:
    """The key `eta`: the rate at which a node moves the model that it sends back."""
    return key(
        0.05, "local learning rate (the outer one, where alpha is the inner one)", above=0.0, search=search
    )


def local_steps_key() -> Any:
    """The key `local_steps`: how often a node moves that model in a round."""
    return key(5, "local gradient steps in a round", at_least=1)


def lam_key() -> Any:
    """The key `lam`: the weight of the term that keeps a node near the model that it was sent."""
    return key(1.0, "Moreau weight lambda of the local problem", at_least=0.0, search=(0.1, 10.0))


def alpha_key() -> Any:
    """The key `alpha`: the rate of steps that a node takes within a local step."""
    text = "inner learning rate (for pfedme that of its prox steps)"
    return key(0.05, text, at_least=0.0, search=(0.002, 0.2))


def inner_steps_key() -> Any:
    """The key `inner_steps`: how many steps a node takes within a local step."""
    return key(1, "inner gradient steps (for pfedme its prox steps)", at_least=1)
