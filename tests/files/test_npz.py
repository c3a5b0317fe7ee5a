"""Array archives as data: what NumPy writes comes back, what a header only claims is refused."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from strategies import examples

from refimpl.files.npz import DamageError, read_headers, read_members

LIMIT = 2**20
dtypes = st.one_of(
    st_numpy.boolean_dtypes(),
    st_numpy.integer_dtypes(),
    st_numpy.unsigned_integer_dtypes(),
    st_numpy.floating_dtypes(),
    st_numpy.complex_number_dtypes(),
    st_numpy.unicode_string_dtypes(max_len=5),
)
arrays = dtypes.flatmap(lambda dtype: st_numpy.arrays(dtype, st_numpy.array_shapes(min_dims=0, min_side=0)))


@given(arrays, st.sampled_from("CF"), st.sampled_from(((1, 0), (2, 0), (3, 0))), st.booleans())
@examples(150)
def test_what_numpy_writes_comes_back(tmp_path_factory, array, order, version, packed):
    array = np.asarray(array, order=order)
    content, path = io.BytesIO(), tmp_path_factory.mktemp("npz") / "a.npz"
    np.lib.format.write_array(content, array, version, allow_pickle=False)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        archive.writestr("name.npy", content.getvalue())
        archive.writestr("readme.txt", "not an array")
    ((name, back),) = read_members(path, LIMIT)
    assert name == "name"
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


def write(path, header: bytes, payload: bytes = bytes(24), lead: bytes = b"\x93NUMPY\1\0"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", lead + len(header).to_bytes(2, "little") + header + payload)
    return path


def test_headers_of_other_writers_are_read(tmp_path):
    header = b'{"shape":(3L,),"fortran_order":False,"descr":"<f8"}'
    ((_, array),) = read_members(write(tmp_path / "a.npz", header), LIMIT)
    assert array.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("header", "pattern"),
    [
        (
            b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}",
            "claims 8000000000000 bytes but has 24",
        ),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}", "claims 16 bytes but has 24"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}", "damaged header"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (3 3,)}", "damaged shape"),
        (b"{'descr': '<f8', 'fortran_order': False}", "incomplete header"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,)", "damaged header"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", "objects"),
        (b"{'descr': '<f3', 'fortran_order': False, 'shape': (8,)}", "does not exist"),
        (b"{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,)}", "type '<U0'"),
        (b"{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3,)}", "objects or records"),
        (b"{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': (3,)}", "damaged header"),
        (b"{" + b" " * 5000 + b"}", "header of 5002 bytes"),
    ],
)
def test_headers_that_claim_something_else_are_refused(tmp_path, header, pattern):
    with pytest.raises(DamageError, match=pattern):
        list(read_members(write(tmp_path / "a.npz", header), LIMIT))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"hello", "File is not a zip file"),
        (b"\x93NUMPY", "a single array, not an archive"),
    ],
)
def test_what_is_no_archive_is_told_exactly(tmp_path, content, line):
    (tmp_path / "a.npz").write_bytes(content)
    for read in (read_headers, lambda path: list(read_members(path, LIMIT))):
        with pytest.raises(DamageError) as caught:
            read(tmp_path / "a.npz")
        assert str(caught.value) == line


def test_an_array_of_other_bytes_than_its_checksums_is_told_exactly(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.full(3, 7.5))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content.replace(np.float64(7.5).tobytes(), bytes(8)))
    with pytest.raises(DamageError) as caught:
        list(read_members(tmp_path / "a.npz", LIMIT))
    assert str(caught.value) == "Bad CRC-32 for file 'x.npy'"


def test_members_larger_than_admitted_are_refused_before_they_are_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(LIMIT))
    with pytest.raises(DamageError, match="more than the 1048576 admitted"):
        list(read_members(tmp_path / "a.npz", LIMIT))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("damaged", [False, True])
def test_compressions_that_numpy_does_not_use_are_refused_before_they_are_opened(tmp_path, method, damaged):
    """Of their decoders: LZMA's takes the memory its header claims, and their errors are their own."""
    content, path = io.BytesIO(), tmp_path / "a.npz"
    np.save(content, np.arange(1000))
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", content.getvalue())
    if damaged:
        broken = bytearray(path.read_bytes())
        broken[40:60] = b"\xff" * 20  # the first of what is compressed
        path.write_bytes(bytes(broken))
    for read in (read_headers, lambda path: list(read_members(path, LIMIT))):
        with pytest.raises(DamageError, match=f"compression of type {method}"):
            read(path)


def test_a_file_that_is_not_there_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_members(tmp_path / "a.npz", LIMIT))
