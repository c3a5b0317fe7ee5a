"""CIFAR batches: read as data, never run."""

import collections
import gzip
import io
import lzma
import os
import pickle
import pickletools
import struct
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.data import unpack
from refimpl.data.pickled import read_pickle
from refimpl.data.sets.cifar import parse_batch, parse_names
from refimpl.data.unpack import LIMIT, read_members, read_unpacked
from refimpl.errors import DataError, RefimplError

DATA = np.random.default_rng(7).integers(0, 256, (4, 3072), dtype=np.uint8)
LABELS = [3, 0, 9, 1]


def batch(protocol=2, **changes):
    content = {"batch_label": "x", "labels": LABELS, "data": DATA, "filenames": ["a.png"] * 4}
    return pickle.dumps({**content, **changes}, protocol)


def python2_batch(module="numpy.core.multiarray"):
    """The opcodes of the published files, by hand: byte strings, the old module name, binary put."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    array = (
        b"c" + module.encode() + b"\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01b\x87R"  # not yet filled
    )
    array = array.replace(b"(cnumpy", b"cnumpy")
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = (
        b"(K\x01K\x04M\x00\x0c\x86" + dtype + b"\x89T" + struct.pack("<i", DATA.size) + DATA.tobytes() + b"tb"
    )
    labels = b"]q\x05(" + b"".join(b"K" + bytes([label]) for label in LABELS) + b"e"
    return b"\x80\x02}q\x01(" + short(b"data") + array + state + short(b"labels") + labels + b"u."


def refuse(data, pattern, classes=10):
    with pytest.raises(DataError, match=pattern) as caught:
        parse_batch(data, "folder/data_batch_9", classes)
    assert str(caught.value).startswith("folder/data_batch_9")
    assert "\n" not in str(caught.value)


def check(found):
    np.testing.assert_array_equal(found.images, DATA.reshape(4, 3, 32, 32))
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.labels.dtype == np.int64
    assert found.images.dtype == np.uint8


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_batches_of_every_binary_protocol(protocol):
    check(parse_batch(batch(protocol), "x", 10))


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_python_2_batches(module):
    pickletools.dis(python2_batch(module), out=io.StringIO())  # well-formed by Python's own judgement
    check(parse_batch(python2_batch(module), "x", 10))


def test_byte_string_keys_and_containers(tmp_path):
    content = pickle.dumps({b"data": DATA, b"labels": LABELS}, 3)
    for pack in (bytes, gzip.compress, lzma.compress):
        (tmp_path / "test_batch").write_bytes(pack(content))
        check(parse_batch(read_unpacked(tmp_path / "test_batch", LIMIT), "x", 10))


def test_cifar100_uses_fine_labels():
    data = pickle.dumps({"data": DATA, "fine_labels": [99, 0, 5, 7], "coarse_labels": [1, 2, 3, 4]}, 2)
    np.testing.assert_array_equal(parse_batch(data, "x", 100).labels, [99, 0, 5, 7])
    refuse(data, "no entry 'labels'; is this a CIFAR-10 batch")


def test_names():
    names = [f"n{i}" for i in range(10)]
    assert parse_names(pickle.dumps({"label_names": names}, 2), "x", 10) == tuple(names)
    assert parse_names(pickle.dumps({"fine_label_names": [b"fish"] * 100}, 3), "x", 100) == ("fish",) * 100
    for wrong in (names[:9], "abc", [1] * 10):
        with pytest.raises(DataError, match="class names"):
            parse_names(pickle.dumps({"label_names": wrong}, 2), "x", 10)


class Evil:
    """A pickle of this runs a shell command when loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo gotcha > {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["top", "value", "label", "pixels"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, protocol, place):
    target = tmp_path / "owned"
    evil = Evil(target)
    content = {
        "top": evil,
        "value": {"data": DATA, "labels": LABELS, "batch_label": evil},
        "label": {"data": DATA, "labels": [evil]},
        "pixels": {"data": evil, "labels": LABELS},
    }[place]
    data = pickle.dumps(content, protocol)
    refuse(data, "refused|not admitted")
    assert not target.exists()
    if place == "top":  # the payload is real: Python's own loader does run it
        pickle.loads(data)
        assert target.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cbuiltins\neval\nX\x05\x00\x00\x0020**2\x85R.",
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x02cnumpy\n\\e load\n.",  # no warning about the backslash either
        b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        pickle.dumps(np.float64(1.0), 2),
        pickle.dumps(collections.OrderedDict(), 2),
    ],
)
def test_any_other_name_is_refused(data):
    refuse(data, "refused: the pickle asks for")


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b"", "truncated pickle"),
        (batch()[:-1], "truncated pickle"),
        (batch()[:2000], "damaged pickle"),
        (b"not a pickle", "not a data pickle"),
        (b"\x80\x02I12\n.", "operation INT at position 2 is not admitted"),
        (b"\x80\x02\xff.", "byte 0xff at position 2"),
        (b"\x80\x02.", "damaged pickle"),
        (b"\x80\x02h\x07.", "damaged pickle"),
        (b"\x80\x02}e.", "damaged pickle"),
        (b"\x80\x02}]K\x01s.", "a bytes expected, got list"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "numpy.ndarray is called"),
        (b"\x80\x02cnumpy\nndarray\n}b.", "a Record expected"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "text encoding"),
        (pickle.dumps([1], 2), "pickled dictionary, got list"),
    ],
)
def test_damaged_pickles_are_refused(data, pattern):
    refuse(data, pattern)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"data": DATA[:, :3071]}, r"shape \(n, 3072\), got shape \(4, 3071\)"),
        ({"data": DATA.reshape(4, 3, 32, 32)}, r"got shape \(4, 3, 32, 32\)"),
        ({"data": DATA.astype(np.int16)}, "unsigned bytes .* got 'i2'"),
        ({"data": DATA.astype(object)}, "unsigned bytes .* got 'O8'"),
        ({"data": np.asfortranarray(DATA)}, "C-ordered"),
        ({"data": [1, 2]}, "got list"),
        ({"data": DATA[:3]}, "3 images but 4 labels"),
        ({"labels": [3, 0, 10, 1]}, r"label 10 at position 2 is outside 0..9"),
        ({"labels": [3, 0, 1, -1]}, "label -1 at position 3"),
        ({"labels": [3, 0, 1, 2**500]}, "label of more than 12 digits at position 3"),
        ({"labels": [3, 0, 1, 1.0]}, "list of whole numbers|not admitted"),
        ({"labels": [3, 0, 1, True]}, "list of whole numbers"),
        ({"labels": "3019"}, "list of whole numbers"),
    ],
)
def test_wrong_content_is_refused(changes, pattern):
    refuse(batch(**changes), pattern)


def test_missing_and_empty_entries_are_named():
    refuse(pickle.dumps({"labels": LABELS}, 2), "no entry 'data'")
    refuse(batch(3, data=DATA[:0], labels=[]), "0 images but 0 labels")


def test_sizes_announced_but_not_there_take_no_memory():
    refuse(b"\x80\x02}(U\x04dataT\xff\xff\xff\x7fxxxu.", "damaged pickle")
    refuse(b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "damaged pickle")
    refuse(b"\x80\x02]r\xff\xff\xff\xff.", "pickled dictionary, got list")


def test_deep_nesting_is_survived():
    depth = 100_000
    refuse(b"\x80\x02}" + b"(" * 1 + b")" + b"\x85" * depth + b"K\x01u.", "a bytes expected, got tuple")
    assert isinstance(read_pickle(b"\x80\x02]" + b"]a" * 3 + b".", "x"), list)


def test_a_key_that_takes_for_ever_to_hash_is_refused():
    doubled = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))
    refuse(b"\x80\x02)q\x00" + doubled + b"}h\x3cK\x01s.", "a bytes expected, got tuple")


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_members_of_an_archive(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    write_tar(path, {"c/readme.html": b"hello", "c/test_batch": batch(), "c/data_batch_1": b"one"})
    found = dict(read_members(path, ("test_batch", "data_batch_1", "data_batch_2")))
    assert found == {"test_batch": batch(), "data_batch_1": b"one"}


def test_damaged_archives_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.tar.gz"
    write_tar(path, {"c/test_batch": batch()})
    whole = path.read_bytes()

    def attempt():
        with pytest.raises(DataError, match=str(path)) as caught:
            dict(read_members(path, ("test_batch",)))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in attempt()
    path.write_bytes(b"no archive at all")
    assert "not a readable" in attempt()
    path.write_bytes(gzip.compress(b"no tar in it" * 100))
    assert "not a readable" in attempt()
    path.write_bytes(whole)
    monkeypatch.setattr(unpack, "LIMIT", 1000)
    assert "more than the 1000" in attempt()
    monkeypatch.setattr(unpack, "LIMIT", 10**9)
    monkeypatch.setattr(unpack, "_TAR_LIMIT", 5000)
    assert "unpacks to more than the 5000" in attempt()


def outcome(call):
    """What `call` returns, or the package's own error; any other exception fails the test."""
    try:
        return call()
    except RefimplError as error:
        return error


@settings(max_examples=150)
@given(
    cut=st.none() | st.integers(0, 12500),
    flips=st.lists(st.tuples(st.integers(0, 12499), st.integers(0, 7)), max_size=3),
    head=st.booleans(),
    protocol=st.integers(2, 4),
)
def test_any_damage_gives_data_or_a_clean_error(cut, flips, head, protocol):
    damaged = bytearray(batch(protocol)[:cut])
    for byte, bit in flips:
        byte = byte % 120 if head else byte
        if byte < len(damaged):
            damaged[byte] ^= 1 << bit
    found = outcome(lambda: parse_batch(bytes(damaged), "x", 10))
    if isinstance(found, RefimplError):
        assert "\n" not in str(found)
    else:
        assert found.images.shape[1:] == (3, 32, 32)


@settings(max_examples=60)
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), min_size=1, max_size=4))
def test_any_damage_of_the_archive_gives_data_or_a_clean_error(tmp_path_factory, flips):
    path = tmp_path_factory.getbasetemp() / "fuzz.tar.gz"
    write_tar(path, {"c/batches.meta": pickle.dumps({"label_names": ["a"] * 10}, 2)})
    inner = bytearray(gzip.decompress(path.read_bytes())[:2048])
    for byte, bit in flips:
        inner[byte % 700] ^= 1 << bit
    path.write_bytes(gzip.compress(bytes(inner)))
    found = outcome(lambda: dict(read_members(path, ("batches.meta",))))
    assert isinstance(found, dict) or "\n" not in str(found)
