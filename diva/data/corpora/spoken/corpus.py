"""A synthetic spoken corpus: sentences that people say to an assistant, spoken by flite, in Common Voice's layout.

`python -m diva.data.spoken_mini [--root data]` makes it. Training also makes it on first use.
The layout is that of a real release: RELEASE/en/clips/*.mp3, TSV files, clip_durations.tsv. Two columns are added at
the end: `answer` (the accepted answers, separated by `|`; empty if they cannot be checked) and `template`.
"""

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

import soundfile
from filelock import FileLock

from diva.command import exit_codes
from diva.data.corpora.common_voice import CommonVoice
from diva.data.corpora.spoken.sentences import Sentence, sentences
from diva.data.manifest import Manifest
from diva.errors import UserError
from diva.files import written_whole
from diva.terminal import progress_bar

RELEASE = "cv-corpus-spoken-mini"
LOCALE = "en"
DEFAULT_SEED = 1
MINIMUM = 20  # sentences; with fewer a split could be empty
SENTENCES = 6_000
# Fractions of the corpus; the rest is for training.
DEV = 0.04
SEEN_VOICE_TEST = 0.05
UNSEEN_VOICE_TEST = 0.04
# Ranges of random factors on each voice's own tempo and pitch.
TEMPO_RANGE = (0.85, 1.15)
PITCH_RANGE = (0.92, 1.08)
# Increase it if the same words are spoken or encoded differently. Then existing clips are made again.
SPEECH_VERSION = 1
COLUMNS = [
    *("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes", "age"),
    *("gender", "accents", "variant", "locale", "segment", "answer", "template"),
]


@dataclass(frozen=True)
class Voice:
    """A voice of flite. `stretch`, a factor on its durations, gives it the tempo of the other voices."""

    name: str
    gender: str
    accent: str
    stretch: float = 1.0


VOICES = (
    Voice("slt", "female_feminine", "United States English"),
    Voice("rms", "male_masculine", "United States English", stretch=0.84),
    Voice("kal16", "male_masculine", "United States English"),
)
UNSEEN_VOICE = Voice("awb", "male_masculine", "Scottish English")


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
        return (
            f"common_voice_en_{_digest(self.sentence.text, *self.flite_arguments, SPEECH_VERSION)[:16]}.mp3"
        )

    @property
    def flite_arguments(self) -> tuple[str, ...]:
        settings = f"duration_stretch={self.stretch:.3f}", f"f0_shift={self.pitch:.3f}"
        return "-voice", self.voice.name, "--setf", settings[0], "--setf", settings[1]

    def row(self) -> dict[str, str]:
        return dict.fromkeys(COLUMNS, "") | {
            "client_id": self.voice.name,
            "path": self.file,
            "sentence_id": _digest(self.sentence.text),
            "sentence": self.sentence.text,
            "up_votes": "2",
            "down_votes": "0",
            "gender": self.voice.gender,
            "accents": self.voice.accent,
            "locale": LOCALE,
            "answer": self.sentence.answer or "",
            "template": self.sentence.template,
        }


def _digest(*parts: object) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()


@lru_cache(maxsize=4)  # it takes a second, and the manifest of every split calls it
def plan(seed: int, limit: int | None = None) -> dict[str, list[Clip]]:
    """The clips of each split: sentence, voice, tempo and pitch.

    `unseen_voice` is the part of `test` whose voice is not in the training split.
    All random choices depend on the sentence itself. So most clips stay the same if templates or the number of
    sentences change.
    """
    texts = sorted(sentences(limit or SENTENCES, seed), key=lambda sentence: _digest(seed, sentence.text))
    total = len(texts)
    held_out = [round(total * part) for part in (UNSEEN_VOICE_TEST, SEEN_VOICE_TEST, DEV)]
    first, second, third = accumulate(held_out)
    unseen = [_cast(text, [UNSEEN_VOICE], seed) for text in texts[:first]]
    test, dev, train = (
        [_cast(text, VOICES, seed) for text in part]
        for part in (texts[first:second], texts[second:third], texts[third:])
    )
    return {"train": train, "dev": dev, "test": test + unseen, "unseen_voice": unseen}


def _cast(sentence: Sentence, voices: Sequence[Voice], seed: int) -> Clip:
    chance = random.Random(f"{seed} {sentence.text}")
    voice = chance.choice(voices)
    return Clip(sentence, voice, voice.stretch * chance.uniform(*TEMPO_RANGE), chance.uniform(*PITCH_RANGE))


class SpokenMini:
    """The corpus in ROOT/cv-corpus-spoken-mini, made on first use. The same seed gives the same corpus.

    `limit` is the number of sentences. Another seed or a limit has its own folder. Raises UserError for a limit below
    MINIMUM.
    """

    def __init__(self, root: str | Path, seed: int = DEFAULT_SEED, limit: int | None = None):
        if limit is not None and limit < MINIMUM:
            raise UserError(f"the spoken corpus needs a limit of at least {MINIMUM} sentences, not {limit}")
        name = RELEASE + (f"-seed{seed}" if seed != DEFAULT_SEED else "") + (f"-{limit}" if limit else "")
        self.release = Path(root).expanduser() / name
        self._folder = self.release / LOCALE
        self._marker = self.release / "complete"
        self.seed = seed
        self.limit = limit

    def manifest(self, split: str) -> Manifest:
        """The clips of `train`, `dev`, `test`, `unseen_voice` or `validated` (all). Raises as `prepare` does."""
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
                    _speak_all(self._clips, self._folder / "clips")
                    _write_tables(self._splits, self._clips, self._folder)
                    _write(self._marker, self._identity)
        except OSError as error:
            raise UserError(
                f"cannot write the spoken corpus to {self.release}: {error.strerror}; make room, or choose"
                " another folder with data.root"
            ) from error

    @property
    def _splits(self) -> dict[str, list[Clip]]:
        return plan(self.seed, self.limit)

    @cached_property
    def _clips(self) -> list[Clip]:
        return [clip for split, clips in self._splits.items() if split != "unseen_voice" for clip in clips]

    @cached_property
    def _identity(self) -> str:
        """The content of the marker file of a complete corpus. It changes with the templates and the voices."""
        return _digest(*(clip.row() for clip in self._clips))

    def _is_complete(self) -> bool:
        there = self._marker.is_file() and self._marker.read_text(encoding="utf-8") == self._identity
        return there and not _missing(self._clips, self._folder / "clips")


def _missing(clips: Iterable[Clip], folder: Path) -> list[Clip]:
    present = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    return [clip for clip in clips if clip.file not in present]


def _speak_all(clips: Sequence[Clip], folder: Path) -> None:
    """Write every clip as an mp3 to `folder`, and delete all other files there."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {clip.file for clip in clips}
    for path in folder.iterdir():
        if path.name not in wanted or not _milliseconds(path):
            path.unlink()
    if not (missing := _missing(clips, folder)):
        return
    if shutil.which("flite") is None:
        raise UserError(
            "data=spoken_mini needs flite to speak, and it is not installed: apt-get install flite"
            " (on a Mac: brew install flite)"
        )
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
    command = ["flite", *clip.flite_arguments, "-t", clip.sentence.text, "-o", "/dev/stdout"]
    spoken = subprocess.run(command, capture_output=True)
    if spoken.returncode or not spoken.stdout:
        said = spoken.stderr.decode(errors="replace").strip() or f"exit code {spoken.returncode}"
        raise UserError(f"flite cannot speak as {clip.voice.name} (its voices: flite -lv): {said}")
    samples, rate = soundfile.read(io.BytesIO(spoken.stdout), dtype="float32")
    mp3 = io.BytesIO()
    soundfile.write(mp3, samples, rate, format="MP3")
    # Only a complete file gets its final name. So after an interruption the existing clips are valid.
    with written_whole(folder / clip.file) as file:
        file.write_bytes(mp3.getvalue())


def _write_tables(splits: dict[str, list[Clip]], clips: Sequence[Clip], folder: Path) -> None:
    for split, of_split in (splits | {"validated": list(clips)}).items():
        rows = [COLUMNS, *(list(clip.row().values()) for clip in of_split)]
        _write(folder / f"{split}.tsv", "".join("\t".join(row) + "\n" for row in rows))
    lines = [f"{clip.file}\t{_milliseconds(folder / 'clips' / clip.file)}\n" for clip in clips]
    _write(folder / "clip_durations.tsv", "clip\tduration[ms]\n" + "".join(lines))


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


def _summary(corpus: SpokenMini) -> str:
    lines = [str(corpus.release)]
    for split in ("train", "dev", "test", "unseen_voice"):
        manifest = corpus.manifest(split)
        minutes = manifest.durations.sum() / 60
        lines.append(f"{split:<12} {len(manifest):>6,} clips {minutes:7.1f} minutes")
    return "\n".join(lines)


@exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Make the corpus and print a summary of it."""
    parser = argparse.ArgumentParser(
        prog="python -m diva.data.spoken_mini", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--root", default="data", help="folder that gets the corpus (default: data)")
    parser.add_argument("--limit", type=int, help=f"how many sentences, instead of {SENTENCES:,}")
    options = parser.parse_args(arguments)
    try:
        print(_summary(SpokenMini(options.root, limit=options.limit)))
    except KeyboardInterrupt:
        print("interrupted; the next call goes on from here", file=sys.stderr)
        return 130
    return 0
