"""Files, bytes and arrays of samples -> float32 mono waveforms at 16 kHz."""

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

from diva.audio.frames import SAMPLE_RATE, WHISPER_SECONDS
from diva.errors import AudioFault

# A rate that shares no factor with 16 kHz wants a resampling filter of gigabytes; real ones want far less.
_MAX_FILTER_TAPS = 4_000_000
# Peak below which a clip is silence: -60 dB of full scale.
SILENCE_PEAK = 1e-3


def decode(source: str | Path | bytes, max_seconds: float = WHISPER_SECONDS) -> np.ndarray:
    """Read audio in any format and rate that libsndfile knows as float32 mono at 16 kHz, [S] in [-1, 1].

    Raises AudioFault (missing file, damaged audio, zero length, too long, silence). The length is checked
    against the header before anything is read, so a header that claims hours costs nothing.
    """
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise AudioFault("missing file", str(source))
    name = "bytes" if isinstance(source, bytes) else str(source)
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            seconds = file.frames / file.samplerate
            if seconds > max_seconds:
                raise AudioFault("too long", f"{name} lasts {seconds:.1f} s, the limit is {max_seconds:g} s")
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise AudioFault("damaged audio", f"{name}: {error}") from error
    return to_mono_16khz(samples, rate, name)


def to_mono_16khz(samples: np.ndarray, rate: int, name: str = "array") -> np.ndarray:
    """[S] or [S, channels] at `rate` Hz -> float32 [S] at 16 kHz; AudioFault where nothing can be heard."""
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if len(samples) == 0:
        raise AudioFault("zero length", f"{name} holds no samples")
    if not np.isfinite(samples).all():
        raise AudioFault("damaged audio", f"{name} holds samples that are not finite")
    waveform = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    if rate != SAMPLE_RATE:
        if rate * SAMPLE_RATE / math.gcd(rate, SAMPLE_RATE) ** 2 > _MAX_FILTER_TAPS:
            raise AudioFault("damaged audio", f"{name} has a sampling rate of {rate} Hz")
        waveform = _resampler(rate)(waveform)
    if waveform.abs().max() < SILENCE_PEAK:
        raise AudioFault("silence", f"{name} never rises above {SILENCE_PEAK:g} of full scale")
    return waveform.numpy()


@lru_cache(maxsize=8)
def _resampler(rate: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)


def to_waveform(
    clip: str | Path | bytes | np.ndarray | Tensor | Sequence[float],
    rate: int = SAMPLE_RATE,
    max_seconds: float = WHISPER_SECONDS,
) -> np.ndarray:
    """A file's path, its bytes, or samples at `rate` Hz -> float32 mono at 16 kHz, [S].

    Samples are [S], [S, channels] or [channels, S]; whole numbers are scaled by their type's range. Raises
    AudioFault as `decode` does.
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
        samples = samples / np.iinfo(samples.dtype).max
    return to_mono_16khz(samples, int(rate))
