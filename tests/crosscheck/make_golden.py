"""Golden files computed by PyTorch, small enough to be kept with the tests.

    python tests/crosscheck/make_golden.py tests/crosscheck/golden --force

writes one file for each level and dtype of `SELECTION`. The outputs owe nothing to this package's own
arithmetic, so the files can be used to test it where PyTorch is not installed.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch

from refimpl.crosscheck.bridges.run import leave_with
from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.file import golden_bytes
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.files.paths import expanded
from refimpl.files.storage import check_new, write_whole

SEED = 0

# (level, dtype): patterns of the cases that are kept, after `<level>/`. Every kind of operation, every
# architecture, every mode and both gate gradients are there; what the rest would add is size.
SELECTION: dict[tuple[str, str], tuple[str, ...]] = {
    ("ops", "float64"): (
        "[!g]*",
        "global_*",
        "gated-hard-dense",
        "gated-gumbel-active",
        "gated-soft-dense-tau",
        "gate_shaping",
    ),
    ("ops", "float32"): ("[!g]*", "global_*"),
    ("networks", "float64"): (
        "mlp-hard-dense",
        "mlp-ste-active",
        "mlp-gumbel-dense",
        "digits-hard-active",
        "cnn3-gumbel-active",
        "cnn7-hard-active",
        "residual-soft-active",
        "conv4-hard-active",
        "resnet12-soft-dense",
        "resnet20-ungated",
    ),
    ("networks", "float32"): ("mlp-hard-dense",),
    ("prox", "float64"): ("*",),
    ("prox", "float32"): ("*",),
    ("local", "float64"): ("[!d]*",),
    ("algorithm", "float64"): ("ungated", "gumbel", "options"),
    ("adapt", "float64"): ("hard", "ste-steps", "soft-prox", "ungated"),
    ("baselines", "float64"): ("*[!t]", "maml-soft"),
    ("cooperative", "float64"): ("cooperative", "sandwich"),
    ("fewshot", "float64"): ("[!bm]*", "maml", "boil", "masked"),
}


def selected(level: str, dtype: str) -> Iterator[Case]:
    """The cases that the file keeps."""
    for case in build_cases(level, SEED, dtype):
        if any(fnmatch(case.name, f"{level}/{pattern}") for pattern in SELECTION[level, dtype]):
            yield case


def file_bytes(level: str, dtype: str) -> bytes:
    """A level's golden file, computed by PyTorch and compressed."""
    from refimpl.crosscheck.bridges.torch.run import run, single_threaded

    made_by = single_threaded()
    computed: list[tuple[Case, Arrays]] = [(case, run(case)) for case in selected(level, dtype)]
    return deflated(golden_bytes(computed, made_by))


def deflated(content: bytes) -> bytes:
    """The archive with the same members, compressed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as plain, zipfile.ZipFile(packed, "w") as file:
        for entry in plain.infolist():
            file.writestr(entry, plain.read(entry), zipfile.ZIP_DEFLATED, 9)
    return packed.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Write the files; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=expanded, help="folder for the files; it is made if it is missing")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    options = parser.parse_args(arguments)
    paths = {key: options.folder / f"{'-'.join(key)}.npz" for key in SELECTION}
    for path in paths.values():
        check_new(path, options.force)
    options.folder.mkdir(parents=True, exist_ok=True)
    for (level, dtype), path in paths.items():
        content = file_bytes(level, dtype)
        write_whole(path, content)
        print(f"{path}  {len(content) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    leave_with("make_golden", main)
