"""IDX files and their containers: exact content or one clear line."""

import gzip
import hashlib
import lzma
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from idx_files import format_idx, read_idx

from refimpl.data import load
from refimpl.data.idx import parse_idx
from refimpl.data.unpack import decompress, read_unpacked
from refimpl.errors import DataError, RefimplError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
# Written by hand from the format description, not by format_idx.
IDX = bytes.fromhex("00000803 00000002 00000003 00000004") + bytes(range(24))


def refuse(path, pattern, ndim=3, **kwargs):
    with pytest.raises(DataError, match=pattern) as caught:
        read_idx(path, ndim, **kwargs)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_content_decides_not_the_name(tmp_path, pack):
    path = tmp_path / "misleading.txt"
    path.write_bytes(pack(IDX))
    read = read_idx(path, 3)
    np.testing.assert_array_equal(read, IMAGES)
    assert read.dtype == np.uint8
    assert read.flags.writeable


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)))
def test_format_and_parse_are_inverse(array):
    np.testing.assert_array_equal(parse_idx(format_idx(array), "x", array.ndim), array)


def test_format_writes_the_described_bytes():
    assert format_idx(IMAGES) == IDX


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b"", "0 bytes, too short"),
        (IDX[:3], "3 bytes, too short"),
        (IDX[:9], "too short for 3 sizes"),
        (IDX[:-1], r"truncated IDX file: .*\(2, 3, 4\) = 24 bytes, 23 follow"),
        (IDX + b"x", "trailing bytes: .* 25 follow"),
        (b"\x89PNG" + IDX[4:], "not an IDX file"),
        (b"\x00\x00\x0d\x03" + IDX[4:], "type 0x08 .* got 0x0d"),
        (b"\x00\x00\x08\x01" + IDX[4:], "3 axes, got 1; images and labels swapped"),
        (IDX[:4] + struct.pack(">3I", *[2**32 - 1] * 3) + bytes(24), "truncated IDX file"),
    ],
)
def test_unfit_content_is_refused(tmp_path, data, pattern):
    for name, content in (("plain", data), ("packed", gzip.compress(data))):
        (tmp_path / name).write_bytes(content)
        refuse(tmp_path / name, pattern)


def test_no_samples_of_a_size_beyond_any_array_are_refused(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(bytes.fromhex("00000803 00000000 ffffffff ffffffff"))
    refuse(path, "too large for any array")


@pytest.mark.parametrize(("pack", "kind"), [(gzip.compress, "gzip"), (lzma.compress, "xz")])
def test_damaged_containers_are_refused(tmp_path, pack, kind):
    path, packed = tmp_path / "file", pack(IDX)
    path.write_bytes(packed[:-3])
    refuse(path, f"truncated {kind}")
    path.write_bytes(packed + b"more")
    refuse(path, f"4 unexpected bytes after the {kind}")
    path.write_bytes(packed[: len(packed) // 2] + b"\xff\xfe\xfd" + packed[len(packed) // 2 + 3 :])
    refuse(path, f"damaged {kind}|truncated {kind}")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_bomb_stops_at_the_limit(tmp_path, pack):
    path = tmp_path / "bomb"
    path.write_bytes(pack(bytes(10_000_000)))
    refuse(path, "unpacks to more than the 20000 bytes", limit=20_000)


def test_an_xz_header_may_not_ask_for_gigabytes():
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**20}]
    raw = bytearray(lzma.compress(IDX, filters=filters))
    at = raw.index(b"\x21\x01", 12) + 2  # LZMA2's id, one byte of properties: the dictionary size
    raw[at] = 40  # 4 GiB - 1
    header_end = 12 + (raw[12] + 1) * 4
    raw[header_end - 4 : header_end] = struct.pack("<I", zlib.crc32(raw[12 : header_end - 4]))
    with pytest.raises(DataError, match="Memory usage limit"):
        decompress(bytes(raw), "bomb.xz", 1000)


def test_files_that_are_none(tmp_path):
    refuse(tmp_path / "absent", "no such file")
    refuse(tmp_path, "not a regular file")
    (tmp_path / "large").write_bytes(bytes(100))
    refuse(tmp_path / "large", "100 bytes, more than the 99 expected", limit=99)
    with pytest.raises(DataError, match="more than the 3 expected"):
        decompress(b"plain", "x", 3)


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "locked"
    path.write_bytes(IDX)

    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", deny)
    refuse(path, "cannot be read: Permission denied")


def outcome(call):
    """What `call` returns, or the package's own error; any other exception fails the test."""
    try:
        return call()
    except RefimplError as error:
        return error


@given(cut=st.integers(0, 200), flips=st.lists(st.tuples(st.integers(0, 199), st.integers(0, 7)), max_size=3))
def test_any_damage_gives_data_or_a_clean_error(tmp_path_factory, cut, flips):
    path = tmp_path_factory.getbasetemp() / "fuzz"
    for packed in (IDX, gzip.compress(IDX, mtime=0), lzma.compress(IDX)):
        damaged = bytearray(packed[:cut])
        for byte, bit in flips:
            if byte < len(damaged):
                damaged[byte] ^= 1 << bit
        path.write_bytes(damaged)
        found = outcome(lambda: read_idx(path, 3))
        assert "\n" not in str(found) if isinstance(found, RefimplError) else found.size == 24


def test_digits_are_the_published_ones():
    images, labels = load("digits").images, load("digits").y
    assert images.shape == (1797, 1, 8, 8)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert (images.min(), images.max()) == (0, 16)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_equal_the_usual_text_form_byte_for_byte():
    """sha256 of the text in which the set is commonly distributed (64 pixels and the label a line)."""
    images, labels = load("digits").images, load("digits").y
    rows = np.column_stack([images.reshape(1797, 64), labels])
    text = "".join(",".join(map(str, row)) + "\n" for row in rows.tolist())
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"


def test_digits_come_with_their_licence():
    from importlib.resources import files

    note = (files("refimpl.data.digits") / "NOTE.txt").read_text()
    assert "CC BY 4.0" in note
    assert "Alpaydin" in note
    for name in ("images.idx.gz", "labels.idx.gz"):
        header = (files("refimpl.data.digits") / name).read_bytes()[:10]
        assert header[4:8] == bytes(4), "gzip time stamp must be 0"


def test_read_unpacked_is_the_plain_content(tmp_path):
    (tmp_path / "x").write_bytes(b"content")
    assert read_unpacked(tmp_path / "x", 7) == b"content"
