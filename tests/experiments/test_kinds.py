"""Every command that takes a run says of a run of another kind what it is, and which commands take it."""

import pytest

from refimpl.cooperative import config as cooperative
from refimpl.errors import InputError, RunError
from refimpl.experiments import config as federated
from refimpl.experiments.compare.run import Comparison
from refimpl.experiments.kinds import COOPERATIVE, FEDERATED, FEWSHOT
from refimpl.experiments.record import RunFolder
from refimpl.fewshot import config as fewshot
from refimpl.fewshot.tickets.ticket import facts_of, settings_of

ROOMS = {FEDERATED: federated, FEWSHOT: fewshot, COOPERATIVE: cooperative}
COMMANDS = {
    FEDERATED: (("adapt",), ("report",), ("theory", "gap", "--rounds", "1"), ("train", "--resume", "--out")),
    FEWSHOT: (("fewshot", "test"), ("fewshot", "report"), ("fewshot", "train", "--resume", "--out")),
    COOPERATIVE: (
        ("cooperative", "evaluate"),
        ("cooperative", "predict"),
        ("cooperative", "train", "--resume", "--out"),
    ),
}


@pytest.fixture(params=ROOMS, ids=lambda kind: kind.holds)
def run(request, tmp_path):
    """A kind of run, and the folder of one."""
    RunFolder.create(tmp_path / "run", ROOMS[request.param].resolve(dataset="digits").table()).close()
    return request.param, tmp_path / "run"


@pytest.mark.parametrize("wanted", ROOMS, ids=lambda kind: kind.holds)
def test_settings_of_another_kind_of_run_are_refused_by_name(run, wanted):
    kind, path = run
    with RunFolder.open(path, lock=False) as folder:
        if kind is wanted:
            assert ROOMS[wanted].from_table(folder.config, str(path)).table() == folder.config
            return
        with pytest.raises(InputError) as error:
            ROOMS[wanted].from_table(folder.config, str(path))
    assert str(error.value) == f"{path}: expected {wanted.holds}, found {kind}"


def test_commands_say_which_kind_of_run_they_were_given(run, refimpl, monkeypatch):
    from refimpl.report import canvas

    monkeypatch.setattr(canvas, "has_matplotlib", lambda: True)  # refused before anything is drawn
    kind, path = run
    for wanted, commands in COMMANDS.items():
        for command in commands if wanted is not kind else ():
            if command == ("report",) and kind is COOPERATIVE:
                continue  # it has a page of its own
            code, _, err = refimpl(*command, path)
            assert code == 2
            assert err.splitlines()[-1].endswith(f"expected {wanted.holds}, found {kind}"), command


def test_what_is_no_run_is_named_where_it_is_known(run, tmp_path):
    kind, path = run
    for opened in (settings_of, facts_of):
        with pytest.raises(RunError, match=f"expected a .*ticket, found {kind.holds}; it is for refimpl"):
            opened(path)
    with pytest.raises(RunError, match=f"not a comparison .*it holds {kind.holds}; it is for refimpl"):
        Comparison.open(path)
    (tmp_path / "ticket").mkdir()
    (tmp_path / "ticket" / "ticket.toml").touch()
    with pytest.raises(RunError, match=r"not a run folder .*it holds a ticket; it is for refimpl tickets"):
        RunFolder.open(tmp_path / "ticket")
