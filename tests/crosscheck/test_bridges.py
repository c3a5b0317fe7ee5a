"""What users meet of the bridges without the other frameworks: clear errors, and the table of the README."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import make_golden
import pytest
import worst
from readme_commands import document

from refimpl.crosscheck.bridges import run
from refimpl.crosscheck.golden.models import NAMES
from refimpl.files.tables import inside, put_into

RESULTS = Path(__file__).parent / "golden" / "worst.json"


def without(monkeypatch, package: str) -> None:
    """As if the package were not installed, and the bridge to it not yet imported."""
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(f"refimpl.crosscheck.bridges.{package}")]:
        monkeypatch.delitem(sys.modules, name)


def test_importing_the_package_and_its_commands_imports_no_other_framework():
    code = (
        "import sys, refimpl, refimpl.cli.export, refimpl.cli.golden, refimpl.crosscheck.golden.ours, "
        "refimpl.crosscheck.bridges; "
        "print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command", [(make_golden, "."), (worst, "measure", "w.json"), (run, "f.npz", "--out", "t.npz")]
)
def test_without_pytorch_one_line_says_how_to_install_it(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    without(monkeypatch, "torch")
    module, *arguments = command
    with pytest.raises(worst.RefimplError, match=r'pip install "refimpl\[torch\]"'):
        module.main(arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_commands_of_the_bridge_replace_no_file_unasked(tmp_path):
    golden, out = tmp_path / "f.npz", tmp_path / "t.npz"
    out.write_bytes(b"mine")
    with pytest.raises(worst.RefimplError, match=r"t\.npz: exists already; --force replaces it"):
        run.main([str(golden), "--out", str(out)])
    with pytest.raises(worst.RefimplError, match="that is the golden file"):
        run.main([str(golden), "--out", str(tmp_path / "." / "f.npz"), "--force"])
    (tmp_path / "prox-float32.npz").write_bytes(b"mine")
    with pytest.raises(worst.RefimplError, match=r"prox-float32\.npz: exists already"):
        make_golden.main([str(tmp_path)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "t.npz": b"mine",
        "prox-float32.npz": b"mine",
    }


def test_without_onnx_one_line_says_how_to_install_it(monkeypatch, refimpl):
    without(monkeypatch, "onnx")
    code, out, err = refimpl("export", "run", "--out", "model.onnx")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert 'pip install "refimpl[onnx]"' in err


def test_the_readme_shows_the_measured_errors():
    content, text = json.loads(RESULTS.read_text()), document("refimpl/crosscheck/README.md")
    assert inside(text, worst.COMMAND) == worst.readme(content)
    assert put_into(text, worst.COMMAND, worst.readme(content)) == text


def test_the_measured_errors_are_those_asked_for_of_every_network_and_mode():
    content = json.loads(RESULTS.read_text())
    assert set(content["networks"]) == {f"{name} {dtype}" for name in NAMES for dtype in worst.DTYPES}
    for name, columns in content["networks"].items():
        assert set(columns) == set(worst.COLUMNS)
        limit = 1e-10 if name.endswith("float64") else 1e-4
        assert all(entry["relative"] <= limit and entry["arrays"] > 0 for entry in columns.values())
    assert content["levels"]["algorithm"]["float64"]["relative"] <= 1e-8
