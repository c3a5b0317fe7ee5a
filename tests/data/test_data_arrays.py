"""Anyone's own arrays from an .npz file: taken as they are, or refused in one line."""

import gzip
import io
import lzma
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from refimpl.data import arrays, load, make_nodes
from refimpl.data.partition import Partition
from refimpl.errors import DataError, InputError
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import prepare

RNG = np.random.default_rng(5)
Y = np.array([0, 1, 2, 0, 1, 2])


def save(tmp_path, **content):
    path = tmp_path / "mine.npz"
    np.savez(path, **content)
    return str(path)


def refuse(path, pattern):
    with pytest.raises(DataError, match=pattern) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or "mine.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "expected"), [((6, 5), (1, 1, 5)), ((6, 4, 3), (1, 4, 3)), ((6, 3, 4, 4), (3, 4, 4))]
)
@pytest.mark.parametrize("dtype", ["float32", "float64", ">f8"])
def test_floats_are_taken_as_they_are(tmp_path, shape, expected, dtype):
    x = RNG.standard_normal(shape).astype(dtype)
    data = load(save(tmp_path, x=x, y=Y))
    assert (data.shape, data.classes, data.name) == (expected, 3, "mine.npz")
    assert data.n_train == 6
    np.testing.assert_array_equal(data.x(dtype=np.float64).reshape(shape), x.astype(np.float64))
    np.testing.assert_array_equal(data.x([2], np.float32).ravel(), x[2].astype(np.float32).ravel())
    np.testing.assert_array_equal(data.y, Y)
    assert "as they are, not normalised" in data.note


def test_bytes_are_pixels(tmp_path):
    x = RNG.integers(0, 256, (6, 8, 8), dtype=np.uint8)
    data = load(save(tmp_path, x=x, y=Y[:, None].astype(np.uint8)))
    assert data.images.dtype == np.uint8
    np.testing.assert_array_equal(data.x(dtype=np.float64)[:, 0], x / 255.0)
    assert "divided by 255" in data.note


@pytest.mark.parametrize("dtype", ["int16", "bool", "float16"])
def test_other_numbers_become_float32(tmp_path, dtype):
    x = np.arange(24).reshape(6, 4).astype(dtype)
    data = load(save(tmp_path, x=x, y=Y))
    assert data.images.dtype == np.float32
    np.testing.assert_array_equal(data.images.reshape(6, 4), x.astype(np.float32))


def test_two_parts_are_joined_training_first(tmp_path):
    x = RNG.standard_normal((6, 4))
    path = save(tmp_path, x_train=x[:4], y_train=Y[:4], x_test=x[4:], y_test=Y[4:], extra=np.zeros(3))
    data = load(path)
    assert data.n_train == 4
    np.testing.assert_array_equal(data.images.reshape(6, 4), x)


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ({"a": Y, "b": Y}, "expected arrays x and y .*, found a, b"),
        ({"x": np.ones((6, 2))}, "found x$"),
        ({"x": np.ones((6, 2)), "y": Y[:5]}, "6 samples in x, but 5 labels in y"),
        ({"x": np.ones(6), "y": Y}, r"shape \(n, features\).*got float64 of shape \(6,\)"),
        ({"x": np.ones((0, 2)), "y": Y[:0]}, "not empty; got"),
        ({"x": np.ones((6, 2), complex), "y": Y}, "got complex128"),
        ({"x": np.full((6, 2), "a"), "y": Y}, "got <U1"),
        ({"x": np.ones((6, 8, 8, 3)), "y": Y}, r"channels last; store x\.transpose\(0, 3, 1, 2\)"),
        ({"x": np.ones((6, 8, 8, 4)), "y": Y}, r"channels last; .* numpy\.moveaxis\(x, -1, 1\)"),
        ({"x": np.ones((6, 2)), "y": Y.astype(float)}, "expected y as whole numbers"),
        ({"x": np.ones((6, 2)), "y": np.stack([Y, Y], 1)}, r"got int64 of shape \(6, 2\)"),
        ({"x": np.ones((6, 2)), "y": Y + 1}, "found 1 where 0 was expected; store numpy.unique"),
        ({"x": np.ones((6, 2)), "y": Y * 10**9}, "found 1000000000 where 1 was expected"),
        ({"x": np.ones((6, 2)), "y": Y - 1}, "found -1 where 0"),
        ({"x": np.where(np.eye(6, 2), np.nan, 1), "y": Y}, r"2 of 12 pixels are NaN .* \(0, 0, 0, 0\)"),
        ({"x": np.full((6, 2), np.inf, "f"), "y": Y}, "12 of 12 pixels are NaN or infinite"),
        (
            {"x_train": np.ones((6, 2)), "y_train": Y, "x_test": np.ones((6, 3)), "y_test": Y},
            "x_train and x_test differ in shape",
        ),
    ],
)
def test_unfit_arrays_are_refused(tmp_path, content, pattern):
    refuse(save(tmp_path, **content), pattern)


@pytest.mark.parametrize("shape", [(4, 8, 8), (16, 3, 3), (3, 32, 1), (5, 4, 4)])
def test_channels_first_are_taken_whatever_their_number(tmp_path, shape):
    assert load(save(tmp_path, x=np.ones((6, *shape)), y=Y)).shape == shape


def test_names_and_leftovers_of_other_systems_are_no_hindrance(tmp_path):
    """Keras's mnist.npz under a name in capitals, with a shadow file of macOS and an array of objects."""
    x, path = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8), tmp_path / "MNIST.NPZ"
    with path.open("wb") as file:
        names = np.array(["a", None], object)
        np.savez(file, x_train=x[:4], y_train=Y[:4], x_test=x[4:], y_test=Y[4:], names=names)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/._x_train.npy", b"shadow file")
    data = load(str(path))
    assert (data.shape, data.n_train, len(data)) == ((1, 28, 28), 4, 6)
    assert resolve(dataset=str(path)).model == "mlp"


@pytest.mark.parametrize(("pack", "kind"), [(gzip.compress, "gzip data"), (lzma.compress, "xz data")])
def test_a_packed_file_is_told_as_such(tmp_path, pack, kind):
    path = Path(save(tmp_path, x=np.ones((6, 2)), y=Y))
    path.write_bytes(pack(path.read_bytes()))
    refuse(path, f"found damage .*; it looks like {kind}")


def test_objects_are_refused_and_not_run(tmp_path):
    target = tmp_path / "owned"

    class Evil:
        def __reduce__(self):
            return open, (str(target), "w")

    path = tmp_path / "mine.npz"
    np.savez(path, x=np.array([Evil()], dtype=object), y=Y)
    assert not target.exists()
    refuse(path, r"found damage \(an array of type .\|O.; objects and records are not read\)")
    assert not target.exists()
    path.write_bytes(pickle.dumps(Evil()))
    refuse(path, "found damage")
    assert not target.exists()


def test_damaged_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "mine.npz"
    refuse(path, "no such file; give the path of an .npz file with arrays x and y")
    whole = io.BytesIO()
    np.savez(whole, x=np.ones((6, 50)), y=Y)
    content = whole.getvalue()
    for cut in (0, 10, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:cut])
        refuse(path, "found damage")
    flipped = bytearray(content)
    flipped[400] ^= 1
    path.write_bytes(bytes(flipped))
    refuse(path, "found damage")
    np.save(path.with_suffix(".npy"), np.ones(3))
    path.write_bytes(path.with_suffix(".npy").read_bytes())
    refuse(path, "found damage")
    refuse(tmp_path.rename(tmp_path.with_name("mine.npz")), "cannot read: is a directory")


def test_a_file_that_unpacks_without_end_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "NPZ_LIMIT", 10_000)
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, x=np.zeros((6, 1000)), y=Y)
    assert path.stat().st_size < 1000
    refuse(path, "more than the 10000 admitted")


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "mine.npz"
    header = np.lib.format.magic(1, 0)
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (6, 100), }\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header + len(text).to_bytes(2, "little") + text + bytes(80))
        archive.writestr("y.npy", b"")
    refuse(path, "found damage")


def test_own_sizes_do_not_come_from_a_known_data_set(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, x=RNG.standard_normal((60, 3)), y=np.arange(60) % 4)
    train, target = make_nodes(load(str(path)), Partition(nodes=3, targets=1, support=2))
    assert sum(len(node) for node in train + target) <= 60


def test_a_run_takes_own_data_from_its_preset(tmp_path):
    path = save(tmp_path, x=RNG.standard_normal((400, 6)), y=np.arange(400) % 5)
    config = resolve(dataset=path, nodes=4, targets=2)
    assert (config.dataset, config.model) == (path, "mlp")
    experiment = prepare(config)
    assert len(experiment.train_nodes) == 4
    assert experiment.network.layout.theta.stop == 6 * 100 + 100 + 100 * 5 + 5
    assert "not normalised" in experiment.note
    with pytest.raises(InputError, match=r"unknown dataset 'mine\.npy'; choose one of .*, FILE\.npz"):
        resolve(dataset="mine.npy")
