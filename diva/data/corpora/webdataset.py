"""WebDataset shards: tar archives in which the files of a sample share a key, KEY.mp3 and KEY.txt or KEY.json."""

import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from glob import glob
from hashlib import sha256
from math import nan
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from diva.audio.frames import WHISPER_SECONDS
from diva.data.corpora.archive import (
    Member,
    TarAudio,
    TornArchive,
    identity,
    read_members,
    read_table,
    write_rows,
)
from diva.data.corpora.jsonl import UNREAD
from diva.data.decoded import build_once
from diva.data.manifest import Manifest, Skip, sound_clips
from diva.errors import AudioFault, UserError
from diva.models.pretrained import cache_dir
from diva.terminal import track

# Increase it if the same shards are indexed differently.
FORMAT_VERSION = 2
AUDIO_ENDINGS = ("mp3", "wav", "flac", "ogg", "opus")
# In a pattern, this word is replaced by the name of the split.
SPLIT = "SPLIT"
_TEXT_ENDINGS = ("txt", "json")
_MAX_TEXT_BYTES = 1 << 20
_SCHEMA = pa.schema(
    [
        ("archive", pa.int32()),
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("clip_id", pa.string()),
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("duration", pa.float32()),
    ]
)


class WebDataset:
    """A corpus of uncompressed .tar shards. Any number of workers read them in place, in any order.

    Args:
        root: a folder with SPLIT/*.tar or SPLIT-*.tar in it; or a pattern of shards with the word SPLIT in place of
            the name of the split, such as `speech/SPLIT-*.tar`.
        text_key: key of the transcript in KEY.json. If KEY.txt exists, its whole text is the transcript instead. The
            keys `speaker` and `duration` (seconds) of KEY.json are read too.
        max_seconds: longer clips are skipped.
    """

    def __init__(self, root: str | Path, text_key: str = "text", max_seconds: float = WHISPER_SECONDS):
        self.root = str(Path(root).expanduser())
        self.text_key = text_key
        self.max_seconds = max_seconds

    def manifest(self, split: str) -> Manifest:
        """The clips of a split, shard by shard. Raises UserError if it has no shards."""
        shards = self._shards(split)
        key = f"{FORMAT_VERSION} {self.text_key}\n" + "\n".join(map(identity, shards))
        folder = build_once(
            cache_dir() / "shards" / sha256(os.fsencode(key)).hexdigest()[:32],
            partial(_index, shards, self.text_key),
        )
        index = read_table(folder / "clips.arrow")
        skipped = [Skip(*fault) for fault in json.loads((folder / "faults.json").read_text(encoding="utf-8"))]
        columns = {name: index[name] for name in ("clip_id", "text", "speaker", "duration")}
        members = index.select(["archive", "name", "offset", "size"])
        audio = TarAudio(tuple(shards), members, self.max_seconds)
        origin = f"{self.root}, split {split}"
        return sound_clips(columns, audio, self.max_seconds, [], skipped, origin)

    def _shards(self, split: str) -> list[Path]:
        if SPLIT in self.root:
            patterns = [self.root.replace(SPLIT, split)]
        elif Path(self.root).is_dir():
            patterns = [f"{self.root}/{split}/*.tar", f"{self.root}/{split}-*.tar"]
        else:
            raise UserError(f"{self.root} is no folder of shards, and no pattern with the word {SPLIT} in it")
        for pattern in patterns:
            if shards := sorted(Path(file) for file in glob(pattern)):
                return shards
        there = f", there are shards of: {', '.join(known)}" if (known := self._splits()) else ""
        raise UserError(f"no shard {' or '.join(patterns)} for the split {split!r}{there}")

    def _splits(self) -> list[str]:
        """The splits of a folder, for an error message."""
        folder = Path(self.root)
        named = (re.fullmatch(r"(.+)-.*\.tar", file.name) for file in folder.glob("*.tar"))
        return sorted(
            {match[1] for match in named if match} | {file.parent.name for file in folder.glob("*/*.tar")}
        )


def _index(shards: list[Path], text_key: str, folder: Path) -> None:
    """Write clips.arrow and faults.json for these shards."""
    skips: list[Skip] = []
    write_rows(folder / "clips.arrow", _SCHEMA, _rows(shards, text_key, skips))
    (folder / "faults.json").write_text(
        json.dumps([(skip.clip_id, skip.reason, skip.detail) for skip in skips]), encoding="utf-8"
    )


def _rows(shards: list[Path], text_key: str, skips: list[Skip]) -> Iterator[tuple]:
    """The columns of _SCHEMA of every usable sample. Faulty samples and damaged shards are added to `skips`."""
    for number, shard in track(enumerate(shards), "indexing shards", total=len(shards)):
        try:
            with shard.open("rb") as file:
                for key, sample in _samples(file, shard, skips).items():
                    clip_id = f"{shard.stem}/{key}"
                    try:
                        audio, values = _audio(key, sample), _values(file, key, sample, text_key)
                        yield number, *audio, clip_id, *values
                    except AudioFault as fault:
                        skips.append(Skip(clip_id, fault.reason, f"{shard}: {fault.detail}"))
        except OSError as error:
            skips.append(Skip(shard.name, "missing file", f"{shard}: {error.strerror}"))


def _samples(file: BinaryIO, shard: Path, skips: list[Skip]) -> dict[str, dict[str, Member]]:
    """The members of a shard by key and extension. The extension starts at the first dot of the name, as is usual."""
    samples: dict[str, dict[str, Member]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    try:
        for member in read_members(file):
            folder, base = posixpath.split(member.name)
            stem, _, ending = base.partition(".")
            if stem:  # names that start with a dot are files of the operating system
                key, ending = posixpath.join(folder, stem), ending.lower()
                seen[key, ending] += 1
                samples.setdefault(key, {})[ending] = member
    except TornArchive as error:
        skips.append(Skip(shard.name, "torn archive", f"{shard}: {error}; clips behind it are lost"))
    # If a name occurs twice, it is unknown which text belongs to which audio.
    for key in dict.fromkeys(key for (key, _), count in seen.items() if count > 1):
        times, name = max((seen[key, ending], member.name) for ending, member in samples.pop(key).items())
        skips += [
            Skip(f"{shard.stem}/{key}", "double name", f"{shard}: {name} is there {times} times")
        ] * times
    return samples


def _audio(key: str, sample: dict[str, Member]) -> Member:
    """The audio file of a sample. Raises AudioFault if it has none."""
    for ending in AUDIO_ENDINGS:
        if ending in sample:
            return sample[ending]
    raise AudioFault("missing file", f"{key} has no {', '.join(AUDIO_ENDINGS)}, it has: {', '.join(sample)}")


def _values(file: BinaryIO, key: str, sample: dict[str, Member], text_key: str) -> tuple[str, str, float]:
    """Text, speaker and seconds (NaN if unknown). Raises AudioFault."""
    described = _json(file, sample["json"]) if "json" in sample else {}
    for name in ("offset", *UNREAD):
        if described.get(name):
            raise AudioFault(
                "damaged row",
                f"{sample['json'].name}: {name!r} says which part of the audio is meant, and is not read",
            )
    if "txt" in sample:
        text = _text(file, sample["txt"])
    elif "json" not in sample:
        raise AudioFault("missing text", f"{key} has neither txt nor json, it has: {', '.join(sample)}")
    elif isinstance(described.get(text_key), str):
        text = described[text_key]
    else:
        raise AudioFault("missing text", f"{sample['json'].name} has no text under {text_key!r}")
    speaker, seconds = described.get("speaker"), described.get("duration")
    return (
        text,
        speaker if isinstance(speaker, str) else "",
        seconds if isinstance(seconds, float) else nan,
    )


def _json(file: BinaryIO, member: Member) -> dict:
    try:
        # Numbers of any length are read as float64. Half of a surrogate pair, which JSON can hold, is not a character.
        values = json.loads(_text(file, member), parse_int=float)
        json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise AudioFault("damaged row", f"{member.name}: {error}") from error
    if not isinstance(values, dict):
        raise AudioFault("damaged row", f"{member.name} is not a JSON object")
    return values


def _text(file: BinaryIO, member: Member) -> str:
    if member.size > _MAX_TEXT_BYTES:
        raise AudioFault("damaged row", f"{member.name} has {member.size} bytes, too many for a transcript")
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AudioFault("damaged row", f"{member.name}: its characters are not UTF-8") from error
