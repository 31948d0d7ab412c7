"""The official Common Voice release, of any language and year, as a folder, as its .tar.gz or as a .tar.

Layout: RELEASE/LOCALE/clips/*.mp3, train.tsv, dev.tsv, test.tsv, validated.tsv, ... and clip_durations.tsv.
"""

import codecs
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from diva.audio.frames import WHISPER_SECONDS
from diva.data.corpora.archive import (
    TarAudio,
    TornArchive,
    identity,
    plain_tar,
    progress_open,
    read_members,
    read_table,
    write_rows,
)
from diva.data.decoded import build_once
from diva.data.manifest import AudioFiles, AudioSource, Manifest, Skip, list_files, named_columns, sound_clips
from diva.errors import UserError
from diva.models.pretrained import cache_dir

# No row of a release is anywhere near as long.
_BLOCK_BYTES = 4 << 20
# A digest of the sentence, of no use once the sentence is there: 64 MB in a million rows.
_UNREAD_COLUMNS = ("sentence_id",)
# The other columns repeat their values, and hold each once: a million client ids would be 128 MB.
_UNIQUE_COLUMNS = ("path", "sentence", "clip", "duration[ms]")
_NOT_UTF8 = "\N{REPLACEMENT CHARACTER}"


class CommonVoice:
    """A corpus in the layout of a Common Voice release.

    `root` is a release folder with one folder a locale, a locale's own folder, a folder that holds releases, or
    the archive of any of them: a .tar, read where it is, or a .tar.gz, inflated once into the cache. `locale` may
    be left out where there is only one. Raises UserError where no such layout is found.
    """

    def __init__(self, root: str | Path, locale: str | None = None, max_seconds: float = WHISPER_SECONDS):
        root = Path(root).expanduser()
        if not root.exists():
            raise UserError(f"no Common Voice release at {root}: give its folder or its .tar.gz as data.root")
        self.archive = None if root.is_dir() else _index(root)
        self.folder = _choose_locale(root, self.archive.tables if self.archive else root, locale)
        self.max_seconds = max_seconds

    def splits(self) -> list[str]:
        """Every TSV file that has a `path` and a `sentence` column."""
        tables = (tsv for tsv in self.folder.glob("*.tsv") if tsv.is_file())
        return sorted(tsv.stem for tsv in tables if {"path", "sentence"} <= {*_header(tsv)})

    def manifest(self, split: str) -> Manifest:
        """The clips of SPLIT.tsv. Raises UserError for a split that is not there, naming those that are."""
        splits, tsv = self.splits(), self.folder / f"{split}.tsv"
        if split not in splits:
            raise UserError(
                f"no split {split!r} in {self.folder} (a TSV file with the columns path and sentence),"
                f" there are: {', '.join(splits) or 'none'}"
            )
        skipped: list[Skip] = []
        columns = _read_tsv(tsv, skipped)
        speaker = "client_id" if "client_id" in columns else None
        columns = named_columns(columns, clip_id="path", text="sentence", speaker=speaker)
        listed = columns["clip_id"]
        columns["duration"] = _listed_durations(self.folder / "clip_durations.tsv", listed)
        audio, missing = self._find_audio(listed)
        damaged = pc.or_(*(pc.match_substring(columns[name], _NOT_UTF8) for name in ("clip_id", "text")))
        where = self.archive.tar if self.archive else self.folder / "clips"
        faults = [
            ("damaged row", "its characters are not UTF-8", damaged.to_numpy()),
            ("missing file", f"not in {where}", missing),
        ]
        del listed
        return sound_clips(columns, audio, self.max_seconds, faults, skipped, str(tsv))

    def _find_audio(self, listed: pa.ChunkedArray) -> tuple[AudioSource, np.ndarray]:
        """The audio of each listed path [n], and the mask [n] of those that are not there."""
        if self.archive:
            members = self.archive.clips(self.folder)
            found = _find_names(listed, members["name"].combine_chunks())
            audio: AudioSource = TarAudio((self.archive.tar,), members.take(found), self.max_seconds)
        else:
            clips = self.folder / "clips"
            names = _file_names(clips)
            found = _find_names(listed, names)
            audio = AudioFiles(clips, pa.chunked_array([names.take(found)]), self.max_seconds)
        return audio, found.is_null().to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class _Archive:
    """What the cache knows about a release that is one file."""

    tar: Path
    tables: Path  # the folders and TSV files of the release, without clips
    index: Path  # of every clip: archive int32, always 0; name string; offset, size int64

    def clips(self, locale: Path) -> pa.Table:
        """The members in the folder clips/ of a locale, by their names in it."""
        folder = f"{(locale / 'clips').relative_to(self.tables).as_posix()}/"
        members = read_table(self.index)
        members = members.filter(pc.starts_with(members["name"], folder))
        names = pc.utf8_slice_codeunits(members["name"], len(folder))
        return members.set_column(members.column_names.index("name"), "name", names)


_CLIP_SCHEMA = pa.schema(
    [("archive", pa.int32()), ("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())]
)


def _index(archive: Path) -> _Archive:
    """The archive's tables and where its clips lie, in the cache. Raises UserError for one that is damaged."""
    name = f"{archive.name.split('.tar')[0]}-{sha256(identity(archive).encode()).hexdigest()[:12]}"

    def build(folder: Path) -> None:
        tar = plain_tar(archive, folder)
        try:
            with progress_open(tar, "indexing") as file:
                write_rows(folder / "clips.arrow", _CLIP_SCHEMA, _clips(file, folder / "tables"))
        except TornArchive as error:
            raise UserError(f"{archive} is damaged, or no tar archive; fetch it again: {error}") from error

    folder = build_once(cache_dir() / "archives" / name, build)
    inflated = folder / "archive.tar"
    return _Archive(inflated if inflated.exists() else archive, folder / "tables", folder / "clips.arrow")


def _clips(file: BinaryIO, tables: Path) -> Iterator[tuple[int, str, int, int]]:
    """The clips of a release, in the columns of the index; its tables are written below `tables` on the way."""
    tables.mkdir()
    for name, offset, size in read_members(file):
        parent, base = posixpath.split(name)
        if posixpath.basename(parent) == "clips":
            yield 0, name, offset, size
        elif base.endswith(".tsv") and (tables / name).resolve().is_relative_to(tables.resolve()):
            (tables / parent / "clips").mkdir(parents=True, exist_ok=True)
            file.seek(offset)
            (tables / name).write_bytes(file.read(size))


def _choose_locale(root: Path, folder: Path, locale: str | None) -> Path:
    """The folder of the one locale asked for, or of the only one there is, in the `folder` that `root` stands for."""
    # The folder is a locale, or holds locales, or holds releases of them.
    for clips in ("clips", "*/clips", "*/*/clips"):
        if found := sorted(path.parent for path in folder.glob(clips) if any(path.parent.glob("*.tsv"))):
            break
    else:
        raise UserError(f"{root} is no Common Voice release: no folder in it holds clips/ and TSV files")
    names = ", ".join(str(path.relative_to(folder.parent)) for path in found)
    if locale is not None:
        found = [path for path in found if path.name == locale]
    if not found:
        raise UserError(f"no locale {locale!r} in {root}, there are: {names}")
    if len(found) > 1:
        raise UserError(
            f"{root} holds several corpora, choose with data.locale or a deeper data.root: {names}"
        )
    return found[0]


def _header(tsv: Path) -> list[str]:
    with tsv.open(encoding="utf-8-sig", errors="replace") as file:
        return file.readline(_BLOCK_BYTES).rstrip("\n").split("\t")


def _read_tsv(tsv: Path, skipped: list[Skip]) -> dict[str, pa.ChunkedArray]:
    """The columns of a file without quoting, all string [n]; rows with too few or many cells go to `skipped`.

    Bytes that are not UTF-8 become U+FFFD. Raises UserError where the file is no table at all.
    """
    names = _header(tsv)
    if doubled := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"{tsv} has more than one column named {doubled.pop()!r}: rename one in its first line"
        )
    where = names.index("path") if "path" in names else 0

    def note_damaged(row: pyarrow.csv.InvalidRow) -> str:
        cells = row.text.split("\t")
        clip_id = cells[where] if where < len(cells) else ""
        detail = f"{row.actual_columns} cells instead of {row.expected_columns}: {row.text[:80]!r}"
        skipped.append(Skip(clip_id, "damaged row", detail))
        return "skip"

    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    read = [name for name in names if name not in _UNREAD_COLUMNS]
    plain, repeating = pa.string(), pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([(name, plain if name in _UNIQUE_COLUMNS else repeating) for name in read])
    try:
        with pa.OSFile(str(tsv)) as file:
            utf8 = pa.TransformInputStream(
                file, lambda data: decoder.decode(bytes(data), final=not len(data)).encode()
            )
            reader = pyarrow.csv.open_csv(
                utf8,
                pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES),
                pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=note_damaged),
                pyarrow.csv.ConvertOptions(column_types=schema, include_columns=read),
            )
            table = reader.read_all()
    except pa.ArrowInvalid as error:
        raise UserError(f"{tsv} is not a tab-separated table: {' '.join(str(error).split())}") from error
    columns = {name: table[name] for name in read}
    del table
    return {name: columns.pop(name).unify_dictionaries() for name in read}


def _file_names(folder: Path) -> pa.Array:
    """The names of the files in a folder, string. Raises UserError where it cannot be read."""
    names = list_files(folder)
    chunks = iter(lambda: pa.array(list(islice(names, 1 << 16)), pa.string()), pa.array([], pa.string()))
    try:
        return pa.chunked_array(chunks, pa.string()).combine_chunks()
    except OSError as error:
        raise UserError(f"cannot read the clips of the release in {folder}: {error.strerror}") from error


def _find_names(listed: pa.ChunkedArray, names: pa.Array) -> pa.Array:
    """The place in `names` of each listed path, int32 [n], null where there is none.

    A name is found too when it differs in case or in Unicode form, or lacks its ending, as in the first releases.
    """
    where = pc.index_in(listed, names).combine_chunks()
    for ending in ("", ".mp3"):
        if where.null_count:
            lost = where.is_null()
            wanted = pc.binary_join_element_wise(_alike(listed.filter(lost)), ending, "")
            where = pc.replace_with_mask(where, lost, pc.index_in(wanted, _alike(names)).combine_chunks())
    return where


def _alike(names: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.utf8_lower(pc.utf8_normalize(names, "NFC"))


def _listed_durations(tsv: Path, listed: pa.ChunkedArray) -> pa.ChunkedArray:
    """Seconds of each listed clip, float32 [n], NaN where the release does not say."""
    if not tsv.is_file() or not {"clip", "duration[ms]"} <= {*_header(tsv)}:
        return pa.chunked_array([np.full(len(listed), np.nan, dtype=np.float32)])
    columns = _read_tsv(tsv, [])
    milliseconds = columns["duration[ms]"]
    is_number = pc.match_substring_regex(milliseconds, r"^[0-9]{1,15}([.][0-9]+)?$")
    seconds = pc.divide(pc.if_else(is_number, milliseconds, None).cast(pa.float32()), 1000.0)
    found = seconds.take(pc.index_in(listed, columns["clip"]))
    return pc.fill_null(found, np.nan).cast(pa.float32())
