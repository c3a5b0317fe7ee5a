"""CIFAR's binary version: records of label and pixel bytes, in folders and archives."""

import gzip
import hashlib
import io
import lzma
import tarfile

import numpy as np
import pytest

from refimpl.data import load
from refimpl.data.sets.cifar import Cifar10, parse_lines, parse_records
from refimpl.data.verify import verify
from refimpl.errors import DataError

RNG = np.random.default_rng(11)
NAMES10 = "\n".join(f"thing{i}" for i in range(10)) + "\n\n"


def record(*labels, pixels=None):
    """One record, byte by byte as the publishers describe it: labels, red, green, blue, rows first."""
    pixels = RNG.integers(0, 256, 3072, dtype=np.uint8).tobytes() if pixels is None else pixels
    return bytes(labels) + pixels


def cifar10_files():
    files = {f"data_batch_{i}.bin": record(i) + record(0) for i in range(1, 6)}
    return {**files, "test_batch.bin": record(9) + record(8), "batches.meta.txt": NAMES10.encode()}


def write(folder, files, pack=bytes, ending=""):
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / (name + ending)).write_bytes(pack(data))


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"inside/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_the_layout_is_label_then_red_green_blue_by_rows():
    pixels = bytes([1] * 1024 + [2] * 1024 + [3] * 32 + [4] * 992)
    found = parse_records(record(7, pixels=pixels), "x", 10)
    assert found.labels.tolist() == [7]
    assert found.labels.dtype == np.int64
    image = found.images[0]
    assert (image[0] == 1).all()
    assert (image[1] == 2).all()
    assert (image[2, 0] == 3).all()
    assert (image[2, 1:] == 4).all()


def test_cifar100_counts_the_fine_label():
    found = parse_records(record(19, 99) + record(0, 3), "x", 100)
    assert found.labels.tolist() == [99, 3]
    assert found.images.flags.c_contiguous


@pytest.mark.parametrize(
    ("data", "classes", "pattern"),
    [
        (b"", 10, "0 bytes are not a whole number of records of 3073 bytes"),
        (record(1)[:-1], 10, "3072 bytes are not"),
        (record(1, 2), 10, "whole CIFAR-10 file"),
        (record(1), 100, "records of 3074 bytes"),
        (record(1) + record(10), 10, r"label 10 of record 1 is outside 0\.\.9"),
        (record(20, 5), 100, r"coarse label 20 of record 0 is outside 0\.\.19"),
        (record(1, 100), 100, r"label 100 of record 0 is outside 0\.\.99"),
    ],
)
def test_other_bytes_are_refused(data, classes, pattern):
    with pytest.raises(DataError, match=pattern) as caught:
        parse_records(data, "folder/test.bin", classes)
    assert str(caught.value).startswith("folder/test.bin: ")
    assert "\n" not in str(caught.value)


def test_names_are_lines():
    assert parse_lines(NAMES10.encode(), "x", 10)[9] == "thing9"
    with pytest.raises(DataError, match="x: expected 100 lines with class names, got 10"):
        parse_lines(NAMES10.encode(), "x", 100)


@pytest.mark.parametrize("place", ["cifar-10", "cifar-10-batches-bin", "archive", "gz", "xz"])
def test_cifar10(tmp_path, place):
    files = cifar10_files()
    if place == "archive":
        write_archive(tmp_path / "cifar-10-binary.tar.gz", files)
    elif place in ("gz", "xz"):
        write(tmp_path / "cifar-10", files, {"gz": gzip.compress, "xz": lzma.compress}[place], f".{place}")
    else:
        write(tmp_path / place, files)
    cifar = load("cifar10", tmp_path)
    assert cifar.y.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 9, 8]
    assert (cifar.n_train, cifar.note, cifar.class_names[9]) == (10, "", "thing9")
    assert cifar.images[3].tobytes() == files["data_batch_2.bin"][3074:]


@pytest.mark.parametrize("packed", [False, True])
def test_cifar100_and_its_test_part_alone(tmp_path, packed):
    files = {"train.bin": record(1, 4) + record(2, 5), "test.bin": record(19, 99)}
    if packed:
        write_archive(tmp_path / "cifar-100-binary.tar.gz", files)
        alone = {"test.bin": files["test.bin"]}
        (tmp_path / "alone").mkdir()
        write_archive(tmp_path / "alone" / "cifar-100-binary.tar.gz", alone)
    else:
        write(tmp_path / "cifar-100-binary", files)
        write(tmp_path / "alone" / "cifar-100-binary", {"test.bin": files["test.bin"]})
    whole, part = load("cifar100", tmp_path), load("cifar100", tmp_path / "alone")
    assert (whole.y.tolist(), whole.n_train, whole.note) == ([4, 5, 99], 2, "")
    assert (part.y.tolist(), part.n_train) == ([99], 0)
    assert part.note == "only the published test part of cifar100 was found and used"


def test_a_complete_form_goes_before_a_partial_one(tmp_path):
    files = cifar10_files()
    write(tmp_path / "cifar-10-batches-bin", files)
    write(tmp_path / "cifar-10", {"test_batch.bin": files["test_batch.bin"]})
    assert load("cifar10", tmp_path).n_train == 10
    del files["data_batch_4.bin"]
    write(tmp_path / "b" / "cifar-10", files)
    with pytest.raises(DataError, match=r"cifar10: .*cifar-10 lacks data_batch_4\.bin; see"):
        load("cifar10", tmp_path / "b")


def known_as_published(monkeypatch, files):
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in files.items() if name.endswith(".bin")}
    monkeypatch.setattr(Cifar10, "contents", md5)


def states(root):
    return {check.file.rsplit("/", 1)[-1]: check.state for check in verify("cifar10", root)}


def test_verify_compares_the_binary_files(tmp_path, monkeypatch):
    files = cifar10_files()
    known_as_published(monkeypatch, files)
    write(tmp_path / "cifar-10", files, gzip.compress, ".gz")
    assert set(states(tmp_path).values()) == {"ok"}
    (tmp_path / "cifar-10/data_batch_2.bin.gz").write_bytes(gzip.compress(record(0) * 2))
    (tmp_path / "cifar-10/test_batch.bin.gz").unlink()
    (tmp_path / "cifar-10/batches.meta.txt.gz").write_bytes(gzip.compress(b"one\n"))
    found = states(tmp_path)
    assert found["data_batch_1.bin.gz"] == "ok"
    assert found["data_batch_2.bin.gz"] == found["batches.meta.txt.gz"] == "wrong"
    assert found["test_batch.bin"] == "missing"


def test_verify_looks_into_an_archive_that_is_not_the_published_one(tmp_path, monkeypatch):
    files = cifar10_files()
    known_as_published(monkeypatch, files)
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path, files)
    assert set(states(tmp_path).values()) == {"ok"}
    assert len(states(tmp_path)) == 7
    del files["data_batch_5.bin"]
    files["data_batch_1.bin"] = record(3)
    path.unlink()
    write_archive(path, files)
    found = states(tmp_path)
    assert found["cifar-10-binary.tar.gz: data_batch_1.bin"] == "wrong"
    assert found["cifar-10-binary.tar.gz: data_batch_5.bin"] == "missing"
    path.write_bytes(path.read_bytes()[:5000])
    assert "wrong" in states(tmp_path).values()
    monkeypatch.setitem(Cifar10.contents, path.name, hashlib.md5(path.read_bytes()).hexdigest())
    assert states(tmp_path) == {path.name: "ok"}


@pytest.mark.parametrize("packed", [False, True])
def test_the_test_part_alone_is_no_failure(tmp_path, monkeypatch, packed):
    files = cifar10_files()
    known_as_published(monkeypatch, files)
    alone = {"test_batch.bin": files["test_batch.bin"]}
    if packed:
        write_archive(tmp_path / "cifar-10-binary.tar.gz", alone)
    else:
        write(tmp_path / "cifar-10", alone)
    found = states(tmp_path)
    assert [file for file, state in found.items() if state == "ok"] in (
        ["test_batch.bin"],
        ["cifar-10-binary.tar.gz: test_batch.bin"],
    )
    assert set(found.values()) == {"ok", "absent"}
