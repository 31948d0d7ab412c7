"""Augmentation of training clips: which changes a clip gets, and with which draw (`data.augment`).

A draw depends on the seed, the step, the clip's id and the kind of change alone. So a clip sounds the same after a
resume, on any rank and in any worker, and other clips or other kinds do not move it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from diva.audio import augmentation as audio
from diva.audio.decoding import decode, duration_of, to_mono_16khz
from diva.audio.frames import HOP_SAMPLES, SAMPLE_RATE
from diva.audio.masks import Masks, draw_spans
from diva.errors import AudioFault, UserError

Range = tuple[float, float]
# Longest recording of noise, in seconds.
_LONGEST_RECORDING = 7_200.0


class Draw(NamedTuple):
    """What a random choice depends on."""

    seed: int
    step: int  # number of the global batch since the start of training
    clip_id: str

    def generator(self, kind: str) -> torch.Generator:
        key = f"{self.seed}\t{self.step}\t{kind}\t{self.clip_id}".encode()
        return torch.Generator().manual_seed(int.from_bytes(blake2b(key, digest_size=7).digest(), "big"))


def _uniform(of: Range, generator: torch.Generator) -> float:
    low, high = of
    return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=generator))


def _one_of(choices: list, generator: torch.Generator):
    return choices[int(torch.randint(len(choices), (), generator=generator))]


# The kinds of change. A clip gets each with its probability. They have no base class: then the keys of a config can be
# checked against them without importing torch.


@dataclass(frozen=True)
class Speed:
    """Faster or slower, with the pitch."""

    probability: float
    factor: Range

    def __call__(self, waveform: Tensor, generator: torch.Generator, shortest: int, longest: int) -> Tensor:
        """[S] -> [S'], with S' from `shortest` to `longest` samples; S has to be in this range."""
        factor = _uniform(self.factor, generator)
        samples = len(waveform)
        # Whole hundredths inside the limits. Rounded first: 100 * 1.1 is above 110.
        slowest = np.ceil(round(100 * samples / longest, 6)) / 100
        fastest = np.floor(round(100 * samples / shortest, 6)) / 100
        factor = min(max(round(factor, 2), slowest), fastest)
        return waveform if factor == 1 else audio.change_speed(waveform, factor)

    def __str__(self) -> str:
        return f"{_range(self.factor)} times as fast"


@dataclass(frozen=True)
class Reverberation:
    """The clip in a room: a simulated one, or an impulse response of a folder."""

    probability: float
    folder: str | None
    rt60: Range  # seconds
    direct_to_reverberant: Range  # dB

    @cached_property
    def files(self) -> list[Path]:
        return [] if self.folder is None else _audio_files(self.folder, "data.augment.reverberation.folder")

    def check(self) -> None:
        """Raises UserError if the folder has no audio file."""
        _ = self.files

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        if self.folder is not None:
            return audio.reverberate(waveform, _first_channel(_one_of(self.files, generator)))
        rt60 = _uniform(self.rt60, generator)
        ratio = _uniform(self.direct_to_reverberant, generator)
        return audio.reverberate(waveform, audio.simulated_room(rt60, ratio, generator))

    def __str__(self) -> str:
        simulated = (
            f"simulated, RT60 {_range(self.rt60)} s, direct sound {_range(self.direct_to_reverberant)} dB"
        )
        return simulated if self.folder is None else f"{len(self.files)} impulse responses"


@dataclass(frozen=True)
class Noise:
    """Noise at an SNR over the speech: coloured, or a recording of a folder."""

    probability: float
    folder: str | None
    colours: list[str]
    snr: Range  # dB

    def __post_init__(self) -> None:
        _check_names(self.colours, list(audio.COLOURS), "data.augment.noise.colours")

    @cached_property
    def recordings(self) -> list[tuple[Path, float]]:
        """File and seconds of each recording."""
        key = "data.augment.noise.folder"
        files = [] if self.folder is None else _audio_files(self.folder, key)
        try:
            return [(file, duration_of(file, _LONGEST_RECORDING)) for file in files]
        except AudioFault as fault:
            raise UserError(f"{key}={self.folder}: {fault}; take that file out of the folder") from fault

    def check(self) -> None:
        """Raises UserError if the folder has no audio file, or a damaged one."""
        _ = self.recordings

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        snr = _uniform(self.snr, generator)
        if self.folder is None:
            noise = audio.coloured_noise(_one_of(self.colours, generator), len(waveform), generator)
        else:
            noise = self._recorded(len(waveform), generator)
        return audio.add_noise(waveform, noise, snr)

    def _recorded(self, samples: int, generator: torch.Generator) -> Tensor:
        """A random part [samples] of a random recording; of a longer one, only that part is read."""
        file, seconds = _one_of(self.recordings, generator)
        wanted = samples / SAMPLE_RATE
        offset, duration = 0.0, None
        if seconds > wanted + 1:
            offset, duration = _uniform((0.0, seconds - wanted - 1), generator), wanted
        recording = torch.from_numpy(decode(file, _LONGEST_RECORDING, offset, duration))
        return audio.random_part(recording, samples, generator)

    def __str__(self) -> str:
        source = " ".join(self.colours) if self.folder is None else f"{len(self.recordings)} recordings"
        return f"{source}, SNR {_range(self.snr)} dB"


@dataclass(frozen=True)
class Gain:
    """Louder or quieter."""

    probability: float
    decibels: Range

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        return audio.change_gain(waveform, _uniform(self.decibels, generator))

    def __str__(self) -> str:
        return f"{_range(self.decibels)} dB"


@dataclass(frozen=True)
class Telephone:
    """The band of a telephone."""

    probability: float

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        return audio.telephone_band(waveform)

    def __str__(self) -> str:
        return "8 kHz, 300 to 3400 Hz"


@dataclass(frozen=True)
class Codec:
    """Encoded and decoded again."""

    probability: float
    names: list[str]
    kilobits: Range  # a second

    def __post_init__(self) -> None:
        _check_names(self.names, list(audio.CODECS), "data.augment.codec.names")

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        name = _one_of(self.names, generator)
        return audio.transcode(waveform, name, _uniform(self.kilobits, generator))

    def __str__(self) -> str:
        return f"{' '.join(self.names)}, {_range(self.kilobits)} kbit/s"


@dataclass(frozen=True)
class SpecAugment:
    """Hidden parts of the log-mel."""

    probability: float
    time_masks: int
    time_seconds: float  # longest mask
    time_share: float  # of the clip, longest mask
    band_masks: int
    band_share: float  # of the mel bins, widest mask

    def spans(self, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times [K, 2] in mel frames and bands [J, 2] as fractions of the bins, of a clip of `samples`."""
        frames = samples / HOP_SAMPLES
        widest = min(self.time_seconds * SAMPLE_RATE / HOP_SAMPLES, self.time_share * frames)
        times = draw_spans(self.time_masks, widest, frames, generator)
        return times.long(), draw_spans(self.band_masks, self.band_share, 1.0, generator)

    def __str__(self) -> str:
        return f"{self.time_masks} spans of time and {self.band_masks} bands of the log-mel"


Kind = Speed | Reverberation | Noise | Gain | Telephone | Codec | SpecAugment


@dataclass(frozen=True)
class Augmentation:
    """The changes of a clip, in the order in which they happen to speech: speaker, room, recorder, line.

    Raises UserError for a name that does not exist.
    """

    speed: Speed
    reverberation: Reverberation
    noise: Noise
    gain: Gain
    telephone: Telephone
    codec: Codec
    spec_augment: SpecAugment

    @property
    def kinds(self) -> dict[str, Kind]:
        """Those that are switched on, in their order."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: kind for name, kind in every.items() if kind.probability > 0}

    @property
    def masks(self) -> bool:
        """Whether parts of the log-mel are hidden."""
        return self.spec_augment.probability > 0

    def check(self) -> None:
        """Raises UserError if a folder cannot be used."""
        for kind in (self.reverberation, self.noise):
            if kind.probability > 0:
                kind.check()

    def __str__(self) -> str:
        parts = [f"{name} {kind.probability:g} ({kind})" for name, kind in self.kinds.items()]
        return "; ".join(parts) or "none"

    def waveform(self, clip: np.ndarray, draw: Draw, shortest: int, longest: int) -> np.ndarray:
        """[S] -> [S'], in [-1, 1]. A change of speed gives S' from `shortest` to `longest`, in samples."""
        with _one_thread():
            waveform = torch.from_numpy(clip)
            for name, kind in self.kinds.items():
                generator = draw.generator(name)
                if isinstance(kind, SpecAugment) or not _chosen(kind, generator):
                    continue
                try:
                    if isinstance(kind, Speed):
                        waveform = kind(waveform, generator, shortest, longest)
                    else:
                        waveform = kind(waveform, generator)
                except AudioFault:  # silence in that part of a recording: the clip itself is sound
                    continue
                waveform = waveform / waveform.abs().max().clamp(min=1.0)
            return waveform.numpy()

    def no_masks(self, clips: int) -> Masks | None:
        """Masks for a batch that hide nothing yet; None if no clip gets any."""
        if not self.masks:
            return None
        kind = self.spec_augment
        times = torch.zeros(clips, kind.time_masks, 2, dtype=torch.int64)
        return Masks(times, torch.zeros(clips, kind.band_masks, 2))

    def spans(self, samples: int, draw: Draw) -> tuple[Tensor, Tensor]:
        """Hidden times [K, 2] and bands [J, 2] of a clip of `samples`, as `diva.audio.masks.Masks` has them."""
        generator = draw.generator("spec_augment")
        chosen = _chosen(self.spec_augment, generator)
        times, bands = self.spec_augment.spans(samples, generator)
        return (times, bands) if chosen else (torch.zeros_like(times), torch.zeros_like(bands))


def _chosen(kind: Kind, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < kind.probability


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker of a DataLoader: sums of several threads could differ from its sums in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _audio_files(folder: str, key: str) -> list[Path]:
    """All files below a folder that libsndfile may read, in the order of their names. Raises UserError for none."""
    known = {f".{name.lower()}" for name in soundfile.available_formats()} | {".opus"}
    files = sorted(file for file in Path(folder).expanduser().rglob("*") if file.suffix.lower() in known)
    if not files:
        raise UserError(f"{key}={folder} has no audio file; name a folder of recordings, or null")
    return files


def _first_channel(file: Path) -> Tensor:
    """An impulse response [L]. The channels are other places in the room, so their mean would be no place at all."""
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioFault("damaged audio", f"{file}: {error.error_string}") from error
    return torch.from_numpy(to_mono_16khz(samples[:, 0], rate, str(file)))


def _check_names(names: list[str], known: list[str], key: str) -> None:
    if not names or set(names) - set(known):
        raise UserError(f"{key}={names} must be a list of {', '.join(known)}")


def _range(of: Range) -> str:
    return f"{of[0]:g} to {of[1]:g}"
