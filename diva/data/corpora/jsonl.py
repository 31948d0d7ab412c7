"""A corpus of one's own: one JSON object a line with `audio` (a path), `text`, and `duration` in seconds if known."""

import codecs
import json
import math
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from diva.audio.frames import WHISPER_SECONDS
from diva.data.manifest import AudioFiles, Manifest, Skip, list_files, named_columns, sound_clips
from diva.errors import UserError

# A block with a line that only the careful reader can judge is read by it as a whole.
_BLOCK_BYTES = 1 << 20
# Half of a surrogate pair can be written so, but is no character.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_AS_TEXT = (pa.string(), pa.null(), pa.int64(), pa.bool_())


class JsonlCorpus:
    """`manifests` names the file of each split, or the folder that holds them as SPLIT.jsonl.

    A path in `audio` is relative to the file that it stands in, or absolute. Every further key becomes a column
    of strings. Raises UserError where a file is missing.
    """

    def __init__(
        self, manifests: Mapping[str, str | Path] | str | Path, max_seconds: float = WHISPER_SECONDS
    ):
        if isinstance(manifests, str | Path):
            folder = Path(manifests).expanduser()
            self.files = {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
            if not self.files:
                raise UserError(f"{folder} is no folder that holds a file SPLIT.jsonl, such as train.jsonl")
        else:
            self.files = {split: Path(file).expanduser() for split, file in manifests.items()}
        self.max_seconds = max_seconds

    def manifest(self, split: str) -> Manifest:
        """The clips of a split. Raises UserError for one that is not there, naming those that are."""
        if split not in self.files:
            raise UserError(f"no split {split!r} in this corpus, there are: {', '.join(self.files)}")
        file = self.files[split]
        if not file.is_file():
            raise UserError(f"no file {file}, given for the split {split!r}")
        skipped: list[Skip] = []
        columns = _read(file, skipped)
        seconds = columns.pop("duration").cast(pa.float32())
        speaker = "speaker" if "speaker" in columns else None
        columns = named_columns(columns, clip_id="audio", text="text", speaker=speaker)
        columns["duration"] = seconds
        paths = columns["clip_id"]
        faults = [("missing file", f"not there, seen from {file.parent}", _is_missing(file.parent, paths))]
        audio = AudioFiles(file.parent, paths, self.max_seconds)
        return sound_clips(columns, audio, self.max_seconds, faults, skipped, str(file))


def _read(file: Path, skipped: list[Skip]) -> dict[str, pa.ChunkedArray]:
    """The columns of the lines that can be used: `duration` float64, the others string; [n] each."""
    empty = pa.table({"audio": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    tables = [empty.append_column("duration", pa.array([], pa.float64()))]
    number = 1
    with file.open("rb") as opened:
        while lines := opened.readlines(_BLOCK_BYTES):
            tables.append(_block(lines) or _rows(file, number, lines, skipped))
            number += len(lines)
    table = pa.concat_tables(tables, promote_options="permissive")
    return {
        name: table[name] if name == "duration" else pc.fill_null(table[name], "")
        for name in table.column_names
    }


def _block(lines: list[bytes]) -> pa.Table | None:
    """The rows of some lines, by arrow's parser; None where it cannot, or where `_row` might see them otherwise."""
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
    types = dict(zip(table.column_names, table.schema.types, strict=True))
    seconds = types.pop("duration", pa.null())
    sound = (
        table.num_rows == rows
        and all(types.get(name) == pa.string() and not table[name].null_count for name in ("audio", "text"))
        and all(kind in _AS_TEXT for kind in types.values())
        and seconds in (pa.float64(), pa.int64(), pa.null())
    )
    if not sound:
        return None
    columns = {name: table[name].cast(pa.string()) for name in types}
    if "duration" in table.column_names:
        columns["duration"] = pc.fill_null(table["duration"].cast(pa.float64()), math.nan)
    else:
        columns["duration"] = pa.array(np.full(rows, math.nan))
    return pa.table(columns)


def _rows(file: Path, first: int, lines: list[bytes], skipped: list[Skip]) -> pa.Table:
    """The rows of some lines, each judged by itself; `first` is the number of the first line."""
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
    """Raises ValueError where the line is no clip."""
    # Text, because json would guess the encoding of each line of bytes; the mark is that of some editors.
    values = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    for name in ("audio", "text"):
        if not isinstance(values.get(name), str):
            raise ValueError(f"no text under {name!r}")
    seconds = values.pop("duration", None)
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    row: dict[str, str] = {}
    for name, value in values.items():
        row[name] = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    if _SURROGATE.search(line):
        "".join([*row, *row.values()]).encode()
    # What is no number is unknown; it is read from the audio later.
    return row | {"duration": float(seconds) if is_number else math.nan}


def _is_missing(folder: Path, paths: pa.ChunkedArray) -> np.ndarray:
    """Mask [n] of the paths at which there is no file."""

    @lru_cache(maxsize=1024)
    def files_in(parent: str) -> set[str]:
        try:
            return {*list_files(folder / parent)}
        except (OSError, ValueError):  # ValueError: a path with a NUL in it
            return set()

    split = (os.path.split(path) for chunk in paths.chunks for path in chunk.to_pylist())
    return np.fromiter((name not in files_in(parent) for parent, name in split), bool, len(paths))
