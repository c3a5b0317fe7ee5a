"""Progress: one rewriting line on a terminal, a few plain lines elsewhere, silence on request."""

from __future__ import annotations

import io
import math
import re

import pytest

from refimpl.cli.progress import Progress, Talk, duration, round_text
from refimpl.federated.rounds import RoundRecord


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(stream: io.StringIO, total: int, seconds: float, first: float = 0.0, talk: Talk = Talk.USUAL) -> str:
    clock = Clock()
    with Progress(total, talk, stream, clock) as progress:
        clock.now += first
        for number in range(1, total + 1):
            clock.now += seconds
            progress.step(f"round {number}/{total}")
    return stream.getvalue()


def test_without_a_terminal_lines_are_plain_and_few():
    lines = run(io.StringIO(), total=1000, seconds=0.01).splitlines()
    assert len(lines) <= 12
    assert lines[0] == "round 1/1000"
    assert lines[-1].startswith("round 1000/1000")
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_slow_steps_are_shown_at_least_every_half_minute():
    assert len(run(io.StringIO(), total=1000, seconds=31.0).splitlines()) == 1000


def test_a_terminal_has_one_line_which_is_rewritten_and_ended():
    text = run(Terminal(), total=50, seconds=1.0)
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert text.count("\r") == 50


def test_a_terminal_is_redrawn_at_most_ten_times_a_second():
    assert run(Terminal(), total=10_000, seconds=0.001).count("\r") <= 10 * 10 + 2


@pytest.mark.parametrize("columns", [20, 80])
def test_no_line_is_wider_than_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with Progress(2, stream=stream) as progress:
        progress.say("x" * 200)
    shown = re.sub(r"\x1b\[K", "", stream.getvalue()).strip("\r\n")
    assert shown == "x" * (columns - 1)


def test_rate_and_remaining_time_leave_out_the_first_step():
    lines = run(io.StringIO(), total=10, seconds=2.0, first=100.0).splitlines()
    assert lines[0] == "round 1/10"
    assert lines[4] == "round 5/10  2 s each  0:10 left"
    assert run(io.StringIO(), total=10, seconds=0.25).splitlines()[4] == "round 5/10  4/s  0:01 left"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_verbose_has_a_plain_line_for_every_step(stream):
    text = run(stream(), total=100, seconds=0.01, talk=Talk.VERBOSE)
    assert [line.split("  ")[0] for line in text.splitlines()] == [f"round {k}/100" for k in range(1, 101)]
    assert "\r" not in text


def test_quiet_is_silent():
    assert run(Terminal(), total=5, seconds=1.0, talk=Talk.QUIET) == ""
    assert run(io.StringIO(), total=5, seconds=1.0, talk=Talk.QUIET) == ""


def test_an_exception_ends_the_line():
    stream = Terminal()

    def fail() -> None:
        with Progress(3, stream=stream) as progress:
            progress.step("round 1/3")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def record(**values) -> RoundRecord:
    blank = dict.fromkeys(RoundRecord._fields, 0)
    return RoundRecord(**{**blank, **values})


def test_a_round_shows_gap_and_sparsity_only_where_there_are_any():
    gated = round_text("metagater", record(round=3, loss=0.5, gap=0.01, closed_share=0.25), 9, gated=True)
    assert gated == "metagater  round 3/9  loss 0.5000  gap 1.00e-02  off 25%"
    plain = round_text("fedavg", record(round=3, loss=0.5, gap=math.nan), 9, gated=False)
    assert plain == "fedavg  round 3/9  loss 0.5000"
