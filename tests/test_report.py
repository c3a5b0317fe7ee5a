"""Figures: what is asked of matplotlib, what happens without it, and that each can be drawn."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from refimpl import problems, report
from refimpl.cli.app import run as command
from refimpl.errors import InputError, RefimplError
from refimpl.theory import rates, sweeps

PNG = b"\x89PNG\r\n"
METRICS = [{"round": k, "gap": 1.0 / k} for k in range(1, 9)] + [{"round": 9, "gap": None}]
ROWS = [
    SimpleNamespace(round=1, point="centre", true_gap=0.8, spread=0.1),
    SimpleNamespace(round=4, point="centre", true_gap=0.3, spread=0.4),  # the bar must not reach zero
    SimpleNamespace(round=9, point="model", true_gap=0.1, spread=np.nan),
]


def test_without_matplotlib_there_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert not report.has_matplotlib()
    for draw in (
        lambda: report.draw_run_gap(tmp_path / "gap.png", METRICS, ROWS),
        lambda: report.theory_figure("gap-by-round", tmp_path),
    ):
        with pytest.raises(InputError, match="figures need matplotlib, which is not installed; pip install"):
            draw()
    assert command(["theory", "all", "--figures", str(tmp_path / "figures"), "-q"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""  # it says so before the minute of checks, not after it
    assert len(captured.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_figure_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"gap-by-round.*rounds-by-lambda"):
        report.theory_figure("gap", tmp_path)


def axes_of(figure):
    return figure.axes[0]


def test_gap_of_a_run(tmp_path):
    """Both gaps are in the figure, at their rounds; bars stay on the logarithmic axis."""
    pytest.importorskip("matplotlib")
    path = report.draw_run_gap(tmp_path / "deep" / "gap.png", METRICS, ROWS)
    assert path.read_bytes().startswith(PNG)
    axes = axes_of(report._draw_run_gap(METRICS, ROWS))
    server, centre, model = (line.get_xydata() for line in axes.get_lines())
    np.testing.assert_array_equal(server[:8], [(k, 1.0 / k) for k in range(1, 9)])
    np.testing.assert_array_equal(centre, [(1, 0.8), (4, 0.3)])
    np.testing.assert_array_equal(model, [(9, 0.1)])
    (bars, _) = axes.collections
    assert min(segment[:, 1].min() for segment in bars.get_segments()) > 0
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [text.split(" (")[0] for text in texts] == [
        "server's gap",
        "true gap at the same point",
        "true gap at the meta-model",
    ]


def test_a_figure_that_cannot_be_written(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(RefimplError, match="cannot write the figure"):
        report.draw_run_gap(tmp_path / "file" / "gap.png", METRICS, ROWS)


@pytest.fixture
def short(monkeypatch):
    """Fewer rounds and settings than the figures show: here it is drawing that is tried."""
    easy = problems.attained(1), 2.0, np.ones(4)
    monkeypatch.setattr(rates, "slow_problems", lambda seed: [easy, easy])
    monkeypatch.setattr(rates, "ROUNDS", 40)
    monkeypatch.setattr(sweeps, "ROUNDS", 40)
    monkeypatch.setattr(sweeps, "FLOOR_RATIOS", (2.0, 5.0))
    monkeypatch.setattr(sweeps, "RATIOS", (1.5, 30.0))
    monkeypatch.setattr(sweeps, "SPREADS", (0.0, 0.1, 3.0))


@pytest.mark.parametrize("name", report.THEORY_FIGURES)
def test_figures_of_the_theory(name, tmp_path, short):
    pytest.importorskip("matplotlib")
    path = report.theory_figure(name, tmp_path / "figures", seed=1)
    assert path == tmp_path / "figures" / f"{name}.png"
    assert path.read_bytes().startswith(PNG)
