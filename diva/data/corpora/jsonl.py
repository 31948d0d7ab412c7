"""A JSONL manifest: one JSON object per line with `audio` (a path), `text`, and `duration` in seconds if known.

With `offset` (seconds) the clip is a segment of the file, as in NeMo's manifests: it starts at `offset` and is
`duration` long, or ends with the file. NeMo's key `audio_filepath` means the same as `audio`.
"""

import codecs
import json
import math
import os
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from diva.audio.frames import WHISPER_SECONDS
from diva.data.manifest import AudioFiles, Manifest, Skip, list_files, named_columns, sound_clips
from diva.errors import UserError

# Bytes per block. A block that the fast parser may read wrongly is read line by line.
_BLOCK_BYTES = 1 << 20
# JSON escapes can hold half of a surrogate pair, which is not a character.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Keys that select a part of the audio and are not supported.
UNREAD = ("start", "end", "begin", "start_time", "end_time", "begin_time", "channel", "channel_selector")
_NEMO = "_manifest.json"
_NUMBERS = ("duration", "offset")
_AS_TEXT = (pa.string(), pa.null(), pa.int64(), pa.bool_())


class JsonlCorpus:
    """A corpus of JSONL manifests.

    `manifests` maps each split to its file. It may also be a folder with files SPLIT.jsonl or SPLIT_manifest.json.
    A path in `audio` is absolute, or relative to the manifest's folder. It may start with ~ or file://. Its Unicode
    normal form may differ from that of the file name.
    Every other key becomes a column of strings. A line with one of the keys UNREAD is skipped.
    Raises UserError if a file is missing.
    """

    def __init__(
        self, manifests: Mapping[str, str | Path] | str | Path, max_seconds: float = WHISPER_SECONDS
    ):
        if isinstance(manifests, str | Path):
            folder = Path(manifests).expanduser()
            nemo = {file.name.removesuffix(_NEMO): file for file in sorted(folder.glob(f"*{_NEMO}"))}
            self.files = nemo | {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
            if not self.files:
                raise UserError(
                    f"{folder} is no folder that holds a file SPLIT.jsonl or SPLIT_manifest.json, such as train.jsonl"
                )
        else:
            self.files = {split: Path(file).expanduser() for split, file in manifests.items()}
        self.max_seconds = max_seconds

    def manifest(self, split: str) -> Manifest:
        """The clips of a split. Raises UserError for an unknown split; the message lists the existing ones."""
        if split not in self.files:
            raise UserError(f"no split {split!r} in this corpus, there are: {', '.join(self.files)}")
        file = self.files[split]
        if not file.is_file():
            raise UserError(f"no file {file}, given for the split {split!r}")
        skipped: list[Skip] = []
        columns = _read(file, skipped)
        seconds, offsets = (columns.pop(name).to_numpy() for name in _NUMBERS)
        speaker = "speaker" if "speaker" in columns else None
        columns = named_columns(columns, clip_id="audio", text="text", speaker=speaker)
        columns["duration"] = pa.chunked_array([seconds]).cast(pa.float32())
        paths, missing = _find_files(file.parent, columns["clip_id"])
        cut = ~np.isnan(offsets)
        if cut.any():
            columns["clip_id"] = _with_offsets(columns["clip_id"], offsets)
        faults = [("missing file", f"not there, seen from {file.parent}", missing)]
        segments = np.stack([offsets, seconds], axis=1) if cut.any() else None
        audio = AudioFiles(file.parent, paths, self.max_seconds, segments)
        return sound_clips(columns, audio, self.max_seconds, faults, skipped, str(file))


def _read(file: Path, skipped: list[Skip]) -> dict[str, pa.ChunkedArray]:
    """The columns [n] of the usable lines: `duration` and `offset` float64, the others string."""
    empty = pa.table({"audio": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    for name in _NUMBERS:
        empty = empty.append_column(name, pa.array([], pa.float64()))
    tables = [empty]
    number = 1
    with file.open("rb") as opened:
        while lines := opened.readlines(_BLOCK_BYTES):
            tables.append(_block(lines) or _rows(file, number, lines, skipped))
            number += len(lines)
    table = pa.concat_tables(tables, promote_options="permissive")
    return {
        name: pc.fill_null(table[name], math.nan if name in _NUMBERS else "") for name in table.column_names
    }


def _block(lines: list[bytes]) -> pa.Table | None:
    """The rows of some lines, by arrow's fast parser; None if it fails or may read them differently from `_row`."""
    block = b"".join(lines)
    rows = sum(not line.isspace() for line in lines)
    if not rows or _SURROGATE.search(block):
        return None
    try:
        block.decode()
        table = pa.json.read_json(
            pa.BufferReader(block), pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    if "audio" not in table.column_names:
        table = table.rename_columns(
            {"audio_filepath": "audio"} if "audio_filepath" in table.column_names else {}
        )
    types = dict(zip(table.column_names, table.schema.types, strict=True))
    numbers = {name: types.pop(name, pa.null()) for name in _NUMBERS}
    sound = (
        table.num_rows == rows
        and not types.keys() & {*UNREAD}
        and all(types.get(name) == pa.string() and not table[name].null_count for name in ("audio", "text"))
        and all(kind in _AS_TEXT for kind in types.values())
        and all(kind in (pa.float64(), pa.int64(), pa.null()) for kind in numbers.values())
    )
    if not sound:
        return None
    columns = {name: table[name].cast(pa.string()) for name in types}
    for name in numbers:
        given = table[name].cast(pa.float64()) if name in table.column_names else pa.nulls(rows, pa.float64())
        columns[name] = pc.fill_null(given, math.nan)
    if pc.any(pc.less(columns["offset"], 0.0)).as_py():
        return None
    return pa.table(columns)


def _rows(file: Path, first: int, lines: list[bytes], skipped: list[Skip]) -> pa.Table:
    """The rows of some lines, parsed one by one; `first` is the number of the first line."""
    rows = []
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        try:
            rows.append(_row(line))
        except (ValueError, RecursionError, OverflowError) as error:
            skipped.append(Skip(f"{file.name}:{number}", "damaged row", f"{file}, line {number}: {error}"))
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _row(line: bytes) -> dict[str, str | float]:
    """One line as a row. Raises ValueError if the line is not a clip."""
    # Decoded here, because json guesses the encoding of bytes. Some editors write a byte order mark.
    values = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    if "audio" not in values and "audio_filepath" in values:
        values["audio"] = values.pop("audio_filepath")
    for name in ("audio", "text"):
        if not isinstance(values.get(name), str):
            raise ValueError(f"no text under {name!r}, there are: {', '.join(map(repr, values))}")
    for name in UNREAD:
        if values.get(name) is not None:
            raise ValueError(
                f"{name!r} says which part of the audio is meant, and is not read: write offset and duration in"
                " seconds, or remove the key if the audio is already cut"
            )
    seconds, offset = (values.pop(name, None) for name in _NUMBERS)
    if offset is not None and not (_is_number(offset) and 0 <= offset < math.inf):
        raise ValueError(f"the offset {offset!r} is no number of seconds")
    row: dict[str, str] = {}
    for name, value in values.items():
        row[name] = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    if _SURROGATE.search(line):
        "".join([*row, *row.values()]).encode()
    # A duration that is not a number counts as unknown, and is read from the audio later.
    return row | {
        "duration": float(seconds) if _is_number(seconds) else math.nan,
        "offset": math.nan if offset is None else float(offset),
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _with_offsets(names: pa.ChunkedArray, offsets: np.ndarray) -> pa.ChunkedArray:
    """The names of segments: FILE@SECONDS."""
    named = zip(names.to_pylist(), offsets.tolist(), strict=True)
    return pa.chunked_array(
        [[name if math.isnan(at) else f"{name}@{at:g}" for name, at in named]], pa.string()
    )


def _find_files(folder: Path, listed: pa.ChunkedArray) -> tuple[pa.ChunkedArray, np.ndarray]:
    """The path of each listed file [n], and the mask [n] of missing files."""

    @lru_cache(maxsize=1024)
    def files_in(parent: str) -> set[str]:
        try:
            return {*list_files(folder / parent)}
        except (OSError, ValueError):  # ValueError: a path with a NUL in it
            return set()

    @lru_cache(maxsize=1024)
    def composed(parent: str) -> dict[str, str]:
        return {unicodedata.normalize("NFC", name): name for name in files_in(parent)}

    def find(path: str) -> str | None:
        parent, name = os.path.split(path)
        if name in files_in(parent):
            return path
        for form in (parent, *(unicodedata.normalize(form, parent) for form in ("NFC", "NFD"))):
            if other := composed(form).get(unicodedata.normalize("NFC", name)):
                return os.path.join(form, other)
        return None

    paths = [_local_path(path) for chunk in listed.chunks for path in chunk.to_pylist()]
    found = [find(path) for path in paths]
    missing = np.fromiter((path is None for path in found), bool, len(found))
    return pa.chunked_array([pa.array(found, pa.string())]), missing


def _local_path(path: str) -> str:
    if path.startswith("file://"):
        return unquote(path.removeprefix("file://").removeprefix("localhost"))
    return os.path.expanduser(path) if path.startswith("~") else path
