"""Figures: what is asked of matplotlib, what happens without it, and that each can be drawn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from refimpl.cli.app import run as command
from refimpl.errors import InputError, RefimplError
from refimpl.experiments.config import Config
from refimpl.federated.rounds import RoundRecord
from refimpl.report import canvas, comparison, gap, runs, theory, write
from refimpl.report.gather import View
from refimpl.theory import problems, rates, sweeps

PNG = b"\x89PNG\r\n"
SERVER = [*((k, 1.0 / k) for k in range(1, 9)), (9, np.nan)]
ROWS = [
    SimpleNamespace(round=1, point="centre", true_gap=0.8, spread=0.1),
    SimpleNamespace(round=4, point="centre", true_gap=0.3, spread=0.4),  # the bar must not reach zero
    SimpleNamespace(round=9, point="model", true_gap=0.1, spread=np.nan),
]
SERIES = [gap.GapSeries("mine", SERVER, ROWS)]


def test_without_matplotlib_there_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(canvas, "find_spec", lambda name: None)
    assert not canvas.has_matplotlib()
    for draw in (
        lambda: canvas.save(tmp_path / "gap.png", lambda: gap.gap_figure(SERIES)),
        lambda: theory.theory_figure("gap-by-round", tmp_path),
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
        theory.theory_figure("gap", tmp_path)


def axes_of(figure):
    return figure.axes[0]


def labels_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_long_names_leave_panels_their_size():
    """A legend grows downwards, its lines go on in the next: it must not push the panel aside."""
    pytest.importorskip("matplotlib")
    sizes = []
    for name in ("a", "metasnip snip_keep=0.3 adapt_steps=10, " * 5):
        figure = gap.gap_figure([gap.GapSeries(name, SERVER, ROWS)])
        canvas.png(lambda figure=figure: figure)
        box = axes_of(figure).get_window_extent()
        sizes.append((box.width, box.height))
    assert min(map(min, sizes)) > 250
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=0.1)


def test_gap_of_a_run(tmp_path):
    """Both gaps are in the figure, squared, at their rounds; bars stay on the logarithmic axis."""
    pytest.importorskip("matplotlib")
    path = canvas.save(tmp_path / "deep" / "gap.png", lambda: gap.gap_figure(SERIES))
    assert path.read_bytes().startswith(PNG)
    figure = gap.gap_figure(SERIES)
    axes = axes_of(figure)
    server, smallest, centre, model, slope = (line.get_xydata() for line in axes.get_lines())
    np.testing.assert_allclose(server[:8], [(k, 1.0 / k**2) for k in range(1, 9)])
    assert np.isnan(server[8, 1])
    np.testing.assert_allclose(smallest, [(k, 1.0 / min(k, 8) ** 2) for k in range(1, 10)])
    np.testing.assert_allclose(centre, [(1, 0.64), (4, 0.09)])
    np.testing.assert_allclose(model, [(9, 0.01)])
    np.testing.assert_allclose(slope, [(1, 1), (9, 1 / 9)])
    (bars, _) = axes.collections
    assert min(segment[:, 1].min() for segment in bars.get_segments()) > 0
    texts = labels_of(figure)
    assert texts[0] == "mine"
    assert "not a bound of these runs" in texts[-1]
    assert sum("true gap at" in text for text in texts) == 2


def test_gaps_of_several_runs_are_in_one_figure():
    pytest.importorskip("matplotlib")
    other = [(1, 2.0), (2, 0.0)]  # a zero has no place on the axis
    figure = gap.gap_figure([gap.GapSeries("a", SERVER, []), gap.GapSeries("b", other, [])])
    axes = axes_of(figure)
    assert labels_of(figure)[:2] == ["a", "b"]
    np.testing.assert_allclose(axes.get_lines()[3].get_xydata(), [(1, 4), (2, 4)])
    np.testing.assert_allclose(axes.get_lines()[-1].get_xydata(), [(1, 4), (9, 4 / 9)])


def curve(label, *mean, std=0.05, left_out=0):
    rounds = tuple(range(1, len(mean) + 1))
    return SimpleNamespace(label=label, rounds=rounds, mean=mean, std=(std,) * len(mean), left_out=left_out)


def point(method, setting, executed, accuracy, std=0.01):
    return SimpleNamespace(
        label=f"{method} {setting}",
        method=method,
        flops_dense=1000.0,
        flops_executed=executed,
        accuracy_adapted_last_mean=accuracy,
        accuracy_adapted_last_std=std,
    )


def test_accuracy_by_round_has_a_line_and_a_band_for_every_row():
    pytest.importorskip("matplotlib")
    rows = [curve("fedavg", 0.5, 0.6), curve("metagater", 0.7, 0.9, std=np.nan)]
    assert canvas.png(lambda: comparison.accuracy_figure(rows)).startswith(PNG)
    axes = axes_of(comparison.accuracy_figure(rows))
    first, second = (line.get_xydata() for line in axes.get_lines())
    np.testing.assert_allclose(first, [(1, 50), (2, 60)])
    np.testing.assert_allclose(second, [(1, 70), (2, 90)])
    lost = comparison.accuracy_figure([curve("fedavg", 0.5, 0.6, left_out=2)])
    assert axes_of(lost).get_lines()[0].get_label() == "fedavg (2 diverged)"
    heights = [np.ptp(band.get_paths()[0].vertices[:, 1]) for band in axes.collections]
    np.testing.assert_allclose(heights, [20, 20])  # 45..65, and without a spread the line itself


def test_the_frontier_joins_the_rows_of_a_method_by_their_work():
    pytest.importorskip("matplotlib")
    rows = [
        point("metagater", "rho=0.1", 400.0, 0.8),
        point("metasnip", "", 500.0, 0.7),
        point("metagater", "rho=0.01", 900.0, 0.9, std=np.nan),
        point("metagater", "rho=1", 200.0, 0.5),
    ]
    assert canvas.png(lambda: comparison.frontier_figure(rows)).startswith(PNG)
    figure = comparison.frontier_figure(rows)
    axes = axes_of(figure)
    gated, pruned = (bars.lines[0].get_xydata() for bars in axes.containers)
    np.testing.assert_allclose(gated, [(20, 50), (40, 80), (90, 90)])
    np.testing.assert_allclose(pruned, [(50, 70)])
    assert labels_of(figure) == ["metagater; left to right: rho=1, 0.1, 0.01", "metasnip"]


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        (["rho=1", "rho=0.1"], "rho=1, 0.1"),
        (["rho=1 snip_keep=0.5", "rho=0.1 snip_keep=0.5"], "rho=1 snip_keep=0.5, rho=0.1 snip_keep=0.5"),
        ([""], ""),
    ],
)
def test_a_setting_of_all_points_is_named_once(settings, shown):
    assert comparison._values(settings) == shown


def test_many_series_are_told_apart():
    looks = [tuple(canvas.looks(number).values()) for number in range(20)]
    assert len(set(looks)) == 20
    assert len({(colour, marker) for colour, marker, _ in looks}) == 20


@pytest.mark.parametrize(
    ("limits", "numbers"),
    [
        ((1, 60), [1, 2, 5, 10, 20, 50]),
        ((11, 44), [15, 20, 30]),
        ((1.1, 4.5), [1.5, 2, 3]),
        ((0.0095, 1500), [0.01, 0.1, 1, 10, 100, 1000]),
        ((2.05, 2.5), [2.2, 2.4]),
    ],
)
def test_logarithmic_axes_have_round_numbers_enough_to_read_them_and_no_more(limits, numbers):
    np.testing.assert_allclose(canvas.round_numbers(*limits), numbers)


@pytest.mark.parametrize(
    ("shown", "limits"),
    [
        ((75.7, 75.8), (65.75, 85.75)),  # a single value is not blown up
        ((-0.05, 0.05), (-2, 18)),
        ((99.9, 100.1), (82, 102)),
        ((-10, 110), (-2, 102)),
        ((30, 70), (30, 70)),
    ],
)
def test_an_axis_of_percentages_shows_twenty_of_them_and_none_there_cannot_be(shown, limits):
    pytest.importorskip("matplotlib")
    _, (axes,) = canvas.new_figure(1)
    axes.set_ylim(*shown)
    canvas.percent_axis(axes)
    np.testing.assert_allclose(axes.get_ylim(), limits)


SETTINGS = "text.usetex: True\nfont.size: 40\nsavefig.bbox: tight\nsavefig.dpi: 300\nfont.family: no such\n"
DRAWN = """
import hashlib, json, os
from refimpl.report import canvas

def draw():
    figure, (axes,) = canvas.new_figure(1)
    axes.plot([1, 2, 3])
    axes.set_xlabel("rounds")
    return figure

digest = hashlib.sha256(canvas.png(draw)).hexdigest()
import matplotlib
print(digest, os.environ.get("MPLBACKEND"), matplotlib.rcParams["font.size"])
"""


def drawn(folder: Path, **variables: str) -> list[str]:
    """Digest of a figure in a process with such settings, and what is left of them there."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MPL")}
    environment = {**plain, "MPLCONFIGDIR": str(folder), **variables}
    command = [sys.executable, "-P", "-c", DRAWN]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_figures_do_not_depend_on_settings_of_the_user_and_leave_them_alone(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("usual", "own"):
        (tmp_path / name).mkdir()
    (tmp_path / "own" / "matplotlibrc").write_text(SETTINGS)
    digest, *left = drawn(tmp_path / "usual")
    assert left == ["None", "10.0"]
    assert drawn(tmp_path / "own") == [digest, "None", "40.0"]
    jupyter = "module://matplotlib_inline.not_installed"  # what Jupyter's children inherit
    for backend in (jupyter, "svg", "no-such"):
        assert drawn(tmp_path / "usual", MPLBACKEND=backend) == [digest, backend, "10.0"]


def test_a_figure_that_cannot_be_written(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(RefimplError, match="file: cannot make a folder"):
        canvas.save(tmp_path / "file" / "gap.png", lambda: gap.gap_figure(SERIES))


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


@pytest.mark.parametrize("name", theory.THEORY_FIGURES)
def test_figures_of_the_theory(name, tmp_path, short):
    pytest.importorskip("matplotlib")
    path = theory.theory_figure(name, tmp_path / "figures", seed=1)
    assert path == tmp_path / "figures" / f"{name}.png"
    assert path.read_bytes().startswith(PNG)


def test_a_run_without_rounds_stands_beside_others():
    pytest.importorskip("matplotlib")
    record = RoundRecord(1, (0,), 2.0, np.nan, 0.1, 3, 7e9, 0.0, 10, 9, 0.25)
    empty, begun = (
        View(name, Config(), records, folder=Path(name), environment={})
        for name, records in (("a", ()), ("b", (record,)))
    )
    for figure in (runs.training_figure([empty, begun]), runs.work_figure([empty, begun])):
        canvas.png(lambda figure=figure: figure)
        nothing, point = (line.get_xydata() for line in axes_of(figure).get_lines()[:2])
        assert (len(nothing), len(point)) == (0, 1)


def test_figures_of_folders_with_the_same_name_keep_their_own_files():
    names = ("c-accuracy.png", "c-accuracy.png", "c-frontier.png", "c-accuracy-2.png", "c-accuracy.png")
    found = write.numbered([write.Plan(name, str(k), "", None) for k, name in enumerate(names)])
    assert [plan.name for plan in found] == [
        *("c-accuracy.png", "c-accuracy-2.png", "c-frontier.png"),
        *("c-accuracy-2-2.png", "c-accuracy-3.png"),
    ]
    assert [plan.title for plan in found] == list("01234")
