"""`refimpl data fetch` against a server on this machine that misbehaves on request."""

from __future__ import annotations

import json
import re

import pytest
import serving
from commands import assert_one_line
from small_mnist import FILES, PARTS, PUBLISHED, md5, write_mnist

from refimpl.cli import app
from refimpl.cli.data import Meter
from refimpl.cli.progress import Progress
from refimpl.data.sets.mnist import Mnist
from refimpl.data.source import Download


@pytest.fixture
def folder(tmp_path):
    """A data folder with the small MNIST, packed otherwise than published."""
    return write_mnist(tmp_path / "folder")


class Handler(serving.Handler):
    """Serves the packed files of the small MNIST under /good; /absent, /wrong and /short misbehave."""

    def do_GET(self):
        how, name = self.path.strip("/").split("/")
        self.server.log.append((how, name, self.headers.get("Range")))
        if how == "absent":
            self.send_error(404)
        else:
            body = b"other bytes" if how == "wrong" else PUBLISHED[name]
            self.send_rest(body, self.first_byte(), cut=how == "short")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Mnist, "contents", {name: md5(data) for name, data in FILES.items()})
    with serving.serving(Handler, monkeypatch) as httpd:
        downloads = [
            Download(f"mnist/{name}", md5(data), (f"{httpd.base}/good/{name}",))
            for name, data in PUBLISHED.items()
        ]
        monkeypatch.setattr(Mnist, "downloads", tuple(downloads))
        yield httpd


def test_fetching_brings_a_data_set_that_can_be_used(refimpl, server, tmp_path):
    code, out, err = refimpl("data", "fetch", "mnist", "--data-dir", "new")
    assert code == 0
    assert out.count(": as published\n") == 4
    assert re.search(r"^fetch  train-images-idx3-ubyte\.gz  (0\.\d+) of \1 MB \(100%\)$", err, re.MULTILINE)
    for name, data in PUBLISHED.items():
        assert (tmp_path / "new/mnist" / name).read_bytes() == data
    assert refimpl("data", "verify", "mnist", "--data-dir", "new")[0] == 0
    shown = refimpl("data", "partition", "--dataset", "mnist", "--data-dir", "new", "--nodes", 3,
                    "--targets", 1, "--node-min", 5, "--node-max", 8, "--support", 4, "--json")  # fmt: skip
    assert json.loads(shown[1])["samples"] == sum(PARTS.values())


def test_what_is_there_is_not_fetched(refimpl, server, folder):
    code, out, err = refimpl("data", "fetch", "mnist", "--data-dir", folder)
    assert (code, err, server.log) == (0, "", [])
    assert out.count("was there already, as published") == 4
    code, out, _ = refimpl("data", "fetch", "digits", "--json")
    assert (code, json.loads(out)["fetched"]) == (0, False)


def test_only_what_is_missing_is_fetched(refimpl, server, folder):
    """Files packed anew count as what they hold."""
    (folder / "mnist/train-labels-idx1-ubyte.gz").unlink()
    code, out, _ = refimpl("data", "fetch", "mnist", "--data-dir", folder, "--json", "-q")
    assert code == 0
    assert json.loads(out)["fetched"] is True
    assert [name for _, name, _ in server.log] == ["train-labels-idx1-ubyte.gz"]


def test_another_source_is_used_instead(refimpl, server, tmp_path):
    code, _, err = refimpl(
        "data", "fetch", "mnist", "--data-dir", "new", "--from", f"{server.base}/elsewhere/", "-q"
    )
    assert (code, err) == (0, "")
    assert {how for how, _, _ in server.log} == {"elsewhere"}
    assert len(server.log) == 4


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("absent", ["train-images-idx3-ubyte.gz could not be downloaded", "HTTP 404"]),
        ("wrong", ["wrong bytes", md5(b"other bytes"), "deleted"]),
        ("short", ["connection ended after", "run again to continue"]),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_no_file_under_its_name(
    refimpl, server, tmp_path, how, words
):
    err = assert_one_line(
        *refimpl("data", "fetch", "mnist", "--data-dir", "new", "--from", f"{server.base}/{how}", "-q")
    )
    for word in words:
        assert word in err
    left = {path.name for path in (tmp_path / "new/mnist").iterdir()}
    assert left == ({"train-images-idx3-ubyte.gz.part"} if how == "short" else set())


def test_an_interrupted_download_goes_on_when_run_again(refimpl, server, tmp_path):
    arguments = ("data", "fetch", "mnist", "--data-dir", "new", "-q")
    assert refimpl(*arguments, "--from", f"{server.base}/short")[0] == app.WRONG_USE
    half = len(PUBLISHED["train-images-idx3-ubyte.gz"]) // 2
    assert refimpl(*arguments)[0] == 0
    assert ("good", "train-images-idx3-ubyte.gz", f"bytes={half}-") in server.log
    assert refimpl("data", "verify", "mnist", "--data-dir", "new")[0] == 0


def test_an_interrupt_says_how_to_go_on(refimpl, server, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Meter, "__call__", interrupted)
    code, out, err = refimpl("data", "fetch", "mnist", "--data-dir", "new")
    assert (code, out) == (app.INTERRUPTED, "")
    assert err == "refimpl: stopped; the same command goes on where it was\n"


def test_a_file_of_the_users_is_never_overwritten(refimpl, server, folder):
    precious = folder / "mnist/train-images-idx3-ubyte.gz"
    precious.write_bytes(b"precious")
    assert "move it away" in assert_one_line(*refimpl("data", "fetch", "mnist", "--data-dir", folder, "-q"))
    assert (precious.read_bytes(), server.log) == (b"precious", [])


class Screen:
    """A stream that remembers; `terminal` says whether it is one."""

    def __init__(self, terminal):
        self.isatty, self.written = (lambda: terminal), []
        self.write, self.flush = self.written.append, (lambda: None)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_download_shows_progress_seldom_enough(terminal):
    screen = Screen(terminal)
    meter = Meter(Progress(0, stream=screen))
    for done in range(0, 200_000_001, 65536):
        meter("big.bin", done, 200_000_000)
    meter("big.bin", 200_000_000, 200_000_000)
    assert "200 of 200 MB (100%)" in screen.written[-1]
    assert 2 <= len(screen.written) <= 200
    if not terminal:
        assert len(screen.written) == 11  # at once, after every tenth, at the end
