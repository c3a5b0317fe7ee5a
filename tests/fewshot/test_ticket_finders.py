"""How tickets are found: the queue on scripted overlaps, counts, rewinding by bytes, training, resumption."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from refimpl.errors import ConfigError, RunError
from refimpl.experiments.experiment import train
from refimpl.fewshot.config import resolve
from refimpl.fewshot.experiment import prepare
from refimpl.fewshot.tasks import losses
from refimpl.fewshot.tickets.finders import PMT, Search, find
from refimpl.fewshot.tickets.masks import load_mask, prunable
from refimpl.fewshot.tickets.ticket import begin, facts_of, load_ticket, settings_from, settings_of
from refimpl.nn.work import dense_work
from refimpl.registry import FINDERS

CONFIG = resolve(None, "digits-2way-1shot", rounds=6, tasks=2, widths=[3, 4], validate_every=0)
RUN = prepare(CONFIG)  # prunable: 27 and 108 weights
LAYOUT = RUN.network.layout
THETA = LAYOUT.initialise(RUN.seeds)


def search(folder, finder, **keys):
    table = {**CONFIG.table(), "finder": finder, "pruned": 0.8, **keys}
    return Search(RUN, settings_from(table, "test"), folder, threads=1)


def kept(mask):
    return [row.ravel() for row in mask.layers.values()]


def weights(w):
    return [w[slot.start : slot.stop] for slot in prunable(LAYOUT)]


def trained(rounds):
    return train(replace(RUN, config=replace(CONFIG, rounds=rounds)), threads=1).w


@pytest.mark.parametrize(
    ("rule", "delta", "stops"),
    [("min", 0.9, 5), ("min", 0.8, 4), ("max", 0.9, 4), ("max", 0.7, 3), ("max", 1.0, None)],
)
def test_the_queue_on_a_scripted_sequence(rule, delta, stops):
    """Full after look 3; then the minima are 0.6, 0.8, 0.9, 0.5 and the maxima 0.9, 1.0, 1.0, 1.0."""
    finder, queue = PMT(length=3, delta=delta, rule=rule), np.full(3, np.nan)
    mask, nothing, found = np.arange(20) < 10, np.zeros(20, dtype=bool), []
    queue = finder.push(queue, nothing, mask)
    for look, overlap in enumerate([0.6, 0.8, 0.9, 1.0, 0.9, 0.5], start=1):
        queue = finder.push(queue, mask, np.roll(mask, round(10 * (1 - overlap))))
        found += [look] if finder.stable(queue) else []
    assert (found or [None])[0] == stops


def test_pmt_stops_early_and_keeps_the_first_layer_of_that_iteration(tmp_path):
    one = search(tmp_path, "pmt", gamma=1, length=2, delta=0.0)
    ticket = find(one)
    assert facts_of(tmp_path)["stopped"] == 3  # masks of iterations 1, 2 and 3 give the two overlaps
    assert ticket.mask.counts == [12, 15]  # q = 6, 2: 27*162/(162+216) = 11.6; the other 15 of 27
    first = np.abs(weights(trained(3))[0])
    assert set(np.flatnonzero(kept(ticket.mask)[0])) == set(np.argsort(-first, kind="stable")[:12])
    dense = [entry["flops"] for entry in _metrics(tmp_path / "dense")]
    assert (one.flops, len(dense)) == (sum(dense), 3)
    never = search(tmp_path / "never", "pmt", gamma=1, length=2, delta=1.0, rule="max")
    find(never)
    assert facts_of(tmp_path / "never")["stopped"] is None


def _metrics(path):
    from refimpl.experiments.record import RunFolder

    with RunFolder.open(path, lock=False) as folder:
        return folder.metrics()


def test_mwt_keeps_the_largest_of_all_and_rewinds_to_the_same_bytes(tmp_path):
    begin(tmp_path / "t", search(tmp_path, "mwt").settings, RUN.data)
    ticket = find(search(tmp_path / "t", "mwt"))
    sizes = np.abs(np.concatenate(weights(trained(6))))
    assert (np.concatenate(kept(ticket.mask)) == (sizes >= np.sort(sizes)[-27])).all()
    assert load_ticket(tmp_path / "t", LAYOUT, "float32").start.tobytes() == THETA.tobytes()
    assert settings_of(tmp_path / "t") == search(tmp_path, "mwt").settings
    later = search(tmp_path / "k", "mwt", rewind=2, dense=str(tmp_path / "t" / "dense"))
    assert find(later).start.tobytes() == trained(2).tobytes()
    assert later.flops == facts_of(tmp_path / "t")["flops"] > 0
    with pytest.raises(ConfigError, match="rewind must be at most 6"):
        find(search(tmp_path / "x", "mwt", rewind=7, dense=str(tmp_path / "t" / "dense")))
    layered = find(search(tmp_path / "l", "mwt", scope="layers", dense=str(tmp_path / "t" / "dense")))
    assert layered.mask.counts == [5, 22]  # 0.8 of 27 is 21.6, of 108 is 86.4


def test_the_others_differ_from_mwt_where_they_should(tmp_path):
    mwt = find(search(tmp_path, "mwt", every=3))
    given = {"dense": str(tmp_path / "dense")}
    rr, omt, pm = (find(search(tmp_path / name, name, **given)) for name in ("rr", "omt", "pm"))
    first, second = kept(mwt.mask)
    assert all((a == b).all() for a, b in zip(kept(rr.mask), kept(mwt.mask), strict=True))
    assert (rr.start != THETA).any()
    assert rr.start.std() == pytest.approx(THETA.std(), rel=0.2)
    assert (kept(omt.mask)[1] == second).all()
    assert (kept(omt.mask)[0] != first).any()
    assert (kept(pm.mask)[0] == first).all()
    assert (kept(pm.mask)[1] != second).any()
    assert omt.mask.counts == pm.mask.counts == mwt.mask.counts
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["00000003.npz", "00000006.npz"]
    last = load_mask(tmp_path / "masks" / "00000006.npz")
    assert all((a == b).all() for a, b in zip(kept(last), kept(mwt.mask), strict=True))
    rm, sr = (find(search(tmp_path / name, name)) for name in ("rm", "sr"))
    assert (sum(rm.mask.counts), sr.mask.counts) == (27, [12, 15])
    assert facts_of(tmp_path / "sr")["flops"] == 0


def test_snip_scores_by_the_meta_gradient(tmp_path):
    tasks = RUN.tasks(1)
    answers = [RUN.method.local(t, THETA, np.random.default_rng(0)).w for t in tasks]  # fomaml draws nothing
    for score, factor in (("gradient", 1), ("product", THETA)):
        sizes = np.concatenate(weights(np.abs(factor * (answers[0] + answers[1]))))
        one = search(tmp_path / score, "snip", score=score)
        assert (np.concatenate(kept(find(one).mask)) == (sizes >= np.sort(sizes)[-27])).all()
        assert one.flops > 0


def test_imp_prunes_a_fifth_a_round_and_never_takes_a_weight_back(tmp_path):
    """135 weights: 108, 86, 69 stay after one, two and three rounds, and 0.5 of them is 67 after rounding."""
    one = search(tmp_path, "imp", pruned=0.5)
    ticket = find(one)
    masks = [load_mask(tmp_path / "rounds" / str(n) / "mask.npz") for n in (1, 2, 3)] + [ticket.mask]
    assert [sum(mask.counts) for mask in masks] == [108, 86, 69, 67]
    assert facts_of(tmp_path)["rounds"] == 4
    for before, after in pairwise(masks):
        assert not (np.concatenate(kept(after)) & ~np.concatenate(kept(before))).any()
    assert ticket.start.tobytes() == THETA.tobytes()


def test_a_stopped_search_goes_on_to_the_same_bytes(tmp_path):
    for name in ("mwt", "pmt"):
        keys = {"gamma": 2, "length": 2, "delta": 0.0} if name == "pmt" else {}
        find(search(tmp_path / name, name, **keys))
        again = search(tmp_path / f"{name}-again", name, **keys)
        asked = iter([False, False, True])
        with pytest.raises(KeyboardInterrupt):
            find(replace(again, stop=lambda asked=asked: next(asked)))
        with pytest.raises(RunError, match="expected a finished ticket"):
            load_ticket(tmp_path / f"{name}-again", LAYOUT, "float32")
        find(again)
        for file in ("mask.npz", "start.npz"):
            whole, resumed = tmp_path / name / file, tmp_path / f"{name}-again" / file
            assert whole.read_bytes() == resumed.read_bytes()
        assert facts_of(tmp_path / name)["flops"] == facts_of(tmp_path / f"{name}-again")["flops"]


@pytest.mark.parametrize("method", ["fomaml", "reptile", "anil"])
@pytest.mark.parametrize("outer", ["adam", "sgd"])
def test_pruned_weights_stay_zero_and_the_flops_are_those_of_the_others(method, outer, tmp_path):
    ticket = find(search(tmp_path, "sr"))
    config = replace(CONFIG, method=method, outer=outer, ticket=str(tmp_path), eta=0.01, rounds=3)
    run, dense = prepare(config), prepare(replace(config, ticket=""))
    over = ticket.mask.over(LAYOUT)
    w = train(run, threads=1).w
    assert not w[~over].any()
    assert (w[over] != THETA[over]).mean() > 0.5
    test = run.test()
    support = losses(run.network, test.tasks[0].node.support, 2, test.tasks[0].weights)
    adapted = test.learner.adapt(w, support)
    assert not adapted[~over].any()
    (_, sparse), (_, whole) = (next(r.rounds(r.start(), range(1, 2), 1)) for r in (run, dense))
    if method != "anil":  # whose Hessian-vector products have other shares
        lost = [int((~row).sum()) for row in kept(ticket.mask)]
        spared = 2 * (lost[0] * 64 * 2 + lost[1] * 16 * 3)  # the first has no input gradient
        assert sparse.flops == pytest.approx(
            whole.flops * (1 - spared / dense_work(RUN.network, 1, ("theta",)).total)
        )


def test_every_finder_has_its_keys_and_is_found_by_name():
    assert set(FINDERS) == {"mwt", "pmt", "imp", "rm", "sr", "rr", "snip", "omt", "pm"}
    assert all(one.help for one in FINDERS.keys().values())
    with pytest.raises(ConfigError, match="delta"):
        settings_from({"finder": "pmt", "delta": 2.0}, "test")
