"""Claims on jobs in a folder: one owner at a time, and the next one where that owner has died."""

from types import SimpleNamespace

import pytest

from refimpl.errors import RunError
from refimpl.files import claims
from refimpl.files.claims import Claims


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(claims, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_a_job_has_one_owner_until_it_is_given_back(tmp_path):
    one, other = Claims(tmp_path), Claims(tmp_path)
    assert one.take("job-0.5")
    assert not other.is_free("job-0.5")
    assert not other.take("job-0.5")
    assert other.take("job-0")
    one.give_back("job-0.5")
    assert other.is_free("job-0.5")
    assert other.take("job-0.5")
    assert not one.take("job-0.5")


def test_who_is_silent_for_long_by_the_clock_of_the_other_has_lost_the_job(tmp_path, clock):
    one, other, third = Claims(tmp_path), Claims(tmp_path), Claims(tmp_path)
    assert one.take("job")
    assert not other.take("job")  # and begins to watch
    clock.seconds += claims.STALE + 1
    assert not third.take("job")  # has not watched yet
    assert other.take("job")
    one.renew(1)
    assert one.lost
    with pytest.raises(RunError, match="took job over"):
        one.check()
    assert not other.lost
    one.give_back("job")
    assert not third.is_free("job")


def test_who_renews_a_claim_keeps_it(tmp_path, clock):
    one, other = Claims(tmp_path), Claims(tmp_path)
    assert one.take("job")
    for beat in range(5):
        assert not other.take("job")
        clock.seconds += claims.STALE - 1
        one.renew(beat)
    assert not other.take("job")
    one.check()


def test_claims_end_with_their_block(tmp_path):
    other = Claims(tmp_path / "claims")
    with Claims(tmp_path / "claims") as one:
        assert one.take("job")
        assert not other.is_free("job")
    assert other.is_free("job")


def test_without_a_folder_every_job_is_free(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Claims() as one:
        assert one.take("job")
        one.give_back("job")
        assert one.take("job")
    assert not list(tmp_path.iterdir())
