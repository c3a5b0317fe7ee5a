"""A complete Flower app folder: the job, its two apps, settings and a page of exact commands."""

from __future__ import annotations

from dataclasses import fields
from importlib import resources
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from refimpl.engine import QUIET
from refimpl.engine.job import Job
from refimpl.engine.rounds import Patience
from refimpl.errors import InputError
from refimpl.files.storage import toml_text, write_whole
from refimpl.registry import keys_of

FILES = {  # the files with a template, and where they go
    "README.txt": "README.md",
    "pyproject.txt": "pyproject.toml",
    "refimpl_app.txt": "refimpl_app.py",
    "flwr-clientapp.txt": "bin/flwr-clientapp",
}
OWN_FILE = (
    "an .npz file of its own",
    """Write the node's samples with `np.savez("mine.npz", x=x, y=y)`. `x` has shape (n, @SHAPE@): bytes,
which are divided by 255, or floating-point numbers, which are taken as they are (normalise them as all nodes
have agreed). `y` has whole numbers from 0 to @MOST@; a node need not have all classes. All samples are used
for training; a file with `x_train`, `y_train`, `x_test` and `y_test` keeps its test samples out of it.""",
    "DATA=$PWD/mine.npz",
)
DATA_FOLDER = (
    "a data folder",
    """`job.toml` names the data set @DATASET@, which every node has in a folder (see `refimpl data --help`).
The node's number and the seed say which samples it takes. That is for experiments. Where nodes have
samples of their own, write this folder with `--shape` and `--classes`.""",
    'DATA="${REFIMPL_DATA:-$PWD}"',
)


class Address(NamedTuple):
    """Where nodes reach the server."""

    host: str = "localhost"
    port: int = 8000

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address in `HOST:PORT`."""
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(f"--address: expected HOST:PORT, such as localhost:8000, got {text!r}")
        return cls(host, int(port))

    @property
    def names(self) -> str:
        """For whom the server's certificate is valid; the server reaches itself as localhost."""
        try:
            own = f"IP:{ip_address(self.host)}"
        except ValueError:
            own = f"DNS:{self.host}"
        return ",".join(dict.fromkeys([own, "DNS:localhost", "IP:127.0.0.1"]))


def write_app(folder: Path, job: Job, patience: Patience, address: Address) -> None:
    """Write the app into `folder`, which must be new or empty; raises `InputError` otherwise."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not an empty folder; choose another one")
    settings = {"out": "run", **{item.name: getattr(patience, item.name) for item in fields(patience)}}
    words = _words(job, address, settings)
    contents = {
        "job.toml": job.text(),
        "environment.sh": _environment(address),
    }
    templates = resources.files("refimpl.engine") / "app"
    for template, name in FILES.items():
        contents[name] = (templates / template).read_text(encoding="utf-8")
    for name, text in contents.items():
        for word, value in words.items():
            text = text.replace(f"@{word}@", value)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    (folder / "bin" / "flwr-clientapp").chmod(0o755)


def _words(job: Job, address: Address, settings: dict[str, object]) -> dict[str, str]:
    """What stands in the templates for each word between two signs @."""
    title, data, variable = OWN_FILE if job.own else DATA_FOLDER
    help_ = {"out": "run folder of the server", **{name: one.help for name, one in keys_of(Patience).items()}}
    local = address.host in ("localhost", "127.0.0.1")
    return {
        "DATA_TITLE": title,
        "DATA_VARIABLE": variable,
        "DATA": data,
        "NODES": str(job.config.nodes),
        "LAST": str(job.config.nodes - 1),
        "HOST": address.host,
        "PORT": str(address.port),
        "BIND": address.host if local else "0.0.0.0",
        "SAN": address.names,
        "OUT": str(settings["out"]),
        "SHAPE": ", ".join(map(str, job.shape)),
        "MOST": str(job.classes - 1),
        "DTYPE": job.config.dtype,
        "DATASET": job.config.dataset,
        "CONFIG": toml_text(settings),
        "SETTINGS": "\n".join(f"| `{name}` | {help_[name]} | {value} |" for name, value in settings.items()),
    }


def _environment(address: Address) -> str:
    """What is sourced before all commands: Flower wants the certificate's path from the root."""
    quiet = "".join(f"export {name}={value}\n" for name, value in QUIET.items())
    return f"""# Source this file in the folder it is in.
{quiet}export FLWR_HOME="$PWD/.flwr"
mkdir -p .flwr
cat > .flwr/config.toml <<END
[superlink]
default = "federation"

[superlink.federation]
address = "{address.host}:{address.port}"
root-certificates = "$PWD/tls/ca.pem"
END
"""
