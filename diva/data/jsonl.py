"""A corpus of one's own: one JSON object a line with `audio` (a path), `text`, and `duration` in seconds if known."""

import codecs
import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diva.audio import WHISPER_SECONDS
from diva.data.manifest import AudioFiles, Manifest, Skip, list_files, named_columns, sound_clips
from diva.errors import UserError

# More would have the garbage collector walk through them, again and again.
_ROWS_AT_ONCE = 1 << 13


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
    with file.open("rb") as lines:
        rows = _rows(file, lines, skipped)
        while chunk := list(islice(rows, _ROWS_AT_ONCE)):
            names = dict.fromkeys(name for row in chunk for name in row)
            tables.append(pa.table({name: [row.get(name) for row in chunk] for name in names}))
    table = pa.concat_tables(tables, promote_options="permissive")
    return {
        name: table[name] if name == "duration" else pc.fill_null(table[name], "")
        for name in table.column_names
    }


def _rows(file: Path, lines: Iterator[bytes], skipped: list[Skip]) -> Iterator[dict[str, str | float]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _row(line)
        except (ValueError, RecursionError, OverflowError) as error:
            skipped.append(Skip(f"{file.name}:{number}", "damaged row", f"{file}, line {number}: {error}"))


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
    if b"\\u" in line:
        # Half of a surrogate pair can be written so, but is no character.
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
