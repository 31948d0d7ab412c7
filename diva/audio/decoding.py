"""Files, bytes and arrays of samples -> float32 mono waveforms at 16 kHz."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from ..errors import AudioFault
from .containers import check_log, check_ogg, whole_mp3, whole_wav
from .foreign import decode_foreign, foreign_format
from .frames import SAMPLE_RATE, WHISPER_SECONDS

# Limit of the resampling filter. A rate without a common factor with 16 kHz needs gigabytes; usual rates need far less.
_MAX_FILTER_TAPS = 4_000_000
# libsndfile reports this number of frames or more if the header does not contain the number.
_UNKNOWN_FRAMES = 1 << 62
_BLOCK = 1 << 20  # samples read at a time
# A decoder may give this much less than the header says: the first frames of an mp3 only initialize the decoder.
_SLACK_SECONDS = 0.15
# A clip with a peak below this is silence: -60 dB of full scale.
SILENCE_PEAK = 1e-3
# Samples above this (+18 dB) are not a loud recording but numbers of another format.
MAX_PEAK = 8.0
# If the correlation of a channel with the loudest one is below this, its polarity is inverted.
_OPPOSITE = -0.5


def decode(
    source: str | Path | bytes,
    max_seconds: float = WHISPER_SECONDS,
    offset: float = 0.0,
    duration: float | None = None,
) -> np.ndarray:
    """Read audio in any format and rate that libsndfile or PyAV knows as float32 mono at 16 kHz, [S] in [-1, 1].

    `offset` and `duration`, in seconds, select a segment. The audio is read to its real end, not to the length in its
    header. A wrong header with a length of hours does not take memory. Raises AudioFault (missing file, damaged audio,
    unknown format, ends early, zero length, too long, out of range, silence).
    """
    name = "bytes" if isinstance(source, bytes) else str(source)
    # An hour of speech from a browser is only a few MB. The limit stops decoding as soon as the audio is too long.
    longest = offset + max_seconds if duration is None else math.inf
    with _open(source, name, longest) as file:
        samples, rate = _read(file, name, max_seconds, offset, duration), file.samplerate
    return to_mono_16khz(samples, rate, name)


def duration_of(
    source: str | Path | bytes, max_seconds: float = WHISPER_SECONDS, offset: float = 0.0
) -> float:
    """Seconds of a file or of encoded bytes from `offset` on. Audio is only decoded if no header has the duration.

    Raises AudioFault (missing file, damaged audio, unknown format, ends early, zero length, too long).
    """
    name = "bytes" if isinstance(source, bytes) else str(source)
    with _open(source, name) as file:
        if file.frames < _UNKNOWN_FRAMES:
            seconds = file.frames / file.samplerate - offset
            _check_seconds(seconds, max_seconds, name)
        else:
            seconds = len(_read(file, name, max_seconds, offset, None)) / file.samplerate
    if seconds <= 0:
        raise AudioFault(
            "zero length", f"{name} holds no samples{f' from {offset:g} s on' if offset else ''}"
        )
    return seconds


class _SoundFile(soundfile.SoundFile):
    """A SoundFile that does not seek in a file of unknown length. libsndfile wrongly reports that it can seek."""

    def seekable(self) -> bool:
        return self.frames < _UNKNOWN_FRAMES and super().seekable()


@contextmanager
def _open(source: str | Path | bytes, name: str, longest: float = math.inf) -> Iterator[soundfile.SoundFile]:
    """Open the audio so that all of it can be read. Errors of the libraries become AudioFault.

    Also raises AudioFault for a format that only PyAV reads if the audio is longer than `longest` seconds.
    """
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise AudioFault("missing file", name)
    try:
        # Opened by Python: libsndfile only accepts file names that are UTF-8.
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as raw:
            whole = _whole(raw, name, longest)
            with _SoundFile(whole) as file:
                check_log(file.extra_info, file.format, name)
                try:
                    yield file
                except soundfile.LibsndfileError as error:
                    if file.format == "FLAC" and not whole.read(
                        1
                    ):  # libsndfile has read to the end of the file
                        raise AudioFault("ends early", f"{name}: {error.error_string}") from error
                    raise
    except AudioFault:
        raise
    # ValueError, TypeError, AssertionError: soundfile raises them if libsndfile returns unexpected values.
    except (RuntimeError, OSError, ValueError, TypeError, AssertionError, MemoryError) as error:
        problem = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
        raise AudioFault("damaged audio", f"{name}: {problem}") from error


def _whole(raw: BinaryIO, name: str, longest: float) -> BinaryIO:
    """The file, corrected so that libsndfile reads all of it. Raises AudioFault if that is impossible."""
    size = raw.seek(0, io.SEEK_END)
    if size == 0:
        raise AudioFault("damaged audio", f"{name} is empty, it has 0 bytes")
    raw.seek(0)
    head = raw.read(16)
    raw.seek(0)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return whole_wav(raw, size, name)
    if head[:4] == b"OggS":
        check_ogg(raw.read(), name)
    elif (head[:3] == b"ID3" or (head[0] == 0xFF and head[1:2] > b"\xdf")) and (
        whole := whole_mp3(raw.read(), name)
    ):
        return io.BytesIO(whole)
    if kind := foreign_format(head):
        return decode_foreign(raw, kind, name, longest)
    raw.seek(0)
    return raw


def _read(
    file: soundfile.SoundFile, name: str, max_seconds: float, offset: float, duration: float | None
) -> np.ndarray:
    """Samples [S, channels] from `offset` for `duration` seconds; None: to the end. Raises AudioFault."""
    rate, known = file.samplerate, file.frames < _UNKNOWN_FRAMES
    seconds = file.frames / rate - offset if duration is None else duration
    if known or duration is not None:
        _check_seconds(seconds, max_seconds, name)
    first, limit = round(offset * rate), int(max_seconds * rate)
    wanted = limit + 1 if duration is None else round(duration * rate)
    if known:
        wanted = min(wanted, max(0, file.frames - first))
        if duration is not None and wanted < round(duration * rate) - _SLACK_SECONDS * rate:
            raise AudioFault(
                "ends early",
                f"{name} lasts {file.frames / rate:.1f} s, {offset:g} s to {offset + duration:g} s of it are wanted",
            )
    if file.seekable():
        file.seek(min(first, file.frames))
    else:
        _skip(file, first)
    samples = _read_blocks(file, wanted)
    if len(samples) > limit:
        raise AudioFault("too long", f"{name} lasts more than the limit of {max_seconds:g} s")
    missing = wanted - len(samples)
    if (known or duration is not None) and missing > _SLACK_SECONDS * rate:
        raise AudioFault(
            "ends early", f"{name} lacks the last {missing / rate:.1f} s of what its header says"
        )
    return samples


def _read_blocks(file: soundfile.SoundFile, wanted: int) -> np.ndarray:
    """At most `wanted` samples [S, channels]."""
    blocks = [np.zeros((0, file.channels), dtype=np.float32)]
    while wanted > 0:
        block = file.read(frames=min(wanted, _BLOCK), dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(block)
        wanted -= len(block)
    return np.concatenate(blocks) if len(blocks) != 2 else blocks[1]


def _skip(file: soundfile.SoundFile, samples: int) -> None:
    while samples > 0 and (read := len(file.read(frames=min(samples, _BLOCK), dtype="float32"))):
        samples -= read


def _check_seconds(seconds: float, max_seconds: float, name: str) -> None:
    if seconds > max_seconds:
        raise AudioFault("too long", f"{name} lasts {seconds:.1f} s, the limit is {max_seconds:g} s")


def to_mono_16khz(samples: np.ndarray, rate: int, name: str = "array") -> np.ndarray:
    """[S] or [S, channels] at `rate` Hz -> float32 [S] at 16 kHz, in [-1, 1].

    A clip with a peak between full scale and MAX_PEAK is scaled down to full scale. Channels are averaged. Silent
    channels are skipped. A channel of inverted polarity is inverted first, so that it does not cancel the others.
    Raises AudioFault (zero length, damaged audio, out of range, silence).
    """
    if len(samples) == 0:
        raise AudioFault("zero length", f"{name} holds no samples")
    if not np.isfinite(samples).all():
        raise AudioFault("damaged audio", f"{name} holds samples that are not finite")
    peak = float(np.abs(samples).max())
    if peak > MAX_PEAK:
        raise AudioFault(
            "out of range",
            f"{name} has samples of up to {peak:g}, full scale is 1: give whole numbers as an integer type",
        )
    mono = np.ascontiguousarray(_mix(samples) if samples.ndim == 2 else samples, dtype=np.float32)
    waveform = torch.from_numpy(mono)
    if rate != SAMPLE_RATE:
        if rate * SAMPLE_RATE / math.gcd(rate, SAMPLE_RATE) ** 2 > _MAX_FILTER_TAPS:
            raise AudioFault("damaged audio", f"{name} has a sampling rate of {rate} Hz")
        waveform = _resampler(rate)(waveform)
    # The range, not the peak: a constant other than zero is silence too.
    if (waveform - waveform.mean()).abs().max() < SILENCE_PEAK:
        raise AudioFault("silence", f"{name} never moves by more than {SILENCE_PEAK:g} of full scale")
    return (waveform / waveform.abs().max().clamp(min=1.0)).numpy()


def _mix(samples: np.ndarray) -> np.ndarray:
    """[S, channels] -> [S]."""
    if samples.shape[1] == 1:
        return samples[:, 0]
    centred = samples - samples.mean(axis=0)
    audible = np.abs(centred).max(axis=0) >= SILENCE_PEAK
    if not audible.any():
        return samples.mean(axis=1)
    samples, centred = samples[:, audible], centred[:, audible]
    powers = np.square(centred).sum(axis=0)
    loudest = centred[:, powers.argmax()]
    correlations = loudest @ centred / np.sqrt(powers * powers.max())
    return (samples * np.where(correlations < _OPPOSITE, -1.0, 1.0)).mean(axis=1)


def whole_numbers_to_float(samples: np.ndarray) -> np.ndarray:
    """Samples of an integer type, of any shape, as float64 in [-1, 1].

    Full scale is that of the type. For a wider type than 16 bits it is that of 16 or 32 bits, the narrowest that holds
    the values: lists of numbers become int64, whatever their source. Unsigned types are centred on their middle.
    """
    kind = np.iinfo(samples.dtype)
    if samples.dtype.kind == "u":
        middle = (kind.max + 1) // 2
        return (samples.astype(np.float64) - middle) / middle
    peak = max(abs(int(samples.min())), abs(int(samples.max()))) if samples.size else 0
    bits = next((bits for bits in (16, 32) if bits <= kind.bits and peak <= 1 << (bits - 1)), kind.bits)
    return samples.astype(np.float64) / (1 << (bits - 1))


@lru_cache(maxsize=8)
def _resampler(rate: int) -> nn.Module:
    import torchaudio  # not above: the plugin for vLLM works without it

    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)


def to_waveform(
    clip: str | Path | bytes | np.ndarray | Tensor | Sequence[float],
    rate: int = SAMPLE_RATE,
    max_seconds: float = WHISPER_SECONDS,
) -> np.ndarray:
    """A file's path, its bytes, or samples at `rate` Hz -> float32 mono at 16 kHz, [S].

    Samples are [S], [S, channels] or [channels, S]. Whole numbers are read as by `whole_numbers_to_float`.
    Raises AudioFault as `decode` does.
    """
    if isinstance(clip, str) and "://" in clip:
        raise AudioFault("missing file", f"{clip} is an address; download it and give the file or its bytes")
    if isinstance(clip, (str, Path, bytes)):
        return decode(clip, max_seconds)
    samples = np.asarray(clip)
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf":
        raise AudioFault(
            "damaged audio", f"an array of shape {samples.shape} and type {samples.dtype} is no clip"
        )
    if not isinstance(rate, int | float) or not 1_000 <= rate <= 400_000:
        raise AudioFault("damaged audio", f"a sampling rate of {rate!r} Hz")
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    if len(samples) > max_seconds * rate:
        raise AudioFault(
            "too long", f"array lasts {len(samples) / rate:.1f} s, the limit is {max_seconds:g} s"
        )
    if samples.dtype.kind in "iu":
        samples = whole_numbers_to_float(samples)
    return to_mono_16khz(samples, int(rate))
