"""Read data files, plain or packed with gzip, xz, bzip2 or zip, and named files of tar and zip archives.

All that is read has a limit of bytes. The content of the file decides how it is packed. Its size is checked
before reading and its expansion while decompressing, so that a small hostile file cannot fill the memory.
"""

import bz2
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

from refimpl.errors import DataError
from refimpl.files.npz import COMPRESSIONS, ZIP_DAMAGE
from refimpl.files.sniff import BZIP2, GZIP, XZ, ZIP, is_leftover, looks_like

LIMIT = 256 * 2**20  # bytes of one file, packed or not; CIFAR-100's `train` has 155 million
COUNT_LIMIT = 200_000  # files in one archive; Omniglot's larger one has 20 251
_XZ_MEMORY = 256 * 2**20  # an xz header may ask for a 4 GiB dictionary; no data set needs more than this
_PIECE = 1 << 14  # bytes read at once; small, because a decoder copies what follows the end of its stream
_TAR_LIMIT = 1024 * 2**20  # bytes of a whole unpacked archive; CIFAR's are below 190 million
_ENDINGS = (".gz", ".xz", ".bz2", ".zip", ".tar", ".tgz", ".txz", ".tbz", ".tbz2")
_LAYERS = 3  # how often a file may be packed: a server packs a packed file, a site zips it once more


class _Gzip:
    """The decoder of `zlib` with the interface of the other two: it keeps input that it has not used yet."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


_Decoder = _Gzip | lzma.LZMADecompressor | bz2.BZ2Decompressor


class _Packing(NamedTuple):
    """How a packed stream begins, what it is called, and how a decoder for one is made."""

    magic: bytes
    kind: str
    decoder: Callable[[], _Decoder]


_PACKINGS = (
    _Packing(GZIP, "gzip", _Gzip),
    _Packing(XZ, "xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)),
    _Packing(BZIP2, "bzip2", bz2.BZ2Decompressor),
)
_LONGEST = max(len(packing.magic) for packing in _PACKINGS)


def _packing(head: bytes) -> _Packing | None:
    """The packing of a stream that begins with `head`, or None."""
    return next((packing for packing in _PACKINGS if head.startswith(packing.magic)), None)


class Unpacked:
    """The content of an open file, plain or packed with gzip, xz or bzip2, read in pieces.

    Packed streams may follow one another, as they do after `cat a.gz b.gz` and from packers that work in
    parallel, and zero bytes may pad their ends. Raises `DataError` starting with `who` if a stream is
    damaged, truncated or followed by anything else, and beyond `limit` bytes.
    """

    def __init__(self, file: BinaryIO, who: str, limit: int) -> None:
        self._file, self._who, self._limit, self._left = file, who, limit, limit
        self._ahead = file.read(_LONGEST)
        self._packing = _packing(self._ahead)
        self._decoder = None if self._packing is None else self._packing.decoder()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end."""
        parts: list[bytes] = []
        while size > 0 and (part := self._part(size)):
            parts.append(part)
            size -= len(part)
            self._left -= len(part)
            if self._left < 0:
                packed = "" if self._packing is None else f"{self._packing.kind} data unpacks to "
                raise DataError(f"{self._who}: {packed}more than the {self._limit} bytes expected at most")
        return b"".join(parts)

    def _part(self, size: int) -> bytes:
        """At least one byte, except at the end."""
        if self._packing is None:
            return self._raw(min(size, _PIECE))
        part = b""
        while self._decoder is not None and not part:
            part = self._decoded(self._decoder, self._packing.kind, size)
            if self._decoder.eof:
                self._decoder = self._next_stream(self._decoder.unused_data, self._packing)
        return part

    def _decoded(self, decoder: _Decoder, kind: str, size: int) -> bytes:
        """The output of the decoder for the next piece, which may be empty."""
        raw = self._raw(_PIECE) if decoder.needs_input else b""
        if decoder.needs_input and not raw:
            raise DataError(f"{self._who}: truncated {kind} data; fetch the file again")
        try:
            return decoder.decompress(raw, size)
        except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
            raise DataError(f"{self._who}: damaged {kind} data: {error}; fetch the file again") from error

    def _next_stream(self, unused: bytes, packing: _Packing) -> _Decoder | None:
        """A decoder for the stream that follows the finished one, or None at the end of the file."""
        rest = (unused + self._ahead).lstrip(b"\0")
        while len(rest) < _LONGEST and (more := self._file.read(_PIECE)):
            rest = (rest + more).lstrip(b"\0")
        if rest and not rest.startswith(packing.magic):
            here = self._file.tell()
            extra = len(rest) + self._file.seek(0, io.SEEK_END) - here
            raise DataError(f"{self._who}: {extra} unexpected bytes after the {packing.kind} data")
        self._ahead = rest
        return packing.decoder() if rest else None

    def _raw(self, size: int) -> bytes:
        """Up to `size` bytes of the file as they are."""
        if not self._ahead:
            return self._file.read(size)
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        return taken


def read_file(path: Path, limit: int) -> bytes:
    """The raw bytes of a regular file of at most `limit` bytes; `DataError` names the file otherwise."""
    try:
        if not path.is_file():
            found = "not a regular file" if path.exists() else "no such file"
            if path.is_symlink() and not path.exists():
                found = f"a link that leads to no file ({path.readlink()}); put the file in its place"
            raise DataError(f"{path}: {found}")
        size = path.stat().st_size
        if size > limit:
            raise DataError(f"{path}: {size} bytes, more than the {limit} expected at most")
        with path.open("rb") as file:
            return file.read(size)  # a larger number would be allocated at once
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def decompress(raw: bytes, who: str, limit: int) -> bytes:
    """`raw` unpacked if it is gzip, xz, bzip2 or a zip archive of one file, else `raw` itself.

    Up to three packings around each other are removed. Raises `DataError` starting with `who` if one is
    damaged, truncated, followed by other bytes, or unpacks to more than `limit` bytes.
    """
    for _ in range(_LAYERS):
        if raw.startswith(ZIP):
            ((_, raw),) = read_zip(io.BytesIO(raw), who, limit, lambda names: _only(names, who))
        elif _packing(raw):
            raw = Unpacked(io.BytesIO(raw), who, limit).read(limit + 1)
    if len(raw) > limit:
        raise DataError(f"{who}: {len(raw)} bytes, more than the {limit} expected at most")
    return raw


def read_unpacked(path: Path, limit: int) -> bytes:
    """Content of a plain or packed file, at most `limit` bytes before and after unpacking."""
    return decompress(read_file(path, limit), str(path), limit)


def _only(names: list[str], who: str) -> list[str]:
    if len(names) != 1:
        raise DataError(f"{who}: a zip archive of {len(names)} files where one is expected; unpack it here")
    return names


def read_zip(
    file: Path | BinaryIO, who: str, limit: int, choose: Callable[[list[str]], Iterable[str]]
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the files of a zip archive that `choose` picks from their names, in its order.

    The names have `/` between folders, also if Windows wrote backslashes. Extra files that macOS adds are
    left out. Raises `DataError` starting with `who` for a damaged archive and a file above `limit` bytes.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > COUNT_LIMIT:
                raise DataError(f"{who}: more than {COUNT_LIMIT} files in it")
            named = {entry.filename.replace("\\", "/"): entry for entry in entries}
            files = [name for name in named if not name.endswith("/") and not is_leftover(name)]
            for name in choose(files):
                yield name, _zipped(archive, named[name], f"{who}: {name!a}", limit)
    except DataError:
        raise
    except (*ZIP_DAMAGE, OSError) as error:
        raise DataError(
            f"{who}: not a readable zip archive ({type(error).__name__}); fetch it again"
        ) from error


def _zipped(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, who: str, limit: int) -> bytes:
    if entry.compress_type not in COMPRESSIONS:
        raise NotImplementedError(entry.compress_type)
    if entry.file_size > limit:
        raise DataError(f"{who} has more than the {limit} bytes expected at most")
    with archive.open(entry) as file:
        return file.read(limit)


# --- named files of an archive


def plain_name(name: str) -> str:
    """A file's name without the endings of packers, in lower case, with `-idx` for MNIST's `.idx`.

    Sites, browsers and unpackers change these parts of a name and leave the rest.
    """
    plain = name.lower()
    while plain.endswith(_ENDINGS):
        plain = plain[: plain.rindex(".")]
    return plain.replace(".idx", "-idx")


def read_members(archive: str | Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, unpacked content) of the files whose name, made plain by `plain_name`, is in `wanted`.

    The archive is read in one pass. Of two files with the same name the first counts; files that the archive
    lacks are left out. Raises `DataError` for a damaged archive.
    """
    path, seen = Path(archive), set[str]()
    for inside, data in _members(path, wanted):
        name = plain_name(PurePosixPath(inside).name)
        if name not in seen:
            seen.add(name)
            yield name, decompress(data, f"{path}: {name}", LIMIT)


def _members(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    head = b""
    try:
        with path.open("rb") as raw:
            head = raw.read(64)
            raw.seek(0)
            if head.startswith(ZIP):
                yield from read_zip(raw, str(path), LIMIT, lambda names: _chosen(names, wanted))
                return
            stream = cast(BinaryIO, Unpacked(raw, str(path), _TAR_LIMIT))  # tarfile only ever calls read
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                yield from _from_tar(tar, wanted, str(path))
    except DataError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: not a readable tar or zip archive ({error}){looks_like(head)}; fetch it again"
        ) from error


def _chosen(names: list[str], wanted: tuple[str, ...]) -> list[str]:
    plain = {name: plain_name(PurePosixPath(name).name) for name in names}
    return [name for name in names if plain[name] in wanted and not is_leftover(name)]


def _from_tar(tar: tarfile.TarFile, wanted: tuple[str, ...], who: str) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        if not member.isreg() or not _chosen([member.name], wanted):
            continue
        name = plain_name(PurePosixPath(member.name).name)
        if member.size > LIMIT:
            raise DataError(f"{who}: member {name} has {member.size} bytes, more than the {LIMIT} expected")
        file = tar.extractfile(member)
        data = b"" if file is None else file.read()
        if len(data) != member.size:
            raise DataError(f"{who}: truncated archive, in {name}; fetch it again")
        yield member.name, data
