"""The manifest, the common form of all corpora: a table of clips, a source of audio, and a list of skipped clips."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diva.audio.decoding import decode, duration_of
from diva.audio.frames import SAMPLE_RATE, WHISPER_SECONDS
from diva.errors import AudioFault, UserError

# A column that `diva.data.teacher_text` adds: what the teacher reads instead of `text`.
TEACHER_TEXT = "teacher_text"
# Columns that every manifest has. If the corpus has another column with such a name, that column gets a prefix.
_OWN_COLUMNS = ("clip_id", "text", "duration", "speaker")
# Reasons that are only clear with an example.
_UNCLEAR = ("damaged row", "unknown format")


@dataclass(frozen=True)
class Skip:
    """A skipped clip. Every skipped clip is listed with its reason.

    `reason` is one of: empty text, missing text, missing file, damaged audio, unknown format, ends early, silence,
    out of range, zero length, too long, damaged row, double name, torn archive (of many clips, one Skip).
    `docs/faults.md` lists what happens with each kind of faulty input.
    """

    clip_id: str
    reason: str
    detail: str


class AudioSource(Protocol):
    """The source of a manifest's waveforms. It must be picklable: it is sent to the workers of a DataLoader."""

    def waveform(self, row: int) -> np.ndarray:
        """Float32 mono at 16 kHz, [S]. Raises AudioFault."""
        ...


@runtime_checkable
class StoredAudio(AudioSource, Protocol):
    """Encoded audio. It also gives durations from headers, and a fingerprint."""

    def seconds(self, row: int) -> float:
        """Duration in seconds by the header, without decoding. Raises AudioFault, also for a clip that is too long."""
        ...

    def fingerprint(self, rows: np.ndarray) -> str:
        """A digest that changes when any of these clips changes."""
        ...


@dataclass(frozen=True)
class AudioFiles:
    """Clips that are files, or segments of files."""

    folder: Path  # relative paths start here
    paths: pa.Array | pa.ChunkedArray  # [n] string
    max_seconds: float = WHISPER_SECONDS
    segments: np.ndarray | None = None  # [n, 2] float64: offset and duration in seconds, NaN for a whole file

    def path(self, row: int) -> Path:
        return self.folder / self.paths[int(row)].as_py()

    def waveform(self, row: int) -> np.ndarray:
        return decode(self.path(row), self.max_seconds, *self._segment(row))

    def seconds(self, row: int) -> float:
        offset, duration = self._segment(row)
        if duration is not None:
            return duration
        return duration_of(self.path(row), self.max_seconds, offset)

    def _segment(self, row: int) -> tuple[float, float | None]:
        """Offset and duration of a clip in its file, in seconds. Duration None: to the end of the file."""
        if self.segments is None or np.isnan(self.segments[row, 0]):
            return 0.0, None
        offset, duration = self.segments[row].tolist()
        return offset, None if np.isnan(duration) else duration

    def fingerprint(self, rows: np.ndarray) -> str:
        digest = sha256(os.fsencode(f"{self.folder.resolve()} {self.max_seconds}"))
        for row in rows:
            path = self.path(row)
            try:
                stat = path.stat()
                state = f"{path.name}\t{path.parent}\t{stat.st_size}\t{stat.st_mtime_ns}"
            except OSError as error:
                state = f"{path}\t{error.errno}"
            digest.update(b"\n" + os.fsencode(state))
        if self.segments is not None:
            digest.update(self.segments[rows].tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Manifest:
    """The clips of one split, in the order of the corpus."""

    clips: pa.Table  # n rows: clip_id, text: string; duration: float32 seconds, NaN where unknown; ...
    audio: AudioSource
    rows: np.ndarray  # [n] int64, the row of `audio` for each clip
    skipped: list[Skip] = field(default_factory=list)
    origin: str = ""  # the file or dataset the split was read from, for messages
    unused: int = 0  # usable clips above a limit on the number of clips

    def __len__(self) -> int:
        return self.clips.num_rows

    @property
    def listed(self) -> int:
        """Number of clips that the corpus lists: those of this manifest, the unused and the skipped ones."""
        return len(self) + self.unused + len(self.skipped)

    @property
    def durations(self) -> np.ndarray:
        """Seconds, float32 [n], NaN where unknown. Read-only."""
        return self.clips["duration"].to_numpy()

    def text(self, index: int) -> str:
        return self.clips["text"][int(index)].as_py()

    @property
    def has_teacher_text(self) -> bool:
        """Whether the teacher reads another text than the transcript."""
        return TEACHER_TEXT in self.clips.column_names

    @property
    def teacher_texts(self) -> pa.ChunkedArray:
        """What the teacher reads of each clip, string [n]."""
        return self.clips[TEACHER_TEXT if self.has_teacher_text else "text"]

    def waveform(self, index: int) -> np.ndarray:
        """Float32 mono at 16 kHz, [S]. Raises AudioFault, also if it is shorter than its listed duration."""
        waveform = self.audio.waveform(int(self.rows[index]))
        listed = self.clips["duration"][int(index)].as_py()  # one number: the column may have a million
        if fault := listed_fault(len(waveform) / SAMPLE_RATE, listed):
            raise fault
        return waveform

    def column(self, name: str) -> list[str]:
        """All values of a column. Raises UserError if the corpus does not have it."""
        if name not in self.clips.column_names:
            has = ", ".join(self.clips.column_names)
            raise UserError(f"{self.origin or 'the manifest'} has no column {name!r}, it has: {has}")
        return self.clips[name].to_pylist()

    def select(self, indices: Sequence[int] | np.ndarray) -> "Manifest":
        """The clips at these positions, in this order. `skipped` is unchanged."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(self, clips=self.clips.take(pa.array(chosen)), rows=self.rows[chosen])


def with_distinct_ids(manifest: Manifest) -> Manifest:
    """The manifest with distinct clip ids. If an id occurs again, #2, #3, ... is appended to it."""
    ids = manifest.clips["clip_id"]
    if pc.count_distinct(ids).as_py() == len(ids):
        return manifest
    seen: Counter[str] = Counter()
    distinct = []
    for clip_id in ids.to_pylist():
        seen[clip_id] += 1
        distinct.append(clip_id if seen[clip_id] == 1 else f"{clip_id}#{seen[clip_id]}")
    column = manifest.clips.column_names.index("clip_id")
    return replace(manifest, clips=manifest.clips.set_column(column, "clip_id", pa.array(distinct)))


class Corpus(Protocol):
    def manifest(self, split: str) -> Manifest:
        """Raises UserError where the corpus or the split cannot be used."""
        ...


def list_files(folder: Path) -> Iterator[str]:
    """Names of the files in a folder, and of links to files. Names that are not UTF-8 are skipped.

    The folder is listed once, because one stat call per clip takes minutes on network disks.
    Raises OSError if the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_file = entry.is_file()
                entry.name.encode()
            except (OSError, UnicodeEncodeError):  # OSError: a link to a missing file
                continue
            if is_file:
                yield entry.name


def named_columns(columns: Mapping[str, pa.ChunkedArray], **own: str | None) -> dict[str, pa.ChunkedArray]:
    """The corpus's columns with the names of a manifest. `own` maps clip_id, text and speaker to the corpus's names.

    Any other column with one of these names gets the prefix `corpus_`.
    """
    named = {ours: columns[theirs] for ours, theirs in own.items() if theirs is not None}
    further = {name: values for name, values in columns.items() if name not in own.values()}
    ours = (*_OWN_COLUMNS, TEACHER_TEXT)
    return named | {f"corpus_{name}" if name in ours else name: further[name] for name in further}


def sound_clips(
    columns: dict[str, pa.ChunkedArray],
    audio: AudioSource,
    max_seconds: float,
    faults: Sequence[tuple[str, str, np.ndarray]],
    skipped: Iterable[Skip],
    origin: str,
) -> Manifest:
    """The manifest of the usable rows, checked without opening the audio.

    `columns` (string [n]; `duration` float32 seconds [n]) and `audio` have the same rows. `columns` is emptied here, so
    that a large corpus is not in memory twice.
    `faults` are (reason, detail, mask [n]) of faulty rows that the reader found. `skipped` are the entries that it
    could not read as rows. A row with several faults is counted under the first.
    """
    size = len(columns["clip_id"])
    columns["text"] = pc.utf8_trim_whitespace(columns["text"])
    columns.setdefault("duration", pa.chunked_array([np.full(size, np.nan, dtype=np.float32)]))
    columns.setdefault("speaker", pa.chunked_array([pa.repeat("", size)]))
    durations = columns["duration"].to_numpy()
    known = (
        ("empty text", "the transcript is empty", pc.equal(columns["text"], "").to_numpy()),
        ("empty text", "the transcript has no letter and no digit", _is_mute(columns["text"])),
        ("zero length", "its listed duration is 0 s", durations <= 0),
        ("too long", f"its listed duration is above {max_seconds:g} s", durations > max_seconds),
    )
    every_skip = list(skipped)
    sound = np.ones(size, dtype=bool)
    for reason, detail, mask in (*faults, *known):
        for row in np.flatnonzero(mask & sound):
            every_skip.append(Skip(columns["clip_id"][int(row)].as_py(), reason, detail))
        sound &= ~mask
    kept = pa.array(sound)
    order = (*_OWN_COLUMNS, *(name for name in columns if name not in _OWN_COLUMNS))
    clips = pa.table({name: columns.pop(name).filter(kept) for name in order})
    return Manifest(clips, audio, np.flatnonzero(sound).astype(np.int64), every_skip, origin)


def _is_mute(texts: pa.ChunkedArray) -> np.ndarray:
    """Mask [n] of the texts without a letter or a digit of any script."""
    return pc.invert(pc.match_substring_regex(texts, r"[\p{L}\p{N}]")).to_numpy()


def listed_fault(seconds: float, listed: float) -> AudioFault | None:
    """The fault of a clip that is much shorter than its listed duration; otherwise None. Seconds; NaN: not listed."""
    if seconds < 0.9 * listed - 0.2:
        return AudioFault("ends early", f"it lasts {seconds:.2f} s, its listed duration is {listed:.2f} s")
    return None


def count_by_reason(skips: Iterable[Skip]) -> dict[str, int]:
    """Number of skipped clips by reason, the most frequent first."""
    return dict(Counter(skip.reason for skip in skips).most_common())


def check_skipped(manifests: Mapping[str, Manifest], max_fraction: float, listed_in: str | Path) -> None:
    """Check the fraction of skipped clips. `manifests` are by split. `listed_in` is the path of skipped.tsv.

    Raises UserError if a split has no usable clip, or if skipped / listed over all splits is above `max_fraction`.
    """
    for split, manifest in manifests.items():
        if not len(manifest):
            raise UserError(
                f"split {split!r} of {manifest.origin} has no clip that can be used"
                f" ({_counts(manifest.skipped) or 'it is empty'}), see {listed_in}"
            )
    skips = [skip for manifest in manifests.values() for skip in manifest.skipped]
    total = sum(manifest.listed for manifest in manifests.values())
    if len(skips) > max_fraction * total:
        raise UserError(
            f"{len(skips)} of {total} clips ({len(skips) / total:.1%}) cannot be used: {_counts(skips)};"
            f" they are listed in {listed_in}; correct them, or accept the loss with"
            f" data.max_skipped_fraction={np.ceil(len(skips) / total * 100) / 100:g} (now {max_fraction:g})"
        )


def _counts(skips: Sequence[Skip]) -> str:
    """The numbers by reason as text, with an example if the reason alone is not clear."""
    counts = []
    for reason, count in count_by_reason(skips).items():
        example = next(skip for skip in skips if skip.reason == reason)
        such_as = f", such as {example.clip_id} ({example.detail})" if reason in _UNCLEAR else ""
        counts.append(f"{count} {reason}{such_as}")
    return ", ".join(counts)


def write_skipped(path: str | Path, skips: Mapping[str, Iterable[Skip]]) -> None:
    """Write skipped.tsv with one clip per line: split, clip_id, reason, detail. `skips` are by split."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("split\tclip_id\treason\tdetail\n")
        for split, of_split in skips.items():
            for skip in of_split:
                # A tab or a line break in a field would damage the table.
                cells = (" ".join(cell.split()) for cell in (split, skip.clip_id, skip.reason, skip.detail))
                file.write("\t".join(cells) + "\n")
