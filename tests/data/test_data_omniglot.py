"""The PNG decoder and the Omniglot reader, against pictures encoded here from the specification."""

import io
import struct
import zipfile
import zlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.data import unpack
from refimpl.data.png import decode_png
from refimpl.data.sets import omniglot
from refimpl.data.sets.omniglot import read_omniglot, shrink
from refimpl.errors import DataError, RefimplError


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def paeth(a, b, c):
    p = a + b - c
    distances = [(abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c)]
    return min(distances)[2]


def filtered(rows, kinds):
    """Scan lines with the row filters `kinds`, written from the specification pixel by pixel."""
    out = bytearray()
    for r, kind in enumerate(kinds):
        out.append(kind)
        for i in range(rows.shape[1]):
            a = int(rows[r, i - 1]) if i else 0
            b = int(rows[r - 1, i]) if r else 0
            c = int(rows[r - 1, i - 1]) if r and i else 0
            guess = [0, a, b, (a + b) // 2, paeth(a, b, c)][kind]
            out.append((int(rows[r, i]) - guess) % 256)
    return bytes(out)


def encode(grey, bits=8, kinds=None, header=None, lines=None):
    """A PNG of grey (H, W) with values 0..255; for bits = 1 everything above 127 is white."""
    height, width = grey.shape
    rows = grey if bits == 8 else np.packbits(grey > 127, axis=1)
    header = header or struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    lines = filtered(rows, kinds if kinds is not None else [0] * height) if lines is None else lines
    body = zlib.compress(lines)
    cut = len(body) // 2  # two IDAT chunks and one to be ignored
    parts = [
        (b"IHDR", header),
        (b"tIME", bytes(7)),
        (b"IDAT", body[:cut]),
        (b"IDAT", body[cut:]),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 20)),
    bits=st.sampled_from([1, 8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_filter_is_undone(shape, bits, seed):
    rng = np.random.default_rng(seed)
    grey = rng.integers(0, 256, shape, dtype=np.uint8)
    data = encode(grey, bits, rng.integers(0, 5, shape[0]))
    expected = grey if bits == 8 else np.where(grey > 127, 255, 0)
    np.testing.assert_array_equal(decode_png(data, "x", shape), expected)


GREY = np.random.default_rng(0).integers(0, 256, (4, 5), dtype=np.uint8)
PNG = encode(GREY)


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b"", "not a PNG"),
        (b"GIF89a" + PNG[6:], "not a PNG"),
        (PNG[:-1], "truncated PNG"),
        (PNG[:8], "truncated PNG"),
        (PNG[:40], "truncated PNG"),
        (PNG[:20] + b"\x55" + PNG[21:], "checksum of chunk b'IHDR'"),
        (PNG[:8] + PNG[33:], "no header"),
        (PNG[:8] + chunk(b"IHDR", b"short") + PNG[33:], "header of 5 bytes"),
        (encode(GREY.T), "expected an image of 4x5 pixels, got 5x4"),
        (encode(GREY, header=struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)), "4x5 pixels"),
        (encode(GREY, header=struct.pack(">IIBBBBB", 5, 4, 8, 2, 0, 0, 0)), "colour type 2"),
        (encode(GREY, header=struct.pack(">IIBBBBB", 5, 4, 16, 0, 0, 0, 0)), "16 bits"),
        (encode(GREY, header=struct.pack(">IIBBBBB", 5, 4, 8, 0, 0, 0, 1)), "interlace 1"),
        (encode(GREY, lines=bytes(23)), "not the 24 bytes"),
        (encode(GREY, lines=bytes(10**6)), "not the 24 bytes"),
        (encode(GREY, lines=b"\x05" * 24), "unknown row filter 5"),
        (PNG[:33] + chunk(b"IDAT", b"no zlib data") + PNG[-12:], "damaged PNG"),
        (PNG[:33] + chunk(b"IEND", b""), "not the 24 bytes"),
    ],
)
def test_unfit_pictures_are_refused(data, pattern):
    with pytest.raises(DataError, match=pattern) as caught:
        decode_png(data, "zip: 'a.png'", (4, 5))
    assert str(caught.value).startswith("zip: 'a.png'")
    assert "\n" not in str(caught.value)


def test_shrink_is_the_exact_area_average():
    ink = np.random.default_rng(1).random((105, 105)) < 0.3
    small = shrink(ink)
    for i, j in ((0, 0), (3, 17), (13, 5), (27, 27)):
        top, left = Fraction(15 * i, 4), Fraction(15 * j, 4)
        area = Fraction(0)
        for r in range(105):
            for c in range(105):
                height = min(top + Fraction(15, 4), r + 1) - max(top, r)
                width = min(left + Fraction(15, 4), c + 1) - max(left, c)
                if ink[r, c] and height > 0 and width > 0:
                    area += height * width
        assert small[i, j] == area * 16
    assert (shrink(np.ones((105, 105), bool)) == omniglot.FULL_INK).all()
    assert (shrink(np.zeros((105, 105), bool)) == 0).all()


def picture(seed):
    return encode(np.where(np.random.default_rng(seed).random((105, 105)) < 0.2, 0, 255).astype(np.uint8), 1)


FILES = {
    "images_background/Greek/character02/0002_01.png": picture(1),
    "images_background/Greek/character01/0001_02.png": picture(2),
    "images_background/Greek/character01/0001_01.png": picture(3),
    "images_background/Angelic/character01/0003_01.png": picture(4),
    "images_background/Greek/readme.txt": b"ignored",
    "images_background/Greek/character01/._0001_01.png": b"shadow file",
}


def write_zip(path, files, **kwargs):
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root / "images_background"


def test_zip_and_folder_read_the_same_in_path_order(tmp_path):
    zipped = read_omniglot(write_zip(tmp_path / "o.zip", FILES, compression=zipfile.ZIP_DEFLATED))
    folder = read_omniglot(write_folder(tmp_path, FILES))
    assert zipped.names == folder.names == ("Angelic/character01", "Greek/character01", "Greek/character02")
    assert zipped.labels.tolist() == folder.labels.tolist() == [0, 1, 1, 2]
    np.testing.assert_array_equal(zipped.images, folder.images)
    expected = [shrink(decode_png(picture(seed), "x", (105, 105)) == 0) for seed in (4, 3, 2, 1)]
    np.testing.assert_array_equal(zipped.images, expected)
    assert zipped.images.mean() / omniglot.FULL_INK == pytest.approx(0.2, abs=0.02)  # ink is 1, not 0


def refuse(path, pattern):
    with pytest.raises(DataError, match=pattern) as caught:
        read_omniglot(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unfit_archives_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "o.zip"
    refuse(path, "no such file")
    path.write_bytes(b"no zip")
    refuse(path, "not a readable zip")
    write_zip(path, {"a.txt": b""})
    refuse(path, "no files")
    refuse(write_folder(tmp_path, {"images_background/x/readme": b""}), "no files")
    write_zip(path, {**FILES, "s/a/c/bad\nname.png": b"text"})
    refuse(path, r"bad\\nname.png': not a PNG")
    write_zip(path, {"s/a/c/bomb.png": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED)
    refuse(path, "more than the 65536 bytes")
    monkeypatch.setattr(unpack, "COUNT_LIMIT", 5)
    write_zip(path, FILES)
    refuse(path, "more than 5 files")


def test_encrypted_and_strangely_packed_members_are_refused(tmp_path):
    path = write_zip(tmp_path / "o.zip", {"s/a/c/d.png": picture(0)})
    raw = path.read_bytes()
    central = raw.index(b"PK\x01\x02")
    for offset, value in ((8, 1), (10, 99)):  # general flags: encrypted; method: unknown
        changed = bytearray(raw)
        changed[central + offset] = value
        changed[offset - 2] = value  # the local header holds the same two bytes earlier
        path.write_bytes(changed)
        refuse(path, "not a readable zip")


def outcome(call):
    """What `call` returns, or the package's own error; any other exception fails the test."""
    try:
        return call()
    except RefimplError as error:
        return error


@given(
    cut=st.none() | st.integers(0, 120),
    flips=st.lists(st.tuples(st.integers(0, 119), st.integers(0, 7)), max_size=3),
)
def test_any_damage_of_a_picture_gives_it_or_a_clean_error(cut, flips):
    damaged = bytearray(PNG[:cut])
    for byte, bit in flips:
        if byte < len(damaged):
            damaged[byte] ^= 1 << bit
    found = outcome(lambda: decode_png(bytes(damaged), "x", (4, 5)))
    assert "\n" not in str(found) if isinstance(found, RefimplError) else found.shape == (4, 5)


@settings(max_examples=200)
@given(
    cut=st.none() | st.integers(0, 4000),
    flips=st.lists(st.integers(0, 8 * 4000), max_size=3),
    tail=st.booleans(),
)
def test_any_damage_of_an_archive_gives_pictures_or_a_clean_error(tmp_path_factory, cut, flips, tail):
    path = tmp_path_factory.getbasetemp() / "fuzz.zip"
    buffer = io.BytesIO()
    write_zip(
        buffer, {"s/a/c1/d.png": picture(0), "s/a/c2/e.png": picture(1)}, compression=zipfile.ZIP_DEFLATED
    )
    damaged = bytearray(buffer.getvalue()[:cut])
    for flip in flips:
        byte = (len(damaged) - 1 - flip // 8 % 250) if tail else flip // 8  # the directory is at the end
        if 0 <= byte < len(damaged):
            damaged[byte] ^= 1 << flip % 8
    path.write_bytes(damaged)
    found = outcome(lambda: read_omniglot(path))
    assert "\n" not in str(found) if isinstance(found, RefimplError) else len(found.images) in (1, 2)
