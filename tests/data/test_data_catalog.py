"""Data sets by name, from small files written here in the published formats."""

import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from idx_files import format_idx

from refimpl.data import load, places
from refimpl.data.dataset import DataSet
from refimpl.errors import DataError, InputError

RNG = np.random.default_rng(3)
TRAIN = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8), np.array([5, 0, 4, 1, 9, 2], np.uint8)
TEST = RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8), np.array([7, 2, 1], np.uint8)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv(places.ENVIRONMENT, raising=False)


def refuse(pattern, *args, error=DataError):
    with pytest.raises(error, match=pattern) as caught:
        load(*args)
    assert "\n" not in str(caught.value)


def write_mnist(root, folder="mnist", train=TRAIN, test=TEST, pack=gzip.compress, ending=".gz"):
    (root / folder).mkdir(parents=True)
    for part, (images, labels) in (("train", train), ("t10k", test)):
        (root / folder / f"{part}-images-idx3-ubyte{ending}").write_bytes(pack(format_idx(images)))
        (root / folder / f"{part}-labels-idx1-ubyte{ending}").write_bytes(pack(format_idx(labels)))


def cifar_batch(labels, key="labels"):
    data = np.random.default_rng(labels[0]).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return data, pickle.dumps({"data": data, key: labels, "filenames": ["x"] * len(labels)}, 2)


def cifar10_files():
    files = {f"data_batch_{i}": cifar_batch([i, 0])[1] for i in range(1, 6)}
    return {**files, "test_batch": cifar_batch([9, 8])[1]}


def write(folder, files, pack=bytes, ending=""):
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / (name + ending)).write_bytes(pack(data))


def test_digits_need_no_folder():
    digits = load("digits")
    assert digits.shape == (1, 8, 8)
    assert (len(digits), digits.classes, digits.n_train) == (1797, 10, 1797)
    x = digits.x()
    assert x.dtype == np.float32
    assert x.min() == np.float32(-0.3 / 0.4)
    assert x.max() == np.float32(0.7 / 0.4)


@pytest.mark.parametrize(
    ("folder", "pack", "ending"),
    [("mnist", gzip.compress, ".gz"), ("mnist", bytes, ""), ("MNIST/raw", gzip.compress, ".gz")],
)
def test_mnist(tmp_path, folder, pack, ending):
    write_mnist(tmp_path, folder, pack=pack, ending=ending)
    mnist = load("mnist", tmp_path)
    np.testing.assert_array_equal(mnist.images[:, 0], np.concatenate([TRAIN[0], TEST[0]]))
    assert mnist.y.tolist() == [5, 0, 4, 1, 9, 2, 7, 2, 1]
    assert (mnist.n_train, mnist.note) == (6, "")
    expected = (mnist.images[2, 0] / 255.0 - 0.1307) / 0.3081
    np.testing.assert_allclose(mnist.x([2], np.float64)[0, 0], expected, rtol=1e-14)


def test_mnist_files_that_do_not_fit(tmp_path):
    write_mnist(tmp_path / "a", train=(TRAIN[0], TRAIN[1][:5]))
    refuse("train-images.*6 images, but train-labels.*5 labels", "mnist", tmp_path / "a")
    write_mnist(tmp_path / "b", test=(TEST[0], np.array([1, 10, 3], np.uint8)))
    refuse("t10k-labels.*label 10 at position 1 is outside 0..9", "mnist", tmp_path / "b")
    write_mnist(tmp_path / "c", test=(TEST[0][:, :27], TEST[1]))
    refuse("t10k-images.*28x28 pixels", "mnist", tmp_path / "c")
    write_mnist(tmp_path / "d")
    (tmp_path / "d/mnist/t10k-labels-idx1-ubyte.gz").unlink()
    refuse("lacks t10k-labels-idx1-ubyte", "mnist", tmp_path / "d")


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"inside/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("place", ["cifar-10", "cifar-10-batches-py", "archive", "archive in folder", "xz"])
def test_cifar10(tmp_path, place):
    files = cifar10_files()
    if place == "archive":
        write_archive(tmp_path / "cifar-10-python.tar.gz", files)
    elif place == "archive in folder":
        (tmp_path / "cifar-10").mkdir()
        write_archive(tmp_path / "cifar-10" / "cifar-10-python.tar.gz", files)
    elif place == "xz":
        write(tmp_path / "cifar-10", files, lzma.compress, ".xz")
    else:
        write(tmp_path / place, files)
    cifar = load("cifar10", tmp_path)
    assert cifar.y.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 9, 8]
    assert (cifar.n_train, cifar.note, cifar.shape) == (10, "", (3, 32, 32))
    assert cifar.class_names[:2] == ("airplane", "automobile")
    np.testing.assert_array_equal(cifar.images[4:6].reshape(2, 3072), cifar_batch([3, 0])[0])
    blue = (cifar.images[4, 2] / 255.0 - 0.4465) / 0.2616
    np.testing.assert_allclose(cifar.x([4], np.float64)[0, 2], blue, rtol=1e-13)


def test_cifar_that_is_incomplete(tmp_path):
    files = cifar10_files()
    del files["data_batch_3"]
    write(tmp_path / "cifar-10", files)
    refuse("cifar10: .*cifar-10 lacks data_batch_3;", "cifar10", tmp_path)
    write(tmp_path / "b" / "cifar-10", {"readme.html": b""})
    refuse("found nothing", "cifar10", tmp_path / "b")


def test_cifar100_with_only_the_test_part_says_so(tmp_path):
    names = [f"name{i}" for i in range(100)]
    meta = pickle.dumps({"fine_label_names": names, "coarse_label_names": []}, 2)
    write(tmp_path / "cifar-100", {"test": cifar_batch([99, 3], "fine_labels")[1], "meta": meta})
    cifar = load("cifar100", tmp_path)
    assert cifar.note == "only the published test part of cifar100 was found and used"
    assert (cifar.n_train, cifar.classes, cifar.class_names[99]) == (0, 100, "name99")


def test_cifar100_complete_and_without_names(tmp_path):
    parts = {"train": [4, 5, 6], "test": [99, 3]}
    files = {name: cifar_batch(labels, "fine_labels")[1] for name, labels in parts.items()}
    write(tmp_path / "cifar-100-python", files)
    cifar = load("cifar100", tmp_path)
    assert (cifar.note, cifar.n_train, cifar.class_names[7]) == ("", 3, "class 7")
    assert cifar.y.tolist() == [4, 5, 6, 99, 3]


def blank_png():
    """A white 105x105 picture of 1 bit, but for one black row."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    lines = (b"\0" + b"\xff" * 14) * 104 + bytes(15)
    header = struct.pack(">IIBBBBB", 105, 105, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_omniglot(root, part, characters):
    (root / "omniglot").mkdir(exist_ok=True)
    with zipfile.ZipFile(root / "omniglot" / f"{part}.zip", "w") as archive:
        for character in characters:
            archive.writestr(f"{part}/{character}/0001_01.png", blank_png())


def test_omniglot_joins_its_two_sets(tmp_path):
    write_omniglot(tmp_path, "images_background", ["Greek/character02", "Greek/character01"])
    half = load("omniglot", tmp_path)
    assert (half.n_train, half.note) == (2, "only images_background.zip was found and used")
    write_omniglot(tmp_path, "images_evaluation", ["Tifinagh/character01"])
    both = load("omniglot", tmp_path)
    assert both.y.tolist() == [0, 1, 2]
    assert (both.n_train, both.note) == (2, "")
    assert both.class_names == ("Greek/character01", "Greek/character02", "Tifinagh/character01")
    x = both.x(dtype=np.float64)
    assert x.shape == (3, 1, 28, 28)
    np.testing.assert_allclose(x[2, 0, 27], 1 / 3.75, rtol=1e-14)  # one of 3.75 rows is ink
    assert not x[:, :, :27].any()


def test_the_folder_comes_from_argument_or_environment(tmp_path, monkeypatch):
    refuse("mnist: no data folder set; give --data-dir FOLDER or set REFIMPL_DATA", "mnist")
    refuse("absent does not exist", "mnist", tmp_path / "absent")
    refuse("found nothing in .*; looked for mnist/ or MNIST/raw/; give --data-dir", "mnist", tmp_path)
    places_of_cifar10 = (
        "cifar-10/ or cifar-10-batches-py/ or cifar-10-batches-bin/ or "
        "cifar-10-python.tar.gz or cifar-10-binary.tar.gz;"
    )
    refuse(f"looked for {places_of_cifar10}", "cifar10", tmp_path)
    refuse("looked for omniglot/;", "omniglot", tmp_path)
    write_mnist(tmp_path)
    monkeypatch.setenv(places.ENVIRONMENT, str(tmp_path))
    assert len(load("mnist")) == 9
    refuse("absent does not exist", "mnist", tmp_path / "absent")  # the argument wins


def test_unknown_names_are_listed():
    refuse(
        "unknown data set 'emnist'; did you mean mnist\\? choose one of cifar10",
        "emnist",
        error=InputError,
    )


def make(images=None, y=None, **kwargs):
    images = np.zeros((2, 3, 2, 2), np.uint8) if images is None else images
    y = np.array([0, 1]) if y is None else y
    options = {"mean": (0.0,) * 3, "std": (1.0,) * 3, **kwargs}
    return DataSet("mine", images, y, ("a", "b"), **options)


def test_normalisation_is_by_channel_and_rounded_once():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    data = make(images, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), scale=10.0)
    expected = (images / 10.0 - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape(
        [1.0, 2.0, 4.0], (3, 1, 1)
    )
    np.testing.assert_array_equal(data.x(dtype=np.float64), expected)
    np.testing.assert_array_equal(data.x([1, 0, 1]), expected.astype(np.float32)[[1, 0, 1]])
    assert data.x([1]).flags.c_contiguous
    assert not np.shares_memory(data.x(), data.x())
    with pytest.raises(InputError, match="float32 or float64, got float16"):
        data.x(dtype=np.float16)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"images": np.zeros((2, 3, 2, 2), np.int16)}, "uint8, float32 or float64, got int16"),
        ({"images": np.full((2, 3, 2, 2), [[np.nan], [1]])}, r"12 of 24 .* first at position \(0, 0, 0, 0\)"),
        ({"images": np.zeros((2, 3, 2), np.uint8)}, "uint8"),
        ({"y": np.array([0])}, "as many int64 labels"),
        ({"y": np.array([0.0, 1.0])}, "as many int64 labels"),
        ({"images": np.zeros((0, 3, 2, 2), np.uint8), "y": np.zeros(0, np.int64)}, "at least one"),
        ({"y": np.array([0, 2])}, r"labels from 0 to 2, expected 0\.\.1"),
        ({"y": np.array([-1, 1])}, "labels from -1"),
        ({"mean": (0.0,)}, "each of 3 channels"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changes, pattern):
    with pytest.raises(DataError, match=pattern):
        make(**changes)


def test_repr_is_short():
    assert repr(make()) == "DataSet('mine', 2 images (3, 2, 2), 2 classes)"
