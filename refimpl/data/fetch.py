"""Download published data sets: interrupted downloads continue; only checked files get their final name."""

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from refimpl.contracts import nothing
from refimpl.data import places
from refimpl.data.catalog import source_of
from refimpl.data.source import DataSource, Download
from refimpl.data.unpack import LIMIT
from refimpl.data.verify import file_md5, is_published
from refimpl.errors import DataError, InputError

Progress = Callable[[str, int, "int | None"], None]  # file name, bytes so far, bytes in all if known

_TIMEOUT = 30.0
_PIECE = 1 << 16


def fetch(
    name: str, data_dir: str | Path | None = None, progress: Progress = nothing, source: str | None = None
) -> list[Path]:
    """Download what data set `name` lacks under `data_dir` (default: REFIMPL_DATA); return its files.

    `source` is the address of a folder with the published files, instead of the official ones; the
    checksums stay the published ones.

    Existing files with the published bytes, or with the published content packed differently, are left alone;
    an existing file with other content is an error and never overwritten. An interrupted download continues.
    Raises `InputError` for an unknown name and `DataError` naming address and file when no address delivers
    the right bytes.
    """
    published = source_of("fetch", name)
    if not published.downloads:
        raise InputError(f"fetch: the data set {name} has nothing to download")
    root = places.given_root(published, data_dir)
    paths = []
    for download in published.downloads:
        if source is not None:  # the folder of the files, or the address of this one
            file = download.target.rsplit("/", 1)[-1]
            address = source if source.endswith("/" + file) else f"{source.rstrip('/')}/{file}"
            download = download._replace(addresses=(address,))
        paths.append(_fetch_one(published, download, root / download.target, progress))
    return paths


def _fetch_one(source: DataSource, download: Download, target: Path, progress: Progress) -> Path:
    if target.exists():
        if file_md5(target) != download.md5 and not is_published(source, target):
            raise DataError(
                f"{target}: not the published file (md5 {download.md5}); move it away, fetch again"
            )
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"fetch: cannot make the folder {target.parent}: {error.strerror}") from error
    part = target.with_name(target.name + ".part")
    problems = []
    for address in download.addresses:
        try:
            _retrieve(address, part, progress)
            _accept(part, target, download.md5)
            return target
        except (OSError, http.client.HTTPException, DataError) as error:
            code = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else ""
            reason = code or str(error) or type(error).__name__
            problems.append(f"{address}: {reason}".replace("\n", " "))
    raise DataError(f"fetch: {target.name} could not be downloaded: {'; '.join(problems)}")


def _retrieve(address: str, part: Path, progress: Progress) -> None:
    """Append the missing bytes to `part`; start over if the server cannot continue where it ends."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = _open(address, have)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or have == 0:  # 416: nothing lies beyond `have`; the part may be complete
            raise
        return
    with response:
        begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status != 206 or begins is None or int(begins[1]) != have:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None and length.isdigit() else None
        with part.open("ab" if have else "wb") as file:
            while piece := response.read(_PIECE):
                have += len(piece)
                if have > LIMIT:
                    raise DataError(f"more than the {LIMIT} bytes expected at most")
                file.write(piece)
                progress(part.name.removesuffix(".part"), have, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have < total:
        raise DataError(f"connection ended after {have} of {total} bytes; run again to continue")


def _open(address: str, have: int) -> http.client.HTTPResponse:
    if not address.startswith(("https://", "http://")):
        raise DataError("not a web address")
    request = urllib.request.Request(address, headers={"User-Agent": "refimpl"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT)
    return response


def _accept(part: Path, target: Path, md5: str) -> None:
    found = file_md5(part)
    if found != md5:
        part.unlink()
        raise DataError(f"wrong bytes: expected md5 {md5}, got {found}; deleted, run again")
    os.replace(part, target)
