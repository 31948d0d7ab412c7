"""Tar archives read in place: one pass makes an index of the members, then a clip's bytes are read by offset.

A compressed archive cannot be read by offset. It is decompressed once, into one file of the cache.
An index into gzip (indexed_gzip, rapidgzip) is not used, because it costs more. For a clip of 5 s it decompresses for
10 to 19 ms, twice the time of decoding the clip. It reads 25 to 100 times the clip's bytes from disk. It holds 1 to 3 %
of the archive in the memory of every worker.
"""

import gzip
import os
import posixpath
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from diva.audio.decoding import decode, duration_of
from diva.audio.frames import WHISPER_SECONDS
from diva.errors import AudioFault, UserError
from diva.terminal import progress_open

_GZIP_MAGIC = b"\x1f\x8b"
_COPY_BYTES = 1 << 20
_ROWS_AT_ONCE = 1 << 16

T = TypeVar("T")


class Member(NamedTuple):
    """A file in a tar archive."""

    name: str  # normalized: without a leading ./
    offset: int  # position of its first byte in the archive
    size: int  # bytes


class TornArchive(Exception):
    """The archive ends too early, or is not a tar archive. The message says where."""


def read_members(file: BinaryIO) -> Iterator[Member]:
    """The regular files in a tar archive, in order. The caller may read from `file` between two of them.

    Raises TornArchive after the last complete member if the archive does not end correctly. Python's own reader takes
    any invalid bytes after the first member for the end of the archive.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # each takes a kilobyte of memory
                if member.offset_data + member.size > size:
                    raise TornArchive(f"it breaks off in {member.name}, at byte {size}")
                if member.isreg() and not member.issparse():
                    # Bytes that are not UTF-8 become lone surrogates, which a table cannot hold.
                    name = member.name.encode(errors="surrogateescape").decode(errors="replace")
                    yield Member(posixpath.normpath(name), member.offset_data, member.size)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise TornArchive(f"it breaks off at byte {tar.offset}")
    # ValueError: a header with invalid numbers.
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise TornArchive(f"it cannot be read as a tar archive: {error}") from error


def plain_tar(archive: Path, folder: Path) -> Path:
    """The path of an uncompressed tar: the archive itself, or if it is compressed, its copy `folder`/archive.tar.

    Raises UserError for a compressed archive that is damaged, and for one that cannot be opened.
    """
    try:
        with archive.open("rb") as file:
            if file.read(len(_GZIP_MAGIC)) != _GZIP_MAGIC:
                return archive
    except OSError as error:
        raise UserError(f"cannot read {archive}: {error.strerror}") from error
    inflated = folder / "archive.tar"
    try:
        with (
            progress_open(archive, "inflating") as compressed,
            gzip.GzipFile(fileobj=compressed) as stream,
            inflated.open("wb") as plain,
        ):
            shutil.copyfileobj(stream, plain, _COPY_BYTES)  # reads to the end, so the checksum is verified
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{archive} is damaged; fetch it again: {error}") from error
    return inflated


def identity(file: Path) -> str:
    """A digest that differs between files, and changes when the file is written to."""
    stat = file.stat()
    return f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def write_rows(file: Path, schema: pa.Schema, rows: Iterable[tuple]) -> None:
    """Write rows to a file that `read_table` can map. Only a part of the rows is in memory at a time."""
    rows = iter(rows)
    with pa.ipc.new_file(str(file), schema) as writer:
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            columns = (
                pa.array(values, column.type)
                for values, column in zip(zip(*some, strict=True), schema, strict=True)
            )
            writer.write_batch(pa.record_batch(list(columns), schema=schema))


def read_table(file: Path) -> pa.Table:
    """A table mapped into memory from disk. Processes share its pages."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


@dataclass(frozen=True)
class TarAudio:
    """Clips that are members of tar archives.

    The archive is opened for each clip: that takes 20 µs, and workers share no file handle.
    """

    archives: tuple[Path, ...]
    members: pa.Table  # [n]: archive int32, index into `archives`; name string; offset, size int64
    max_seconds: float = WHISPER_SECONDS

    def waveform(self, row: int) -> np.ndarray:
        return self._heard(row, decode)

    def seconds(self, row: int) -> float:
        return self._heard(row, duration_of)

    def fingerprint(self, rows: np.ndarray) -> str:
        digest = sha256(f"{self.max_seconds}".encode())
        for archive in self.archives:
            digest.update(b"\n" + os.fsencode(identity(archive)))
        members = self.members.take(pa.array(rows))
        for name in ("archive", "offset", "size"):
            digest.update(members[name].to_numpy().tobytes())
        return digest.hexdigest()

    def _heard(self, row: int, hear: Callable[[bytes, float], T]) -> T:
        archive, name, offset, size = (
            self.members[column][int(row)].as_py() for column in ("archive", "name", "offset", "size")
        )
        path = self.archives[archive]
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                encoded = file.read(size)
        except OSError as error:
            raise AudioFault("missing file", f"{name} in {path}: {error.strerror}") from error
        if len(encoded) < size:
            raise AudioFault("damaged audio", f"{name}: {path} was cut off after it was indexed")
        try:
            return hear(encoded, self.max_seconds)
        except AudioFault as fault:
            # The decoder calls a source without a file name "bytes".
            detail = fault.detail.removeprefix("bytes")
            raise AudioFault(fault.reason, f"{name} in {path}{detail}") from fault
