"""Everything that reads a file, with whole files to start from and hostile ones; `fuzz` mutates them.

A reader more is a row more in `LOADERS`. Where a checksum or a packing would stop most mutated inputs at the
door, a second row mutates what is inside and puts the container around it (`dress`).
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from fuzz_folders import LAYOUTS, read_layout
from fuzz_images import (
    ARCHIVES,
    BATCHES,
    BOMB,
    DRAWING,
    IDX,
    IDX_BOMBS,
    LIMIT,
    NAMES,
    PICKLE_BOMBS,
    PNG_BOMB,
    PNGS,
    RECORDS,
    TAR,
    ZIP_BOMBS,
    ZIPPED_IDX,
    drawings,
    halves,
    huge_member,
    read_archive,
    read_images,
    read_through_link,
    tight_gzip,
    true_checksums,
)

from refimpl.cooperative import config as cooperative_config
from refimpl.crosscheck.compare import compare, read_theirs
from refimpl.crosscheck.conformance import Outcome as Conformance
from refimpl.crosscheck.conformance import as_text
from refimpl.crosscheck.golden.case import Case
from refimpl.crosscheck.golden.file import golden_bytes, read_golden
from refimpl.data.arrays import read_arrays
from refimpl.data.identity import Identity
from refimpl.data.png import decode_png
from refimpl.data.sets.cifar import parse_batch, parse_lines, parse_names, parse_records
from refimpl.data.sets.omniglot import read_omniglot
from refimpl.data.unpack import read_unpacked
from refimpl.engine.job import Job as FederatedJob
from refimpl.engine.job import read_job
from refimpl.experiments.compare.layout import csv_text
from refimpl.experiments.compare.plan import Cell, Plan, Training
from refimpl.experiments.compare.run import Comparison
from refimpl.experiments.compare.summary import curves, gaps, summarise
from refimpl.experiments.compare.work import Job, Outcome, outcome_of, read_records
from refimpl.experiments.config import Config, from_table, resolve
from refimpl.experiments.record import META, RunFolder
from refimpl.experiments.tune.record import Tuning
from refimpl.experiments.tune.search import Search
from refimpl.experiments.tune.trial import Trial
from refimpl.federated.adapt import NodeReport
from refimpl.fewshot import config as fewshot_config
from refimpl.fewshot.config import FewShotConfig
from refimpl.fewshot.tickets.masks import ORDER, Mask, hamming, load_mask, overlap
from refimpl.fewshot.tickets.ticket import facts_of, settings_from, settings_of
from refimpl.files.environment import environment
from refimpl.files.storage import json_text, npz_bytes, toml_text
from refimpl.report.fewshot import read_test
from refimpl.report.gather import stored_environment, stored_gaps
from refimpl.report.page import facts
from refimpl.theory.stationarity import GapRow

RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Loader:
    """`read` takes the path of a file called `file`, in a folder where the files `beside` lie.

    seeds: good inputs; hostile: inputs that must be refused, as they are; dress: what stands around an input.
    """

    name: str
    read: Callable[[Path], object]
    seeds: tuple[bytes, ...]
    hostile: tuple[bytes, ...] = ()
    dress: Callable[[bytes], bytes] = bytes
    file: str = "input"
    beside: Mapping[str, bytes] = field(default_factory=dict)


# --- arrays


def npy(claim: str, payload: bytes = b"", descr: str = "<f8", version: bytes = b"\1\0") -> bytes:
    """An .npy file whose header claims the shape `claim`."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {claim}, }}\n".encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + payload


def npz(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return out.getvalue()


def saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


X, Y = RNG.standard_normal((6, 4)), np.arange(6) % 3
NPYS = tuple(saved(x) for x in (X, X.astype(">f4"), np.asfortranarray(X), (9 * X).astype(np.uint8)))
NPY_BOMBS = (
    npy("(1000000000000, 4)"),
    npy("(10000000, 4)", bytes(8)),  # 320 megabytes claimed, 8 there
    npy("(4000000, 4)", bytes(99), "<U9"),
    npy("(" + "9" * 5000 + ",)"),
    npy("(-1, 4)", bytes(320)),
    npy("(6, 4)", b"", "|V2000000000"),
    npy("(6, 4)", b"cos\nsystem\n(S'true'\ntR.", "|O"),
    npy("(" * 3000 + ")" * 3000),
)


def own_arrays(x: bytes) -> bytes:
    return npz(x=x, y=saved(Y))


# --- run folders

CONFIG = Config(rounds=3)
STATE = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "k": np.array(3)}
CONFIG_TOML = toml_text(CONFIG.table()).encode()
RUN = {"run/config.toml": CONFIG_TOML, "run/metrics.jsonl": b""}
DATA_JSON = json_text(Identity("mine.npz", "/a", 9, 3, [1, 8, 8], "0" * 64, "1" * 64).table()).encode()
HEADER = {"round": 3, "meta": {"first_loss": 2.5}, "arrays": sorted(STATE)}
CHECKPOINT = npz_bytes({**STATE, META: np.array(json.dumps(HEADER))})
ROUND = {
    "round": 1, "nodes": [0, 1], "loss": 2.0, "gap": None, "residual": 0.1, "gradients": 3, "flops": 1e6,
    "closed_share": 0.5, "floats_sent": 9, "floats_sent_sparse": 8, "seconds": 0.1,
}  # fmt: skip
METRICS = b"".join(json.dumps({**ROUND, "round": n}).encode() + b"\n" for n in (1, 2, 3))
DEEP = (b"[" * 100_000, b'{"a":' * 50_000, b'{"rows": ' + b"[" * 100_000)


def checkpoint_of(header: bytes) -> bytes:
    return npz_bytes({**STATE, META: np.array(header.decode("latin-1"))})


def checkpoint_with(member: bytes) -> bytes:
    header = {**HEADER, "arrays": ["x"]}
    return npz(**{"x": member, META: saved(np.array(json.dumps(header)))})


def read_checkpoint(path: Path) -> object:
    return RunFolder.open(path.parent, lock=False).load_checkpoint(like=STATE)


def read_any_checkpoint(path: Path) -> object:
    return RunFolder.open(path.parent, lock=False).load_checkpoint()


def read_model(path: Path) -> object:
    return RunFolder.open(path.parent, lock=False).load_model()


def read_metrics(path: Path) -> object:
    folder = RunFolder.open(path.parent, lock=False)
    folder.truncate_metrics(3)
    return folder.metrics()


def read_config(path: Path) -> object:
    return from_table(RunFolder.open(path.parent, lock=False).config)


# --- comparisons and searches

PLAN = Plan((("one", CONFIG), ("two", Config(rounds=2, method="fedavg"))), (0, 1), 1)
CELL = Cell("one", CONFIG)
NODE = NodeReport(**dict.fromkeys(NodeReport._fields, 0.5))._replace(node="target 0")
REPORT = json_text({"label": "one", "data": "", "nodes": [NODE._asdict()]}).encode()
SEARCH = Search(Config(nodes=6), {"eta": (0.01, 0.1)}, 3)
TRIAL = Trial("metagater", 0, SEARCH.settings()[0], 0.5, 1.0, [0.5], 2.0)
TRIALS = b"".join(
    json.dumps(entry).encode() + b"\n" for entry in ({"searches": [SEARCH.table()]}, asdict(TRIAL))
)
ENDLESS = TRIALS.replace(b'"budget": 3', b'"budget": 1000000000000')


def read_report(path: Path) -> object:
    job = Job(path.parent.parent, Training("one", (CELL,)), 0, None, 1)
    outcomes = [outcome_of(job, CELL, "")]
    return csv_text(summarise(outcomes)), curves(outcomes), gaps(outcomes)


def read_tuning(path: Path) -> object:
    tuning = Tuning.open(path)
    tuning.left()
    return tuning.toml()


# --- what a report shows

GAP = GapRow(**dict.fromkeys(GapRow._fields, 0.5))._replace(round=2, point="centre")


def read_rounds(path: Path) -> object:
    records = read_records(RunFolder.open(path.parent, lock=False), 3)
    outcome = Outcome("one", CONFIG, records, (NODE,))
    return csv_text(summarise([outcome])), gaps([outcome])


def read_gaps(path: Path) -> object:
    return [row.true_gap**2 + row.spread for row in stored_gaps(path)]


# --- golden files

CASE = Case(
    "local/small",
    "local",
    "float64",
    {"param.a": X[:2, :3], "labels": Y},
    {"parameters": [["a", [2, 3]], ["b", [2]]], "gating": {"mode": "hard", "tau": 1.0}},
    ("w", "mask", "loss"),
)
OUTPUTS = {"w": X[:2].ravel(), "mask": X[0] > 0, "loss": np.array(0.5)}
GOLDEN = golden_bytes([(CASE, OUTPUTS)], "hand")
GOLDEN_ARRAYS = dict(np.load(io.BytesIO(GOLDEN)))
MANIFEST = bytes(GOLDEN_ARRAYS["manifest"])


def golden_of(manifest: bytes) -> bytes:
    """The golden file with another manifest."""
    return npz_bytes({**GOLDEN_ARRAYS, "manifest": np.frombuffer(manifest, np.uint8)})


def outputs_of(w: bytes) -> bytes:
    """Outputs for the golden file, the vector among them as `w` has it."""
    return npz(**{"local/small/w": w, "local/small/mask": saved(OUTPUTS["mask"])})


def read_both(golden: Path, theirs: Path) -> object:
    expected = read_golden(golden)
    comparison = compare(expected, read_theirs(theirs, expected))
    return as_text(Conformance(expected, comparison, (), partial=True), every=True)


def read_manifest(path: Path) -> object:
    return read_both(path, path.with_name("theirs.npz"))


def read_outputs(path: Path) -> object:
    return read_both(path.with_name("golden.npz"), path)


def packed(pack: Callable[[bytes], bytes]) -> tuple[bytes, ...]:
    """Images in one stream, in two, with padding, and packed twice."""
    return pack(IDX), halves(pack, IDX), pack(IDX) + bytes(12), pack(pack(IDX))


def unpacked(parse: Callable[..., object], *more: object) -> Callable[[Path], object]:
    """A reader of the file's content."""
    return lambda path: parse(read_unpacked(path, LIMIT), str(path), *more)


# --- tickets, few-shot and cooperative runs, and jobs of a federation

MASK = Mask({"conv1.weight": X[:2, :3] > 0, "conv2.weight": X > 0})
MASK_FILE = npz_bytes({**MASK.layers, ORDER: np.array([*MASK.layers])})
FACTS_JSON = json_text(
    {
        "finder": "pmt", "flops": 1e6, "seconds": 2, "stopped": None,
        "kept": {"conv1.weight": 3}, "weights": {"conv1.weight": 6},
    }
).encode()  # fmt: skip
TICKET_TOML = toml_text(settings_from(FewShotConfig().table(), "fuzz").table()).encode()
TEST_JSON = json_text({"accuracy": 0.5, "half": None, "accuracies": [0.5, None]}).encode()
JOB = FederatedJob(Config(), (1, 8, 8), 10).text().encode()


def mask_with(layer: bytes) -> bytes:
    return npz(**{"conv1.weight": layer, ORDER: saved(np.array(["conv1.weight"]))})


def use_mask(path: Path) -> object:
    mask = load_mask(path)
    return mask.counts, mask.pruned, overlap([mask, mask]), hamming(mask, mask)


def use_facts(path: Path) -> object:
    facts = facts_of(path.parent)
    shares = [f"{kept}/{facts['weights'][name]}" for name, kept in facts["kept"].items()]
    return facts["finder"], shares, facts["flops"] / 1e9, f"{facts['seconds']:.3g}"


def use_test(path: Path) -> object:
    found = read_test(path)
    return 100 * np.sort(np.array([found["accuracy"], found["half"], *found["accuracies"]], dtype=float))


def stored_as(from_table: Callable[..., object]) -> Callable[[Path], object]:
    """A reader of the configuration in a run folder."""
    return lambda path: from_table(RunFolder.open(path.parent, lock=False).config, str(path))


LOADERS = (
    Loader("mask", use_mask, (MASK_FILE,)),
    Loader("mask npy, npz around it", use_mask, (saved(X > 0),), (*NPYS, *NPY_BOMBS), mask_with),
    Loader(
        "ticket's settings",
        lambda path: settings_of(path.parent),
        (TICKET_TOML,),
        (b"a=" + DEEP[0],),
        file="ticket.toml",
    ),
    Loader("ticket's facts", use_facts, (FACTS_JSON,), DEEP, file="ticket.json"),
    Loader("few-shot test", use_test, (TEST_JSON,), DEEP),
    Loader(
        "few-shot config",
        stored_as(fewshot_config.from_table),
        (toml_text(FewShotConfig().table()).encode(),),
        file="run/config.toml",
    ),
    Loader(
        "cooperative config",
        stored_as(cooperative_config.from_table),
        (toml_text(cooperative_config.CooperativeConfig().table()).encode(),),
        file="run/config.toml",
    ),
    Loader("job of a federation", lambda path: read_job(path).digest(), (JOB,), (b"a=" + DEEP[0],)),
    Loader("idx", read_images, (IDX,), IDX_BOMBS),
    Loader("idx, gzip around it", read_images, (IDX,), IDX_BOMBS, tight_gzip),
    Loader("gzip", read_images, packed(gzip.compress), (gzip.compress(BOMB, 1),)),
    Loader("xz", read_images, packed(lzma.compress), (lzma.compress(BOMB, preset=0),)),
    Loader("bzip2", read_images, packed(bz2.compress), (bz2.compress(BOMB),)),
    Loader("zip of one file", read_images, (ZIPPED_IDX,), ZIP_BOMBS),
    Loader("zip of one file, gzip around it", read_images, (ZIPPED_IDX,), ZIP_BOMBS, tight_gzip),
    Loader("idx behind links", read_through_link, (IDX, gzip.compress(IDX)), IDX_BOMBS),
    Loader("data folder", read_layout, LAYOUTS),
    Loader("cifar pickle", unpacked(parse_batch, 10), BATCHES, PICKLE_BOMBS),
    Loader("cifar names", unpacked(parse_names, 10), (NAMES,), PICKLE_BOMBS),
    Loader("cifar binary", unpacked(parse_records, 10), (RECORDS,)),
    Loader(
        "class names", unpacked(parse_lines, 10), (b"\n".join(b"abcdefghij"[i : i + 1] for i in range(10)),)
    ),
    Loader("tar or zip archive", read_archive, ARCHIVES, (gzip.compress(huge_member(10**12)),)),
    Loader(
        "tar, gzip around it", read_archive, (TAR,), (huge_member(10**12), huge_member(2**62)), tight_gzip
    ),
    Loader("png", unpacked(decode_png, (8, 8)), PNGS, (PNG_BOMB,)),
    Loader("png, true checksums", unpacked(decode_png, (8, 8)), PNGS, (PNG_BOMB,), true_checksums),
    Loader("omniglot zip", read_omniglot, (drawings(DRAWING),), (drawings(PNG_BOMB),)),
    Loader("omniglot png, zip around it", read_omniglot, (DRAWING,), (PNG_BOMB,), drawings),
    Loader("own npz", read_arrays, (npz(x=NPYS[0], y=saved(Y)),), tuple(map(own_arrays, NPY_BOMBS))),
    Loader("own npy, npz around it", read_arrays, NPYS, NPY_BOMBS, own_arrays),
    Loader("checkpoint", read_checkpoint, (CHECKPOINT,), (), bytes, "run/checkpoint.npz", RUN),
    Loader(
        "checkpoint npy, npz around it",
        read_any_checkpoint,
        NPYS,
        NPY_BOMBS,
        checkpoint_with,
        "run/checkpoint.npz",
        RUN,
    ),
    Loader(
        "checkpoint header",
        read_checkpoint,
        (json.dumps(HEADER).encode(),),
        DEEP,
        checkpoint_of,
        "run/checkpoint.npz",
        RUN,
    ),
    Loader(
        "meta-model",
        read_model,
        (npz_bytes({"w": STATE["x"]}),),
        tuple(npz(w=bomb) for bomb in NPY_BOMBS),
        bytes,
        "run/meta_model.npz",
        RUN,
    ),
    Loader("metrics", read_metrics, (METRICS,), (*DEEP, METRICS * 2), bytes, "run/metrics.jsonl", RUN),
    Loader("run config", read_config, (CONFIG_TOML,), (b"a=" + DEEP[0],), bytes, "run/config.toml"),
    Loader(
        "data of a run",
        lambda path: RunFolder.open(path.parent, lock=False).data,
        (DATA_JSON,),
        DEEP,
        bytes,
        "run/data.json",
        RUN,
    ),
    Loader("own TOML", resolve, (CONFIG_TOML, b"seed = 3\n[fedavg]\neta = 0.5\n"), (b"a=" + DEEP[0],)),
    Loader(
        "comparison plan",
        lambda path: Comparison.open(path.parent),
        (json_text(PLAN.table()).encode(),),
        DEEP,
        file="plan.json",
    ),
    Loader(
        "report of nodes",
        read_report,
        (REPORT,),
        DEEP,
        file="run/report/one.json",
        beside={**RUN, "run/metrics.jsonl": METRICS},
    ),
    Loader(
        "accuracy by round",
        read_report,
        (json_text({"one": {"1": 0.5, "3": 0.75}}).encode(),),
        DEEP,
        file="run/report/accuracy-by-round.json",
        beside={**RUN, "run/metrics.jsonl": METRICS, "run/report/one.json": REPORT},
    ),
    Loader("golden file", read_golden, (GOLDEN,)),
    Loader(
        "golden manifest",
        read_manifest,
        (MANIFEST,),
        DEEP,
        golden_of,
        beside={"theirs.npz": outputs_of(saved(OUTPUTS["w"] + 1))},
    ),
    Loader(
        "outputs for a golden file",
        read_outputs,
        (GOLDEN, outputs_of(saved(OUTPUTS["w"]))),
        beside={"golden.npz": GOLDEN},
    ),
    Loader(
        "output npy, npz around it",
        read_outputs,
        (*NPYS, saved(OUTPUTS["w"])),
        NPY_BOMBS,
        outputs_of,
        beside={"golden.npz": GOLDEN},
    ),
    Loader("record of trials", read_tuning, (TRIALS,), (*(deep + b"\n" for deep in DEEP), ENDLESS)),
    Loader("rounds", read_rounds, (METRICS,), (*DEEP, b"", METRICS * 2), bytes, "run/metrics.jsonl", RUN),
    Loader(
        "environment",
        lambda path: facts(stored_environment(path)),
        (json_text(environment(1)).encode(),),
        (*DEEP, b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"),
    ),
    Loader("true gaps", read_gaps, (json_text({"points": [GAP._asdict()]}).encode(),), DEEP),
)
