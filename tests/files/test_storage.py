"""TOML, JSON and array files: equal values are equal bytes, and what is read is checked."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import stat
import threading
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import ConfigError, DataError, InputError, RunError
from refimpl.files import lock
from refimpl.files.storage import json_text, json_value, npz_bytes, read_npz, toml_text, write_whole

# --- TOML

scalars = (
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.integers()
    | st.floats(allow_nan=False)
    | st.booleans()
)
tables = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), scalars | st.lists(scalars))


@given(tables)
def test_toml_reads_back_equal_with_equal_types(table):
    back = tomllib.loads(toml_text(table))
    assert back == table
    assert repr(back) == repr(table)  # tells 1 from 1.0 from True, and 0.0 from -0.0


def test_toml_keeps_nan():
    assert math.isnan(tomllib.loads(toml_text({"x": math.nan}))["x"])


@pytest.mark.parametrize(
    "value", [None, (1, 2), {"a": 1}, np.float64(1.0), np.int64(1), [None], b"x", "\ud800"]
)
def test_toml_refuses_what_would_not_read_back(value):
    with pytest.raises(ConfigError, match="TOML: "):
        toml_text({"key": value})


# --- files that are whole or absent


@pytest.mark.skipif(not lock.CAN_LOCK, reason="the system has no locks")
def test_who_writes_the_same_file_takes_turns(tmp_path, monkeypatch):
    path, sync = tmp_path / "a", os.fsync
    second = threading.Thread(target=write_whole, args=(path, b"second"))

    def meanwhile(handle):
        monkeypatch.setattr(os, "fsync", sync)
        second.start()
        second.join(timeout=0.3)  # it waits, and would otherwise be done by then
        sync(handle)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_whole(path, b"the first")
    second.join()
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["a"]


def test_force_writes_through_links_and_keeps_their_modes(tmp_path):
    """Of a link that leads to a private file, by way of another."""
    target, near, far = tmp_path / "target", tmp_path / "near", tmp_path / "sub" / "far"
    target.write_bytes(b"old")
    target.chmod(0o600)
    far.parent.mkdir()
    far.symlink_to("../target")
    near.symlink_to("sub/far")
    write_whole(near, b"new")
    assert (near.is_symlink(), far.is_symlink()) == (True, True)
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"new", 0o600)
    assert sorted(os.listdir(tmp_path)) == ["near", "sub", "target"]
    assert os.listdir(far.parent) == ["far"]


def test_a_link_to_nothing_makes_what_it_names(tmp_path):
    (tmp_path / "link").symlink_to("made")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "made").read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444, 0o755])
def test_a_replaced_file_keeps_its_mode(tmp_path, mode):
    path, before = tmp_path / "a", os.umask(0o077)
    try:
        path.write_bytes(b"old")
        path.chmod(mode)
        write_whole(path, b"new")
    finally:
        os.umask(before)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode)


def test_a_private_file_is_private_while_it_is_replaced(tmp_path, monkeypatch):
    path, seen, sync = tmp_path / "a", [], os.fsync
    path.write_bytes(b"old")
    path.chmod(0o600)

    def meanwhile(handle):
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        sync(handle)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_whole(path, b"new")
    assert seen[0] == 0o600


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_the_user_asks_for(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_pipes_and_devices_are_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(RunError, match="nobody reads this pipe"):
        write_whole(pipe, b"lost")
    content, read = bytes(range(256)) * 4096, []  # more than a pipe holds
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    while not read:
        with contextlib.suppress(RunError):  # until the reader is there
            write_whole(pipe, content)
            break
    reader.join()
    assert read == [content]
    assert pipe.is_fifo()
    (tmp_path / "null").symlink_to(os.devnull)
    write_whole(tmp_path / "null", b"lost")
    assert sorted(os.listdir(tmp_path)) == ["null", "pipe"]
    assert Path(os.devnull).is_char_device()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full device")
def test_what_cannot_be_written_is_one_kind_of_error(tmp_path):
    for path in (Path("/dev/full"), tmp_path, tmp_path / ("long" * 100)):
        with pytest.raises(RunError, match="cannot write"):
            write_whole(path, b"new")
    assert os.listdir(tmp_path) == []


# --- array files


def test_npz_bytes_depend_on_names_and_values_only(tmp_path):
    arrays = {"b": np.arange(4.0), "a": np.eye(3, dtype=np.float32), "n": np.array("text")}
    turned = dict(reversed(arrays.items()))
    turned["a"] = np.asfortranarray(turned["a"])
    turned["b"] = np.repeat(turned["b"], 2)[::2].astype(">f8")
    content = npz_bytes(arrays)
    assert npz_bytes(turned) == content
    (tmp_path / "a.npz").write_bytes(content)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as back:
        assert set(back.files) == set(arrays)
        for name, array in arrays.items():
            assert back[name].dtype == array.dtype
            assert np.array_equal(back[name], array)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_npz_keeps_scalars_scalar(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz_bytes({"k": np.array(7)}))
    assert read_npz(tmp_path / "a.npz")["k"].shape == ()


def test_npz_refuses_objects():
    with pytest.raises(InputError, match="x must be a numeric array"):
        npz_bytes({"x": np.array([None])})


def test_pickles_are_never_loaded(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    bare, packed = tmp_path / "bare.npz", tmp_path / "packed.npz"
    bare.write_bytes(pickle.dumps(Evil()))
    np.savez(packed, w=np.array([Evil()], dtype=object))
    for path in (bare, packed):
        with pytest.raises(DataError, match=path.name):
            read_npz(path)
    assert not marker.exists()


# --- JSON


def test_json_is_read_back_as_it_was_written():
    content = {"a": [1, 2.5, None, True, "text"], "b": {"c": -1e-300}}
    assert json_value(json_text(content)) == content


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "NaN", "[Infinity]", "1e400", "9" * 10_000, "", "{", b"\xff"]
)
def test_json_nobody_here_would_write_is_one_kind_of_error(text):
    with pytest.raises(ValueError):  # noqa: PT011
        json_value(text)
