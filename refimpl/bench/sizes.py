"""How much is measured by the smoke test and by `refimpl bench`."""

from __future__ import annotations

from refimpl.bench.cases import FIRST_LAYER, GRID, LINEARS, OFF_SHARES, Case, Geometry, grid, linear
from refimpl.bench.programs import MLP_ROUND, Adaptation, Inference, Model, Program, Round, cnn3_round
from refimpl.bench.session import Plan
from refimpl.bench.timing import SMOKE, Effort

GATED = (0.0, 0.5, 0.75)


def smallest_cases() -> list[Case]:
    """One tiny convolution and one tiny linear layer, dense and half closed."""
    return grid((Geometry(3, 8, 8), linear(12, 8)), (2,), (0.0, 0.5))


def usual_cases() -> list[Case]:
    """The layers of the paper's networks at batch 32."""
    return grid((FIRST_LAYER, *GRID, *LINEARS), (32,), OFF_SHARES)


def gated(off: float) -> Model:
    """The paper's CIFAR network with a share of conv 3's channels off."""
    return Model("cnn3", ("conv3",), off)


def smallest_programs() -> list[Program]:
    """One program of each kind, as small as possible."""
    model = Model("digits", ("conv2",), 0.5)
    return [
        Round(model, nodes=2, steps=2, batch=3, samples=5),
        Adaptation(model, support=4),
        Inference(model, 2),
    ]


def rounds(steps: int) -> list[Program]:
    """Rounds of the CIFAR network: without gates, with gates that learn, with gates that are fixed."""
    learning = [cnn3_round(steps, off) for off in GATED]
    return [cnn3_round(steps, None), *learning, *(cnn3_round(steps, off, ("theta",)) for off in GATED)]


def usual_programs() -> list[Program]:
    """One round of each network, an adaptation, inference of one batch."""
    models = [Model("cnn3"), *(gated(off) for off in GATED)]
    return [
        MLP_ROUND,
        *rounds(1),
        *(Adaptation(gated(off)) for off in GATED),
        *(Inference(m, 32) for m in models),
    ]


def installed_plan(smallest: bool, only: str | None, threads: int, clock: str) -> Plan:
    """What `refimpl bench` measures; `only`: "kernels" or "end-to-end". Layers are timed on one thread."""
    cases = smallest_cases() if smallest else usual_cases()
    programs = smallest_programs() if smallest else usual_programs()
    effort = SMOKE if smallest else Effort(rounds=5, seconds=0.4, clock=clock)
    return Plan(
        cases if only != "end-to-end" and threads == 1 else [],
        programs if only != "kernels" else [],
        effort,
        threads,
        peak_sizes=(64,) if smallest else (512, 1024),
    )
