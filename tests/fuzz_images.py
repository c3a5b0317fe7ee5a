"""Whole image files, and hostile ones, for `fuzz_loaders`: IDX, CIFAR's pickles, archives, PNG."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from idx_files import format_idx, read_idx

from refimpl.data.sets.cifar import parse_batch
from refimpl.data.unpack import read_members

RNG = np.random.default_rng(0)
LIMIT = 2**20

IDX = format_idx(RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8))
IDX_BOMBS = (b"\0\0\x08\x03" + b"\xff" * 12, b"\0\0\x08\x03" + struct.pack(">3I", 10**9, 1000, 1) + b"\0" * 9)
BOMB = bytes(64 * LIMIT)


def read_images(path: Path) -> object:
    return read_idx(path, 3, LIMIT)


def batch(protocol: int, **changes: object) -> bytes:
    content = {"data": RNG.integers(0, 256, (2, 3072), dtype=np.uint8), "labels": [3, 7], **changes}
    return pickle.dumps(content, protocol=protocol)


BATCHES = tuple(batch(protocol) for protocol in (2, 3, 4))
NAMES = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}, protocol=2)
PICKLE_BOMBS = (
    b"\x80\x04\x8e" + (10**12).to_bytes(8, "little") + b"abc.",  # a string of 10^12 bytes
    b"(" * 50_000 + b".",
    b"]" + b"q\x00h\x00a" * 10_000 + b".",
    b"\x80\x02" + b"\x8b\xff\xff\xff\x7f" + b"\0" * 9,  # a number of 2^31 bytes
    BATCHES[0].replace(b"M\x00\x0c", b"J\xff\xff\xff\x7f"),  # 2^31 pixels an image
)
RECORDS = bytes([3]) + bytes(3072) + bytes([9]) + bytes(range(256)) * 12


def tar(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


TAR = tar(("a/data_batch_1", BATCHES[0]), ("a/readme", b"text"), ("a/test_batch", BATCHES[2]))


def huge_member(size: int) -> bytes:
    info = tarfile.TarInfo("a/test_batch")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def tight_gzip(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def read_archive(path: Path) -> object:
    found = read_members(path, ("data_batch_1", "test_batch"))
    return [parse_batch(data, str(path), 10) for _, data in found]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(side: int, bits: int, filter_: int = 0) -> bytes:
    stride = (side * bits + 7) // 8
    lines = b"".join(bytes([filter_]) + RNG.bytes(stride) for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def true_checksums(data: bytes) -> bytes:
    """The PNG file with the checksum of every chunk that is whole put right."""
    out, position = bytearray(data), 8
    while position + 12 <= len(out):
        end = position + 8 + int.from_bytes(out[position : position + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[position + 4 : end]))
        position = end + 4
    return bytes(out)


PNGS = tuple(png(8, bits, filter_) for bits, filter_ in ((1, 0), (8, 1), (8, 3), (8, 4)))
PNG_BOMB = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(BOMB))
)
DRAWING = png(105, 1)


def zip_of(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def drawings(data: bytes) -> bytes:
    folder = "set/alphabet/character/"
    return zip_of((f"{folder}1.png", DRAWING), (f"{folder}2.png", true_checksums(data)))


# --- packings of one file, and of an archive


def halves(pack: Callable[[bytes], bytes], data: bytes) -> bytes:
    """Two packed streams, one after the other."""
    return pack(data[: len(data) // 2]) + pack(data[len(data) // 2 :])


PACKERS = (tight_gzip, lzma.compress, bz2.compress)
ZIPPED_IDX = zip_of(("a/images", IDX), ("__MACOSX/._images", b"leftover"), method=zipfile.ZIP_DEFLATED)
ZIP_BOMBS = (
    zip_of(("images", BOMB), method=zipfile.ZIP_DEFLATED),
    zip_of(("images", IDX), ("labels", IDX)),
    zip_of(("images", IDX), method=zipfile.ZIP_LZMA),
)
MEMBERS = (
    ("a/data_batch_1", BATCHES[0]),
    ("a/readme", b"text"),
    ("a\\test_batch.gz", tight_gzip(BATCHES[2])),
)
ARCHIVES = (TAR, *(pack(TAR) for pack in PACKERS), halves(tight_gzip, TAR), zip_of(*MEMBERS))


def read_through_link(path: Path) -> object:
    """The images in the file that a link in a linked folder leads to."""
    folder = path.with_name("linked")
    folder.unlink(missing_ok=True)
    folder.symlink_to(path.parent)
    link = path.with_name("link")
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    return read_images(folder / link.name)
