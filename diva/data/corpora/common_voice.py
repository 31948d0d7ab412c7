"""The official Common Voice release, of any language and year, as a folder, as its .tar.gz or as a .tar.

Layout: RELEASE/LOCALE/clips/*.mp3, train.tsv, dev.tsv, test.tsv, validated.tsv, ... and clip_durations.tsv.
Layout of Common Voice Spontaneous Speech: RELEASE/audios/*.mp3 and one TSV file with the columns audio_file,
transcription, duration_ms and split.
"""

import codecs
import os
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
    read_members,
    read_table,
    write_rows,
)
from diva.data.decoded import build_once
from diva.data.manifest import AudioFiles, AudioSource, Manifest, Skip, list_files, named_columns, sound_clips
from diva.errors import UserError
from diva.models.pretrained import cache_dir
from diva.terminal import progress_open

# Bytes per block. All rows of a release are much shorter.
_BLOCK_BYTES = 4 << 20
# A digest of the sentence. It is not needed, and takes 64 MB in a million rows.
_UNREAD_COLUMNS = ("sentence_id",)
# All other columns repeat their values, so they are dictionary-encoded: a million client ids would take 128 MB.
_UNIQUE_COLUMNS = ("path", "sentence", "clip", "duration[ms]", "audio_file", "transcription", "duration_ms")
# Columns of clip and sentence, and folders of clips: first for read speech, then for spontaneous speech.
_COLUMNS = (("path", "sentence"), ("audio_file", "transcription"))
_CLIPS = ("clips", "audios")
_CONVERTED = (".wav", ".flac", ".ogg", ".opus")
# Increase it if the same archive is indexed differently.
_INDEX_VERSION = 2
_NOT_UTF8 = "\N{REPLACEMENT CHARACTER}"


class CommonVoice:
    """A corpus in the layout of a Common Voice release.

    `root` is one of: a release folder with one folder per locale, the folder of a locale, a folder of releases, or an
    archive of any of these. A .tar is read in place. A .tar.gz is decompressed once into the cache.
    `locale` is optional if there is only one. Raises UserError if no such layout is found.
    """

    def __init__(self, root: str | Path, locale: str | None = None, max_seconds: float = WHISPER_SECONDS):
        root = Path(root).expanduser()
        if not root.exists():
            raise UserError(f"no Common Voice release at {root}: give its folder or its .tar.gz as data.root")
        self.archive = None if root.is_dir() else _index(root)
        self.folder = _choose_locale(root, self.archive.tables if self.archive else root, locale)
        self.max_seconds = max_seconds

    def splits(self) -> list[str]:
        """The names of all splits: of each TSV file with clips and sentences, or the values of its column `split`.

        If validated.tsv is the only file, it is divided into train, dev and test by speaker.
        """
        return sorted(self._tables())

    def manifest(self, split: str) -> Manifest:
        """The clips of a split. Raises UserError for an unknown split; the message lists the existing ones."""
        tables = self._tables()
        if split not in tables:
            raise UserError(
                f"no split {split!r} in {self.folder} (a TSV file with the columns path and sentence),"
                f" there are: {', '.join(sorted(tables)) or 'none'}"
            )
        tsv, way = tables[split]
        skipped: list[Skip] = []
        columns = _read_tsv(tsv, skipped)
        if way is not None:
            rows = pa.array(_PARTS[way](tsv, columns, split))
            columns = {name: columns[name].filter(rows) for name in columns}
        path, sentence = next(pair for pair in _COLUMNS if {*pair} <= columns.keys())
        speaker = "client_id" if "client_id" in columns else None
        columns = named_columns(columns, clip_id=path, text=sentence, speaker=speaker)
        columns["text"] = _without_escapes(columns["text"])
        listed = columns["clip_id"]
        if "duration_ms" in columns:
            columns["duration"] = _seconds(columns["duration_ms"])
        else:
            columns["duration"] = _listed_durations(self.folder / "clip_durations.tsv", listed)
        audio, missing = self._find_audio(listed)
        damaged = pc.or_(*(pc.match_substring(columns[name], _NOT_UTF8) for name in ("clip_id", "text")))
        where = self.archive.tar if self.archive else _clips_folder(self.folder)
        faults = [
            ("damaged row", "its characters are not UTF-8", damaged.to_numpy()),
            ("missing file", f"not in {where}", missing),
        ]
        del listed
        return sound_clips(columns, audio, self.max_seconds, faults, skipped, str(tsv))

    def _tables(self) -> dict[str, tuple[Path, str | None]]:
        """Split -> its file, and the part of its rows: one of _PARTS, or None for all rows."""
        found: dict[str, tuple[Path, str | None]] = {}
        for tsv in sorted(tsv for tsv in self.folder.glob("*.tsv") if tsv.is_file()):
            header = {*_header(tsv)}
            if not any({*pair} <= header for pair in _COLUMNS):
                continue
            if "audio_file" in header and "split" in header:
                values = pc.unique(_read_tsv(tsv, [])["split"].cast(pa.string())).to_pylist()
                found |= {value: (tsv, "named") for value in values if value}
            else:
                found[tsv.stem] = (tsv, None)
        if "validated" in found and not found.keys() & {"train", "dev", "test"}:
            found |= dict.fromkeys(("train", "dev", "test"), (found["validated"][0], "by speaker"))
        return found

    def _find_audio(self, listed: pa.ChunkedArray) -> tuple[AudioSource, np.ndarray]:
        """The audio of each listed path [n], and the mask [n] of missing files."""
        if self.archive:
            members = self.archive.clips(self.folder)
            found = _find_names(listed, members["name"].combine_chunks())
            audio: AudioSource = TarAudio((self.archive.tar,), members.take(found), self.max_seconds)
        else:
            clips = _clips_folder(self.folder)
            names = pa.concat_arrays([_file_names(clips), *_names_below(clips, listed)])
            found = _find_names(listed, names)
            audio = AudioFiles(clips, pa.chunked_array([names.take(found)]), self.max_seconds)
        return audio, found.is_null().to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class _Archive:
    """The cached tables and index of a release that is an archive."""

    tar: Path
    tables: Path  # the folders and TSV files of the release, without clips
    index: Path  # of every clip: archive int32, always 0; name string; offset, size int64

    def clips(self, locale: Path) -> pa.Table:
        """The members in the folder clips/ of a locale, by their names in it."""
        folder = f"{_clips_folder(locale).relative_to(self.tables).as_posix()}/"
        members = read_table(self.index)
        members = members.filter(pc.starts_with(members["name"], folder))
        names = pc.utf8_slice_codeunits(members["name"], len(folder))
        return members.set_column(members.column_names.index("name"), "name", names)


_CLIP_SCHEMA = pa.schema(
    [("archive", pa.int32()), ("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())]
)


def _index(archive: Path) -> _Archive:
    """The tables and the clip index of an archive, in the cache. Raises UserError for a damaged archive."""
    key = sha256(os.fsencode(f"{_INDEX_VERSION} {identity(archive)}")).hexdigest()[:12]
    name = f"{archive.name.split('.tar')[0]}-{key}"

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
    """The clips of an archive, as rows of the index. The TSV files are written to the folder `tables` meanwhile."""
    tables.mkdir()
    folders: set[str] = set()  # that hold clips
    parents: set[str] = set()  # that hold tables
    for name, offset, size in read_members(file):
        parent, base = posixpath.split(name)
        parts = parent.split("/")
        if kinds := {*_CLIPS} & {*parts}:
            folders.add("/".join(parts[: 1 + min(map(parts.index, kinds))]))
            yield 0, name, offset, size
        elif base.endswith(".tsv") and _is_below(tables / name, tables):
            (tables / parent).mkdir(parents=True, exist_ok=True)
            parents.add(parent)
            file.seek(offset)
            (tables / name).write_bytes(file.read(size))
    # The folders of clips that exist, and those that the tables need.
    folders |= {
        posixpath.join(parent, _CLIPS[0])
        for parent in parents
        if not folders & {posixpath.join(parent, kind) for kind in _CLIPS}
    }
    for folder in folders:
        if _is_below(tables / folder, tables):
            (tables / folder).mkdir(parents=True, exist_ok=True)


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _choose_locale(root: Path, folder: Path, locale: str | None) -> Path:
    """The folder of `locale`, or of the only locale, in `folder`. `root` is the user's name of it, for messages."""
    # `folder` is a locale, or contains locales, or contains releases.
    for depth in ("", "*/", "*/*/"):
        beside = (path.parent for clips in _CLIPS for path in folder.glob(f"{depth}{clips}"))
        if found := sorted({path for path in beside if any(path.glob("*.tsv"))}):
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
    """The columns of a TSV file without quoting, all string [n].

    Rows with too few or too many cells are added to `skipped`. Bytes that are not UTF-8 become U+FFFD.
    Raises UserError if the file is not a table.
    """
    names = _header(tsv)
    if doubled := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"{tsv} has more than one column named {doubled.pop()!r}: rename one in its first line"
        )
    where = next((names.index(name) for name, _ in _COLUMNS if name in names), 0)

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
    """The names of the files in a folder, string. Raises UserError if it cannot be read."""
    names = list_files(folder)
    chunks = iter(lambda: pa.array(list(islice(names, 1 << 16)), pa.string()), pa.array([], pa.string()))
    try:
        return pa.chunked_array(chunks, pa.string()).combine_chunks()
    except OSError as error:
        raise UserError(f"cannot read the clips of the release in {folder}: {error.strerror}") from error


def _names_below(folder: Path, listed: pa.ChunkedArray) -> list[pa.Array]:
    """The files in the subfolders that the listed paths name, as paths relative to `folder`."""
    deeper = listed.filter(pc.match_substring(listed, "/"))
    parents = {posixpath.dirname(path) for path in deeper.to_pylist()}
    found = []
    for parent in sorted(parents):
        inside = not posixpath.isabs(parent) and ".." not in parent.split("/")
        if inside and "\0" not in parent and (folder / parent).is_dir():
            names = _file_names(folder / parent)
            found.append(pc.binary_join_element_wise(parent, names, "/").cast(pa.string()))
    return found


def _find_names(listed: pa.ChunkedArray, names: pa.Array) -> pa.Array:
    """The index in `names` of each listed path, int32 [n], null if it is missing.

    Names may differ in case or in Unicode normal form. A listed path may lack its extension, as in the first releases.
    The file may have the extension of another format, as in converted releases.
    """
    where = pc.index_in(listed, names).combine_chunks()
    for ending, replaced in (("", ""), (".mp3", ""), *((ending, r"[.]mp3$") for ending in _CONVERTED)):
        if where.null_count:
            lost = where.is_null()
            stems = _alike(listed.filter(lost))
            if replaced:
                stems = pc.replace_substring_regex(stems, replaced, "")
            wanted = pc.binary_join_element_wise(stems, ending, "")
            where = pc.replace_with_mask(where, lost, pc.index_in(wanted, _alike(names)).combine_chunks())
    return where


def _alike(names: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.utf8_lower(pc.utf8_normalize(names, "NFC"))


def _listed_durations(tsv: Path, listed: pa.ChunkedArray) -> pa.ChunkedArray:
    """Duration of each listed clip in seconds, float32 [n], NaN if the release does not list it."""
    if not tsv.is_file() or not {"clip", "duration[ms]"} <= {*_header(tsv)}:
        return pa.chunked_array([np.full(len(listed), np.nan, dtype=np.float32)])
    columns = _read_tsv(tsv, [])
    found = _seconds(columns["duration[ms]"]).take(pc.index_in(listed, columns["clip"]))
    return pc.fill_null(found, np.nan).cast(pa.float32())


def _seconds(milliseconds: pa.ChunkedArray) -> pa.ChunkedArray:
    """Milliseconds as text [n] -> seconds, float32 [n], NaN for text that is not a number."""
    milliseconds = milliseconds.cast(pa.string())
    is_number = pc.match_substring_regex(milliseconds, r"^[0-9]{1,15}([.][0-9]+)?$")
    seconds = pc.divide(pc.if_else(is_number, milliseconds, None).cast(pa.float32()), 1000.0)
    return pc.fill_null(seconds, np.nan).cast(pa.float32())


def _without_escapes(sentences: pa.ChunkedArray) -> pa.ChunkedArray:
    """Undo CSV quoting of sentences that contain quotation marks: remove the outer marks, halve the doubled ones."""
    escaped = pc.match_substring_regex(sentences, r'^"(?:[^"]|"")*""(?:[^"]|"")*"$')
    if not pc.any(escaped).as_py():
        return sentences
    inner = pc.replace_substring(pc.replace_substring_regex(sentences, r'^"|"$', ""), '""', '"')
    return pc.if_else(escaped, inner, sentences)


def _clips_folder(locale: Path) -> Path:
    """The folder with the clips of a locale."""
    return next((locale / name for name in _CLIPS if (locale / name).is_dir()), locale / _CLIPS[0])


def _rows_named(tsv: Path, columns: dict[str, pa.ChunkedArray], split: str) -> np.ndarray:
    """Mask [n] of the rows with this value in the column `split`."""
    return pc.equal(columns["split"].cast(pa.string()), split).to_numpy()


def _rows_of_speakers(tsv: Path, columns: dict[str, pa.ChunkedArray], split: str) -> np.ndarray:
    """Mask [n] of the rows of a split by speaker. Dev and test have 5 % of the clips each, and at least one speaker.

    The speakers are ordered by their digests, so the split is always the same.
    """
    if "client_id" not in columns:
        raise UserError(
            f"{tsv} has no column client_id, by which it could be parted into train, dev and test"
        )
    speakers = columns["client_id"].cast(pa.string())
    counts = {row["values"]: row["counts"] for row in pc.value_counts(speakers).to_pylist()}
    if len(counts) < 3:
        raise UserError(f"{tsv} has {len(counts)} speakers, too few to be parted into train, dev and test")
    order = sorted(counts, key=lambda speaker: sha256(speaker.encode()).digest())
    parts: dict[str, list[str]] = {"dev": [], "test": [], "train": []}
    for part in ("dev", "test"):
        while not parts[part] or sum(counts[speaker] for speaker in parts[part]) < 0.05 * len(speakers):
            if len(order) == (2 if part == "dev" else 1):
                break
            parts[part].append(order.pop(0))
    parts["train"] = order
    return pc.is_in(speakers, pa.array(parts[split], pa.string())).to_numpy()


_PARTS = {"named": _rows_named, "by speaker": _rows_of_speakers}
