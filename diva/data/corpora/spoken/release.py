"""A corpus that is made here: a plan of sentences and voices, and its clips in Common Voice's layout.

The layout is that of a real release: RELEASE/en/clips/*.mp3, TSV files, clip_durations.tsv. Two columns are added at
the end: `answer` (the accepted answers, separated by `|`; empty if they cannot be checked) and `template`.
"""

import argparse
import io
import json
import os
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import soundfile
from filelock import FileLock

from diva.data.corpora.common_voice import CommonVoice
from diva.data.corpora.spoken.sentences import Sentence
from diva.data.corpora.spoken.voices import Voice
from diva.data.manifest import Manifest
from diva.data.words import distinct_words
from diva.errors import UserError
from diva.files import written_whole
from diva.terminal import progress_bar

LOCALE = "en"
DEFAULT_SEED = 1
# Increase it if the same words are spoken or encoded differently. Then existing clips are made again.
SPEECH_VERSION = 1
COLUMNS = [
    *("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes", "age"),
    *("gender", "accents", "variant", "locale", "segment", "answer", "template"),
]
_DURATIONS = "clip_durations.tsv"


@dataclass(frozen=True)
class Clip:
    """One sentence, spoken by one voice."""

    sentence: Sentence
    voice: Voice
    stretch: float  # factor on durations: above 1 is slower
    pitch: float  # factor on the pitch; it has no effect on the voice rms

    @property
    def file(self) -> str:
        """The file name is a digest of all settings of the clip. So an existing file is always the right one."""
        settings = self.voice.settings(self.stretch, self.pitch)
        return f"common_voice_en_{digest(self.sentence.text, *settings, SPEECH_VERSION)[:16]}.mp3"

    def row(self) -> dict[str, str]:
        return dict.fromkeys(COLUMNS, "") | {
            "client_id": self.voice.name,
            "path": self.file,
            "sentence_id": digest(self.sentence.text),
            "sentence": self.sentence.text,
            "up_votes": "2",
            "down_votes": "0",
            "gender": self.voice.gender,
            "accents": self.voice.accent,
            "locale": LOCALE,
            "answer": self.sentence.answer or "",
            "template": self.sentence.template,
        }


Splits = dict[str, list[Clip]]


def digest(*parts: object) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()


def cast(
    sentence: Sentence,
    voices: Sequence[Voice],
    seed: object,
    tempo: tuple[float, float],
    pitch: tuple[float, float],
) -> Clip:
    """A clip of a sentence by one of the voices. `tempo` and `pitch` are ranges of factors on the voice's own.

    The choice depends on the sentence and the seed alone.
    """
    chance = random.Random(f"{seed} {sentence.text}")
    voice = chance.choice(voices)
    return Clip(sentence, voice, voice.stretch * chance.uniform(*tempo), chance.uniform(*pitch))


class SpokenCorpus(ABC):
    """A corpus in the folder `release`, made on first use."""

    release: Path

    @property
    @abstractmethod
    def identity(self) -> str:
        """The content of the marker file of the complete corpus. A corpus with another marker is made again."""

    @abstractmethod
    def splits(self) -> Splits:
        """The clips of each split. A clip may be in several splits. Raises UserError."""

    def texts(self) -> Mapping[str, str]:
        """Further files of the release: name -> content."""
        return {}

    def manifest(self, split: str) -> Manifest:
        """The clips of a split, or of `validated` (all). Raises as `prepare` does."""
        self.prepare()
        return CommonVoice(self.release, LOCALE).manifest(split)

    def prepare(self) -> None:
        """Make the missing clips. It may be interrupted, and several processes may call it at once.

        Raises UserError if flite is missing or the folder cannot be written.
        """
        if self._is_complete():
            return
        try:
            self.release.mkdir(parents=True, exist_ok=True)
            with FileLock(self.release / ".lock"):
                if not self._is_complete():  # checked again: another process may have made it in the meantime
                    self._marker.unlink(missing_ok=True)
                    self._make()
        except OSError as error:
            raise UserError(
                f"cannot write the spoken corpus to {self.release}: {error.strerror}; make room, or choose"
                " another folder with data.root"
            ) from error

    def _make(self) -> None:
        splits = self.splits()
        clips = list({clip.file: clip for of_split in splits.values() for clip in of_split}.values())
        _speak_all(clips, self._clips_folder)
        _write_tables(splits, clips, self._clips_folder.parent)
        for name, text in self.texts().items():
            _write(self.release / name, text)
        _write(self._marker, self.identity)

    @property
    def _marker(self) -> Path:
        return self.release / "complete"

    @property
    def _clips_folder(self) -> Path:
        return self.release / LOCALE / "clips"

    def _is_complete(self) -> bool:
        if not self._marker.is_file() or self._marker.read_text(encoding="utf-8") != self.identity:
            return False
        durations = self._clips_folder.with_name(_DURATIONS)
        if not durations.is_file():
            return False
        _, *lines = durations.read_text(encoding="utf-8").splitlines()
        return not _missing((line.split("\t")[0] for line in lines), self._clips_folder)


def _missing(names: Iterable[str], folder: Path) -> set[str]:
    return set(names) - ({entry.name for entry in os.scandir(folder)} if folder.is_dir() else set())


def _speak_all(clips: Sequence[Clip], folder: Path) -> None:
    """Write every clip as an mp3 to `folder`, and delete all other files there."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {clip.file: clip for clip in clips}
    for path in folder.iterdir():
        if path.name not in wanted or not _milliseconds(path):
            path.unlink()
    names = _missing(wanted, folder)
    if not names:
        return
    missing = [clip for name, clip in wanted.items() if name in names]
    for voice in dict.fromkeys(clip.voice for clip in missing):
        voice.check()
    # Threads are enough: flite and the mp3 encoder work without the interpreter's lock.
    with progress_bar() as progress, ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = progress.add_task("speaking", total=len(clips), completed=len(clips) - len(missing))
        try:
            for future in as_completed([pool.submit(_speak, clip, folder) for clip in missing]):
                future.result()
                progress.advance(bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _speak(clip: Clip, folder: Path) -> None:
    samples, rate = clip.voice.speak(clip.sentence.text, clip.stretch, clip.pitch)
    mp3 = io.BytesIO()
    soundfile.write(mp3, samples, rate, format="MP3")
    # Only a complete file gets its final name. So after an interruption the existing clips are valid.
    with written_whole(folder / clip.file) as file:
        file.write_bytes(mp3.getvalue())


def _write_tables(splits: Splits, clips: Sequence[Clip], folder: Path) -> None:
    for split, of_split in (splits | {"validated": list(clips)}).items():
        rows = [COLUMNS, *(list(clip.row().values()) for clip in of_split)]
        _write(folder / f"{split}.tsv", "".join("\t".join(row) + "\n" for row in rows))
    lines = [f"{clip.file}\t{_milliseconds(folder / 'clips' / clip.file)}\n" for clip in clips]
    _write(folder / _DURATIONS, "clip\tduration[ms]\n" + "".join(lines))


def _milliseconds(path: Path) -> int:
    """Duration by the header, in milliseconds; 0 for a file that is not audio."""
    try:
        info = soundfile.info(path)
    except soundfile.SoundFileError:
        return 0
    return round(1000 * info.frames / info.samplerate)


def _write(path: Path, text: str) -> None:
    with written_whole(path) as file:
        file.write_text(text, encoding="utf-8")


def _summary(corpus: SpokenCorpus, splits: Iterable[str]) -> str:
    lines = [str(corpus.release)]
    for split in splits:
        manifest = corpus.manifest(split)
        minutes = manifest.durations.sum() / 60
        words = distinct_words(manifest.clips["text"])
        lines.append(f"{split:<12} {len(manifest):>6,} clips {minutes:7.1f} minutes {words:>6,} words")
    return "\n".join(lines)


def corpus_command(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    corpus: Callable[[argparse.Namespace], SpokenCorpus],
    splits: Iterable[str],
) -> int:
    """The command of a corpus: make the corpus that the parsed arguments name, and print a summary of it."""
    options = parser.parse_args(arguments)
    try:
        print(_summary(corpus(options), splits))
    except KeyboardInterrupt:
        print("interrupted; the next call goes on from here", file=sys.stderr)
        return 130
    return 0
