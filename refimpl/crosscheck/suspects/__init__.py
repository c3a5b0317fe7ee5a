"""The usual mistakes (suspects) that may cause a departure; each is computed (`contract.py`)."""

from collections.abc import Iterator

from refimpl.crosscheck.golden.case import Case
from refimpl.crosscheck.suspects import fewshot, iterations, layers, server, team
from refimpl.crosscheck.suspects.contract import Suspect

_FINDERS = (
    layers.transposed_weight,
    layers.flipped_kernel,
    layers.relu_at_zero,
    layers.tie_of_gate,
    layers.tie_of_pool,
    layers.mask_and_relu,
    layers.mask_before_pool,
    layers.logit_order,
    layers.gate_input,
    layers.blind_summary,
    layers.unbiased_variance,
    iterations.summed_loss,
    iterations.lambda_factor,
    iterations.prox_weight,
    server.group_weight,
    server.wrong_server,
    team.wrong_teaching,
    fewshot.wrong_inner_loop,
    fewshot.wrong_order,
    fewshot.forgotten_mask,
    fewshot.wrong_statistics,
    fewshot.wrong_ticket,
)


def suspects(case: Case) -> Iterator[Suspect]:
    """All suspects that would change something in the case."""
    for find in _FINDERS:
        yield from find(case)
