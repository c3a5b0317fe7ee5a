"""Early search for a ticket against PyTorch: training with Adam, first-layer masks, overlaps, the stop."""

import numpy as np
import pytest

from refimpl.fewshot.config import resolve
from refimpl.fewshot.experiment import prepare
from refimpl.fewshot.tickets.finders import Search, find
from refimpl.fewshot.tickets.masks import prunable
from refimpl.fewshot.tickets.ticket import facts_of, settings_from

PRUNED, LENGTH, ROUNDS = 0.8, 2, 12


@pytest.mark.torch
@pytest.mark.parametrize("method", ["maml", "fomaml"])
def test_pmts_decisions_are_those_of_a_pytorch_training(method, tmp_path):
    torch = pytest.importorskip("torch")
    config = resolve(
        None,
        "digits-2way-1shot",
        method=method,
        dtype="float64",
        rounds=ROUNDS,
        tasks=2,
        widths=[8, 4],
        eta=0.05,
        validate_every=0,
    )
    run = prepare(config)
    looks = pytorch_looks(torch, run, exact=method == "maml")
    overlaps = [sum(a & b) / sum(a) for a, b in zip(looks[1:], looks[:-1], strict=True)]
    minima = [min(overlaps[at : at + LENGTH]) for at in range(len(overlaps) - LENGTH + 1)]
    delta = sorted(set(minima))[-1]  # the search stops where the queue's minimum is first so large
    assert delta > minima[0]  # so it does not stop at once
    table = {
        **config.table(),
        "finder": "pmt",
        "pruned": PRUNED,
        "gamma": 1,
        "length": LENGTH,
        "delta": delta,
    }
    ticket = find(Search(run, settings_from(table, "test"), tmp_path, threads=1))
    stop = minima.index(delta)
    assert facts_of(tmp_path)["stopped"] == stop + LENGTH + 1
    np.testing.assert_allclose(facts_of(tmp_path)["queue"], overlaps[stop : stop + LENGTH], rtol=1e-12)
    first = ticket.mask.layers[prunable(run.network.layout)[0].name].ravel()
    assert (first == looks[stop + LENGTH]).all()


def pytorch_looks(torch, run, exact):
    """Booleans: which weights of the first layer are kept after each iteration of a training by PyTorch."""
    from torch.nn import functional

    layout, config = run.network.layout, run.config
    w = run.start()["w"]
    parameters = {
        slot.name: torch.tensor(w[slot.start : slot.stop].reshape(slot.shape), requires_grad=True)
        for slot in layout.slots
    }

    def loss(p, part):
        x, y = torch.tensor(part.x), torch.tensor(part.y)
        for block in range(1, len(config.widths) + 1):
            weight, bias = p[f"conv{block}.weight"], p[f"conv{block}.bias"]
            x = functional.conv2d(x, weight, bias, padding=1)
            x = functional.max_pool2d(functional.relu(x), 2)
        return functional.cross_entropy(functional.linear(x.flatten(1), p["fc.weight"], p["fc.bias"]), y)

    optimiser, looks = torch.optim.Adam(parameters.values(), lr=config.eta), []
    for number in range(1, config.rounds + 1):
        optimiser.zero_grad()
        for task in run.tasks(number):
            moved = parameters
            for _ in range(config.inner_steps):
                slopes = torch.autograd.grad(
                    loss(moved, task.node.support), list(moved.values()), create_graph=exact
                )
                moved = {
                    name: value - config.alpha * (slope if exact else slope.detach())
                    for (name, value), slope in zip(moved.items(), slopes, strict=True)
                }
            (loss(moved, task.node.query) / config.tasks).backward()
        optimiser.step()
        size = parameters["conv1.weight"].detach().abs().ravel()
        kept = torch.zeros(size.numel(), dtype=torch.bool)
        kept[torch.topk(size, first_count(layout)).indices] = True
        looks.append(kept.numpy())
    return looks


def first_count(layout):
    """Smart ratios of two layers: shares in proportion 6 : 2 of weights, by hand."""
    one, two = (slot.stop - slot.start for slot in prunable(layout))
    kept = round((1 - PRUNED) * (one + two))
    return min(one, round(kept * 6 * one / (6 * one + 2 * two)))
