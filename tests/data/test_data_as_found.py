"""Data as people have them: what sites, browsers, unpackers and other systems make of the published files."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import itertools
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from small_mnist import FILES
from test_data_catalog import blank_png, cifar10_files, write_archive

from refimpl.data import load, places, unpack
from refimpl.data.catalog import source_of
from refimpl.data.sets.cifar import parse_lines
from refimpl.data.sets.omniglot import read_omniglot
from refimpl.data.unpack import decompress, read_members, read_unpacked
from refimpl.data.verify import verify
from refimpl.errors import ConfigError, DataError
from refimpl.experiments.config import read_toml

CIFAR = cifar10_files()
OMNIGLOT = source_of("test", "omniglot")


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def lay(root: Path, files: dict[str, bytes]) -> Path:
    """The files under `root`, with the folders in their names."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def dotted(name: str) -> str:
    return name.replace("-idx", ".idx")


def refuse(pattern, call, *args, error=DataError):
    with pytest.raises(error, match=pattern) as caught:
        call(*args)
    assert "\n" not in str(caught.value)


# --- MNIST

KAGGLE = {dotted(name): data for name, data in FILES.items()}
FOLDERS = {f"{name}/{name}": data for name, data in FILES.items()}
SHADOWS = {f"._{name}": b"shadow file" for name in FILES} | {"__MACOSX/._x": b"shadow file", ".DS_Store": b""}
LAYOUTS = {
    "Kaggle's zip, unpacked": {f"mnist/{name}": data for name, data in (KAGGLE | FOLDERS).items()},
    "its folders alone": {f"mnist/{name}": data for name, data in FOLDERS.items()},
    "its folder in the data folder's": {f"mnist/archive/{name}": data for name, data in KAGGLE.items()},
    "its zip": {"mnist/archive.zip": zipped(KAGGLE | FOLDERS | SHADOWS)},
    "a zip of packed files": {
        "mnist.zip": zipped({f"a/{name}.gz": gzip.compress(data) for name, data in FILES.items()})
    },
    "each file in a zip": {f"mnist/{dotted(n)}.zip": zipped({dotted(n): d}) for n, d in FILES.items()},
    "capitals": {f"MNIST/{name.upper()}.GZ": gzip.compress(data) for name, data in FILES.items()},
    "bzip2": {f"mnist/{name}.bz2": bz2.compress(data) for name, data in FILES.items()},
    "xz under the name of gzip": {f"mnist/{name}.gz": lzma.compress(data) for name, data in FILES.items()},
    "unpacked on the way": {f"mnist/{name}.gz": data for name, data in FILES.items()},
    "packed twice": {f"mnist/{n}.gz": gzip.compress(gzip.compress(d)) for n, d in FILES.items()},
    "a folder in its like": {f"mnist/mnist/{name}": data for name, data in FILES.items()},
    "torchvision's folder in ours": {f"mnist/MNIST/raw/{name}": data for name, data in FILES.items()},
    "with what macOS leaves": {f"mnist/{name}": data for name, data in (FILES | SHADOWS).items()},
}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv(places.ENVIRONMENT, raising=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mnist(tmp_path, layout):
    expected = load("mnist", lay(tmp_path / "plain", {f"mnist/{name}": data for name, data in FILES.items()}))
    found = load("mnist", lay(tmp_path / "found", LAYOUTS[layout]))
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.y, expected.y)
    assert found.n_train == 60
    assert all("no such" not in check.detail for check in verify("mnist", tmp_path / "found"))


def test_a_data_folder_that_is_the_data_sets_own(tmp_path):
    lay(tmp_path / "mnist", FILES)
    assert len(load("mnist", tmp_path / "mnist")) == 80
    lay(tmp_path / "MNIST" / "raw", FILES)
    assert len(load("mnist", tmp_path / "MNIST")) == 80


def test_a_plain_file_goes_before_a_packed_one_and_a_folder(tmp_path):
    lay(tmp_path / "mnist", {f"{name}.gz": b"half a file" for name in FILES} | FILES)
    lay(tmp_path / "mnist", {f"{dotted(name)}/{name}": b"another" for name in FILES})
    assert len(load("mnist", tmp_path)) == 80


def test_another_data_set_in_a_folder_of_its_own_is_not_taken(tmp_path):
    lay(tmp_path / "mnist" / "fashion", FILES)
    refuse("found nothing in", load, "mnist", tmp_path)


def test_folders_without_the_file_in_them_are_missing_files(tmp_path):
    lay(tmp_path / "mnist", FILES)
    (tmp_path / "mnist/train-images-idx3-ubyte").unlink()
    (tmp_path / "mnist/train-images-idx3-ubyte").mkdir()
    refuse("mnist lacks train-images-idx3-ubyte;", load, "mnist", tmp_path)


def test_an_archive_that_lacks_a_file_says_which(tmp_path):
    lay(tmp_path, {"mnist.zip": zipped(dict(list(KAGGLE.items())[:3]))})
    refuse("mnist.zip lacks t10k-labels-idx1-ubyte;", load, "mnist", tmp_path)


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"<!DOCTYPE html>\n<html>not found</html>", "looks like a web page"),
        (b"\n <HTML>", "looks like a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"../.git/annex/objects/x", "not an IDX file"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(40), "a 7-Zip archive"),
        (zipped({"a": b"", "b": b""}), "a zip archive of 2 files where one is expected"),
        (zipped({}), "not an IDX file"),
        (b"", "0 bytes, too short"),
    ],
)
def test_what_is_no_idx_file_is_named(tmp_path, content, pattern):
    lay(tmp_path / "mnist", FILES)
    (tmp_path / "mnist/t10k-images-idx3-ubyte").write_bytes(content)
    refuse(f"t10k-images-idx3-ubyte: .*{pattern}", load, "mnist", tmp_path)


# --- links


def test_files_and_folders_may_be_links(tmp_path):
    lay(tmp_path / "store", FILES)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mnist").symlink_to(tmp_path / "store")
    (tmp_path / "b/mnist").mkdir(parents=True)
    for name in FILES:
        (tmp_path / "b/mnist" / name).symlink_to(Path("../../store") / name)
    assert len(load("mnist", tmp_path / "a")) == len(load("mnist", tmp_path / "b")) == 80


def test_a_link_to_nowhere_and_one_to_itself_are_told(tmp_path):
    lay(tmp_path / "mnist", FILES)
    path = tmp_path / "mnist/t10k-labels-idx1-ubyte"
    path.unlink()
    path.symlink_to("../annex/nothing")
    refuse(f"{path}: a link that leads to no file .../annex/nothing", load, "mnist", tmp_path)
    path.unlink()
    path.symlink_to(path.name)
    refuse(f"{path}: a link that leads to no file", load, "mnist", tmp_path)


def test_folders_that_lead_into_themselves_come_to_an_end(tmp_path):
    (tmp_path / "mnist").mkdir()
    for name in ("mnist", "MNIST", "raw", "archive", *FILES):
        (tmp_path / "mnist" / name).symlink_to(".")
    refuse("found nothing in", load, "mnist", tmp_path)
    root = tmp_path / "loop"
    root.symlink_to(root)
    refuse("loop does not exist", load, "mnist", root)
    assert verify("mnist", root)[0].state == "missing"


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    lay(tmp_path / "mnist", FILES)

    def deny(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", deny)
    refuse(f"mnist: {tmp_path}: cannot be read: Permission denied", load, "mnist", tmp_path)


# --- CIFAR

PYTHON = {f"cifar-10-batches-py/{name}": data for name, data in CIFAR.items()}
MAC_PYTHON = {f"cifar-10-batches-py/._{name}": b"shadow file" for name in CIFAR} | PYTHON
ARCHIVES = {
    "cifar-10-python.tar.gz": tarred(PYTHON),
    "cifar-10-python.tar": tarred(MAC_PYTHON),
    "cifar-10-python.tar.gz.tar": gzip.compress(tarred(PYTHON)),
    "CIFAR-10-PYTHON.TGZ": gzip.compress(tarred(PYTHON)),
    "cifar-10-python.tar.xz": lzma.compress(tarred(PYTHON)),
    "cifar-10-python.tar.bz2": bz2.compress(tarred(PYTHON)),
    "cifar-10-python.zip": zipped(MAC_PYTHON),
    "cifar-10-batches-py.tar.gz": gzip.compress(tarred(PYTHON)),  # as Keras keeps it
    "cifar-10/archive.zip": zipped({name.replace("/", "\\"): data for name, data in PYTHON.items()}),
    "cifar-10-python.tar/cifar-10-python.tar": tarred(PYTHON),  # as 7-Zip unpacks it
    "cifar-10/cifar-10-python.tar.gz": gzip.compress(tarred(PYTHON)[:5000])
    + gzip.compress(tarred(PYTHON)[5000:]),
}


def assert_cifar(root):
    cifar = load("cifar10", root)
    assert cifar.y.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 9, 8]
    assert cifar.n_train == 10
    assert {check.state for check in verify("cifar10", root)} <= {"ok", "wrong", "absent"}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_cifar(tmp_path, name):
    assert_cifar(lay(tmp_path, {name: ARCHIVES[name]}))


@pytest.mark.parametrize(
    "folder",
    [
        "cifar-10-batches-py",
        "cifar-10/cifar-10-batches-py",
        "cifar-10-python/cifar-10-batches-py",
        "cifar-10-batches-py/cifar-10-batches-py",
        "cifar-10-python.tar.gz/cifar-10-batches-py",
        "CIFAR-10/cifar-10-python/cifar-10-batches-py",
    ],
)
def test_folders_of_cifar(tmp_path, folder):
    assert_cifar(lay(tmp_path / folder, CIFAR))


def test_the_binary_version_is_found_beside_the_folder_of_the_other(tmp_path):
    """The two versions' folders are called alike; only files count."""
    records = bytes([3]) + bytes(3072)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    (tmp_path / "cifar-10-batches-py").mkdir()
    lay(tmp_path / "cifar-10-batches-bin", dict.fromkeys(names, records))
    assert load("cifar10", tmp_path).y.tolist() == [3] * 6


def test_what_is_no_archive_is_named(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(b"<html>moved</html>" * 60)
    refuse("not a readable tar or zip archive .*; it looks like a web page", load, "cifar10", tmp_path)
    write_archive(path, {})
    refuse("tar.gz lacks data_batch_1, .*test_batch;", load, "cifar10", tmp_path)
    path.write_bytes(ARCHIVES["cifar-10-python.zip"][:-30])
    refuse("not a readable zip archive", load, "cifar10", tmp_path)


def test_of_two_files_of_one_name_in_an_archive_the_first_counts(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zipped({"a/train": b"one", "b/train.gz": gzip.compress(b"two"), "test": b"three"}))
    assert list(read_members(path, ("train", "test"))) == [("train", b"one"), ("test", b"three")]


# --- Omniglot

SET = "images_background"
DRAWINGS = {f"Greek/character0{n}/000{n}_0{m}.png": blank_png() for n in (1, 2) for m in (1, 2)}
LATIN = {"Latin/character01/0003_01.png": blank_png()}


def assert_omniglot(root, characters=2):
    assert len(load("omniglot", root).class_names) == characters


@pytest.mark.parametrize(
    "folder",
    [
        f"omniglot/{SET}",
        f"omniglot/{SET}/{SET}",
        f"omniglot/python/{SET}",
        f"omniglot/omniglot/{SET}",
        f"omniglot-py/{SET}",
        f"Omniglot/{SET.upper()}",
    ],
)
def test_folders_of_omniglot(tmp_path, folder):
    plain = lay(tmp_path / "plain" / SET, DRAWINGS)
    lay(tmp_path / "root" / folder, DRAWINGS)
    assert_omniglot(tmp_path / "root")
    assert places.required(OMNIGLOT, tmp_path / "root").files[SET] == tmp_path / "root" / folder
    assert OMNIGLOT.digest(tmp_path / "root" / folder) == OMNIGLOT.digest(plain)


@pytest.mark.parametrize("name", [f"omniglot/{SET}/{SET}.zip", f"omniglot/{SET.upper()}.ZIP"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_zips_of_omniglot(tmp_path, name, slash):
    files = {f"{SET}{slash}{n.replace('/', slash)}".replace("png", "PNG"): d for n, d in DRAWINGS.items()}
    shadows = {f"__MACOSX/{SET}/Greek/character01/._0001_01.png": b"shadow file"}
    assert_omniglot(lay(tmp_path, {name: zipped(files | shadows)}))


def test_alphabets_may_be_links_and_lead_back(tmp_path):
    folder = lay(tmp_path / "omniglot" / SET, DRAWINGS)
    lay(tmp_path / "store", LATIN)
    (folder / "Latin").symlink_to(tmp_path / "store" / "Latin")
    (folder / "Greek" / "back").symlink_to(folder)
    assert_omniglot(tmp_path, 3)
    (folder / "Greek" / "character01" / "gone.png").symlink_to("nowhere.png")
    (folder / "Greek" / "character01" / ".ipynb_checkpoints").mkdir()
    (folder / "Greek" / "character01" / ".ipynb_checkpoints" / "x.png").write_bytes(b"an editor's copy")
    refuse("gone.png: a link that leads to no file", load, "omniglot", tmp_path)


def test_an_alphabet_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    folder = lay(tmp_path / SET, DRAWINGS | LATIN)
    whole = Path.iterdir

    def deny(path):
        if path.name == "Latin":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "iterdir", deny)
    refuse("Latin: cannot be read: Permission denied", read_omniglot, folder)


def test_a_character_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / f"{SET}.zip"
    path.write_bytes(zipped(DRAWINGS | {f"{SET}/{name}": data for name, data in DRAWINGS.items()}))
    refuse("another folder has this character too", read_omniglot, path)


# --- packings

TEXT = b"the content of a file\n" * 4000
PACKERS = (gzip.compress, functools.partial(lzma.compress, preset=0), bz2.compress)


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("cuts", [(5,), (0, 40_000), tuple(range(0, 88_000, 400))])
def test_streams_that_follow_one_another_are_one_file(tmp_path, pack, cuts):
    edges = [0, *cuts, len(TEXT)]
    packed = b"".join(pack(TEXT[start:stop]) for start, stop in itertools.pairwise(edges))
    for tail in (b"", bytes(4), bytes(70_000)):
        assert decompress(packed + tail, "x", len(TEXT)) == TEXT
    refuse("^x: .* more than the 87999 bytes", decompress, packed, "x", len(TEXT) - 1)
    refuse("^x: truncated", decompress, packed[:-3], "x", 10**6)
    refuse("^x: 4 unexpected bytes after the", decompress, packed + b"more", "x", 10**6)
    refuse("^x: 70004 unexpected bytes after the", decompress, packed + b"more" + bytes(70_000), "x", 10**6)


def test_streams_of_two_kinds_are_not_one_file():
    refuse("unexpected bytes after the gzip", decompress, gzip.compress(b"a") + bz2.compress(b"b"), "x", 9)


@pytest.mark.parametrize("outer", PACKERS)
def test_packings_around_each_other_are_taken_off_within_the_limit(outer):
    assert decompress(outer(outer(zipped({"a": TEXT}))), "x", len(TEXT)) == TEXT
    refuse("more than the 20000 bytes", decompress, outer(outer(bytes(10**6))), "x", 20_000)
    refuse("more than the 20000 bytes", decompress, outer(zipped({"a": bytes(10**6)})), "x", 20_000)
    four = outer(outer(outer(outer(TEXT))))
    assert decompress(four, "x", 10**6) == outer(TEXT)


def test_the_file_of_a_zip_archive_may_stand_among_leftovers(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zipped({"a/": b"", "a/b": TEXT, "__MACOSX/a/._b": b"shadow", ".DS_Store": b""}))
    assert read_unpacked(path, 10**6) == TEXT
    path.write_bytes(zipped({}) + b"")
    assert read_unpacked(path, 10**6) == zipped({})  # it does not begin as an archive with files does


def test_small_pieces_are_put_together(monkeypatch):
    monkeypatch.setattr(unpack, "_PIECE", 7)
    for pack in PACKERS:
        assert decompress(pack(TEXT[:500]) + bytes(30) + pack(TEXT[500:]), "x", 10**6) == TEXT


# --- text

MARKS = {"utf-8": b"", "utf-8-sig": b"", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_as_windows_writes_it(tmp_path, encoding, end):
    def written(text):
        return MARKS[encoding] + text.replace("\n", end).encode(encoding)

    path = tmp_path / "mine.toml"
    path.write_bytes(written('# Größe\nseed = 3\ndataset = "Ä.npz"\n[fedavg]\neta = 0.5\n'))
    assert read_toml(path) == {"seed": 3, "dataset": "Ä.npz", "fedavg": {"eta": 0.5}}
    names = tuple(f"name {number}" for number in range(10))
    assert parse_lines(written("\n".join(names) + "\n\n"), "x", 10) == names


def test_text_that_is_none_is_told(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes('# Größe\nseed = "ä"\n'.encode("latin-1"))
    refuse("mine.toml: not readable as TOML: 'utf-8' codec", read_toml, path, error=ConfigError)
    refuse("^x: not text with class names", parse_lines, b"\xff\xfeodd", "x", 10)


def test_nothing_is_read_through_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refuse("pipe: not a regular file", read_unpacked, tmp_path / "pipe", 100)
