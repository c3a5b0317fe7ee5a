"""Download and verification, against a server on this machine that misbehaves on request."""

import gzip
import hashlib
import re

import pytest
import serving

from refimpl.contracts import nothing
from refimpl.data import fetch as fetch_module
from refimpl.data.catalog import source_of
from refimpl.data.fetch import fetch
from refimpl.data.sets.mnist import Mnist
from refimpl.data.source import DataSource, Download, Form
from refimpl.data.verify import verify
from refimpl.errors import DataError, InputError
from refimpl.registry import DATASETS

CONTENT = bytes(range(256)) * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(serving.Handler):
    """Serves CONTENT; the path says how: /good, /absent, /wrong, /short, /no-range, /shifted, /chunkless."""

    def do_GET(self):
        how = self.path.strip("/")
        self.server.log.append((how, self.headers.get("Range")))
        if how == "absent":
            self.send_error(404)
            return
        body = CONTENT[::-1] if how == "wrong" else CONTENT
        start = 0 if how == "no-range" else self.first_byte()
        claimed = start + 1 if how == "shifted" else start
        self.send_rest(body, start, claimed, sized=how != "chunkless", cut=how == "short")


@pytest.fixture
def server(monkeypatch):
    with serving.serving(Handler, monkeypatch) as httpd:
        yield httpd


class Toy(DataSource):
    """One file, to be downloaded from the server of this test."""

    forms = (Form(("toy",), ("file.bin",)),)


def fetch_toy(root, download, progress=nothing):
    DATASETS.classes()["toy"] = Toy
    try:
        Toy.downloads = (download,)
        return fetch("toy", root, progress)
    finally:
        del DATASETS.classes()["toy"]


def run(server, root, *hows, progress=nothing):
    addresses = tuple(f"{server.base}/{how}" for how in hows)
    return fetch_toy(root, Download("toy/file.bin", MD5, addresses), progress)


def fail(server, root, *hows):
    with pytest.raises(DataError) as caught:
        run(server, root, *hows)
    assert "\n" not in str(caught.value)
    assert not (root / "toy/file.bin").exists()
    return str(caught.value)


def part(root):
    return root / "toy/file.bin.part"


@pytest.mark.parametrize("how", ["good", "chunkless"])
def test_a_file_arrives_whole_with_progress(server, tmp_path, how):
    seen = []
    (path,) = run(server, tmp_path, how, progress=lambda *args: seen.append(args))
    assert path == tmp_path / "toy/file.bin"
    assert path.read_bytes() == CONTENT
    assert not part(tmp_path).exists()
    assert seen[-1] == ("file.bin", len(CONTENT), len(CONTENT) if how == "good" else None)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    run(server, tmp_path, "good")
    run(server, tmp_path, "good")
    assert len(server.log) == 1


def test_a_different_file_is_not_overwritten(server, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/file.bin").write_bytes(b"precious")
    with pytest.raises(DataError, match="not the published file"):
        run(server, tmp_path, "good")
    assert (tmp_path / "toy/file.bin").read_bytes() == b"precious"
    assert server.log == []


def test_an_interrupted_download_is_continued(server, tmp_path):
    message = fail(server, tmp_path, "short")
    assert f"ended after {len(CONTENT) // 2} of {len(CONTENT)} bytes; run again to continue" in message
    assert part(tmp_path).read_bytes() == CONTENT[: len(CONTENT) // 2]
    (path,) = run(server, tmp_path, "good")
    assert path.read_bytes() == CONTENT
    assert server.log[-1] == ("good", f"bytes={len(CONTENT) // 2}-")


def test_the_next_address_continues_where_the_first_ended(server, tmp_path):
    run(server, tmp_path, "absent", "short", "good")
    assert server.log == [("absent", None), ("short", None), ("good", f"bytes={len(CONTENT) // 2}-")]


@pytest.mark.parametrize("how", ["no-range", "shifted"])
def test_a_server_that_cannot_continue_is_not_trusted_to(server, tmp_path, how):
    fail(server, tmp_path, "short")
    if how == "no-range":
        (path,) = run(server, tmp_path, how)
        assert path.read_bytes() == CONTENT
    else:  # it sends a tail and calls it something else: never glued to what is there
        assert "wrong bytes" in fail(server, tmp_path, how)
        assert not part(tmp_path).exists()


def test_a_complete_part_needs_only_its_checksum(server, tmp_path):
    part(tmp_path).parent.mkdir()
    part(tmp_path).write_bytes(CONTENT)
    run(server, tmp_path, "good")  # the server answers 416
    assert (tmp_path / "toy/file.bin").read_bytes() == CONTENT


def test_wrong_bytes_are_deleted(server, tmp_path):
    message = fail(server, tmp_path, "wrong")
    assert f"expected md5 {MD5}, got {hashlib.md5(CONTENT[::-1]).hexdigest()}" in message
    assert not part(tmp_path).exists()


def test_every_failed_address_is_named(server, tmp_path):
    message = fail(server, tmp_path, "absent", "wrong")
    assert message.startswith("fetch: file.bin could not be downloaded: http://127.0.0.1:")
    assert "/absent: HTTP 404; " in message
    assert "/wrong: wrong bytes" in message


def test_a_download_without_end_is_cut(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "LIMIT", 100_000)
    assert "more than the 100000 bytes" in fail(server, tmp_path, "good")


def test_nobody_listening_and_no_web_address(server, tmp_path):
    def attempt(address):
        with pytest.raises(DataError, match=r"file\.bin could not be downloaded"):
            fetch_toy(tmp_path, Download("file.bin", MD5, (address,)))

    attempt("http://127.0.0.1:9/x")
    (tmp_path / "secret").write_bytes(CONTENT)
    attempt(f"file://{tmp_path}/secret")


def test_bad_arguments(server, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="data set 'emnist'; did you mean mnist\\? choose one of cifar10"):
        fetch("emnist", tmp_path)
    monkeypatch.delenv("REFIMPL_DATA", raising=False)
    with pytest.raises(DataError, match="no data folder set"):
        fetch("mnist")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot make the folder"):
        run(server, tmp_path / "file", "good")


@pytest.mark.parametrize("name", DATASETS)
def test_what_is_published_is_well_formed(name):
    source = source_of("test", name)
    for download in source.downloads:
        assert re.fullmatch("[0-9a-f]{32}", download.md5)
        assert all(address.startswith("https://") for address in download.addresses)
        assert all(address.endswith(download.target.split("/")[-1]) for address in download.addresses)
    assert source.contents
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in source.contents.values())
    assert {file for form in source.forms for file in form.files} <= set(source.contents)


def states(name, root):
    return {check.file.removeprefix(str(root) + "/"): check.state for check in verify(name, root)}


def test_verify_the_embedded_digits():
    assert [check.state for check in verify("digits")] == ["ok", "ok"]


def test_verify_judges_content_not_container(tmp_path, monkeypatch):
    contents = {"a": hashlib.md5(b"A").hexdigest(), "b": hashlib.md5(b"B").hexdigest(), "c": MD5, "d": MD5}
    monkeypatch.setattr(Mnist, "contents", contents)
    monkeypatch.setattr(Mnist, "forms", (Form(("mnist",), ("a", "b"), ("c", "d"), extra=("e",)),))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist/a").write_bytes(b"A")
    (tmp_path / "mnist/b.gz").write_bytes(gzip.compress(b"B"))
    (tmp_path / "mnist/c.gz").write_bytes(gzip.compress(b"not C"))
    expected = {
        "mnist/a": "ok",
        "mnist/b.gz": "ok",
        "mnist/c.gz": "wrong",
        "mnist/d": "missing",
        "mnist/e": "absent",
    }
    assert states("mnist", tmp_path) == expected
    (tmp_path / "mnist/b.gz").write_bytes(gzip.compress(b"B")[:-2])
    assert states("mnist", tmp_path)["mnist/b.gz"] == "wrong"


def test_verify_an_archive_and_an_empty_folder(tmp_path):
    assert states("cifar100", tmp_path) == {"cifar-100": "missing"}
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"other")
    assert states("cifar100", tmp_path) == {"cifar-100-python.tar.gz": "wrong"}
    with pytest.raises(InputError, match="unknown data set"):
        verify("emnist", tmp_path)


def test_pictures_are_recognised_in_zip_and_folder(tmp_path):
    import zipfile

    files = {"set/a/c/2.png": b"two", "set/a/c/1.png": b"one"}
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
    source = source_of("test", "omniglot")
    digest = source.digest(tmp_path / "set.zip")
    assert digest == source.digest(tmp_path / "set")
    (tmp_path / "set/a/c/1.png").write_bytes(b"One")
    assert digest != source.digest(tmp_path / "set")
