"""Bytes -> mono 16 kHz waveform -> log-mel, and the arithmetic between samples and frames.

Everything downstream speaks of samples at 16 kHz, mel frames of 10 ms (T) and encoder frames of 20 ms (F).
"""

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from diva.errors import AudioFault

SAMPLE_RATE = 16_000
N_FFT = 400
HOP_SAMPLES = 160  # one mel frame, 10 ms
SAMPLES_PER_FRAME = 2 * HOP_SAMPLES  # one encoder frame, 20 ms
WHISPER_SECONDS = 30.0
# Whisper learned on 30 s windows, in which speech is followed by silence; an encoder that sees none of it
# after the last word shifts its frames. One second keeps their cosine to the 30 s ones at 0.98 to 0.99.
TAIL_SECONDS = 1.0
# Frames past the last valid one that the two convolutions look at: 2 mel frames, here with room to spare.
# They are always present as silence, so a clip's frames do not depend on the batch it is in.
_MARGIN_SAMPLES = 4 * HOP_SAMPLES
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


def valid_frames(samples: Tensor) -> Tensor:
    """Encoder frames that speak for a clip of so many samples: its own and those of the silent tail, within 30 s."""
    frames = (samples + int(TAIL_SECONDS * SAMPLE_RATE)) // SAMPLES_PER_FRAME
    return frames.clamp(max=int(WHISPER_SECONDS * SAMPLE_RATE) // SAMPLES_PER_FRAME)


def tokens_read(samples: Tensor, most: int, per_second: float | None) -> Tensor:
    """Clips of so many samples [B] -> how many of `most` virtual tokens the LLM reads of each, [B].

    So many a second of speech and silent tail, at least one; all of them where `per_second` is None.
    """
    if per_second is None:
        return torch.full_like(samples, most)
    return _tokens_of(valid_frames(samples), per_second).clamp(1, most)


def longest_tokens_read(padded_samples: int, most: int, per_second: float | None) -> int:
    """The same for the longest clip that a batch of so many samples has room for, known from its shape alone."""
    if per_second is None:
        return most
    return max(1, min(most, _tokens_of(padded_samples // SAMPLES_PER_FRAME, per_second)))


def _tokens_of(frames: Any, per_second: float) -> Any:
    """In whole numbers, that devices and the host agree; a thousandth of a token a second is the finest step."""
    frames_per_second = SAMPLE_RATE // SAMPLES_PER_FRAME
    return -(-frames * round(1000 * per_second) // (1000 * frames_per_second))


def padded_samples(seconds: float) -> int:
    """Samples that a batch needs so that clips of up to `seconds` have their tail and the margin behind it.

    Never more than Whisper's 30 s window, where a long clip simply has a shorter tail.
    """
    wanted = int(np.ceil((seconds + TAIL_SECONDS) * SAMPLE_RATE / SAMPLES_PER_FRAME)) * SAMPLES_PER_FRAME
    return min(wanted + _MARGIN_SAMPLES, int(WHISPER_SECONDS * SAMPLE_RATE))


def pad_clips(clips: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Clips [S] -> one batch: waveforms [B, S'] with the silent tail the encoder wants, samples [B]."""
    samples = torch.tensor([len(clip) for clip in clips])
    padded = torch.zeros(len(clips), padded_samples(int(samples.max()) / SAMPLE_RATE))
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    return padded, samples


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


def windows(waveform: np.ndarray) -> list[np.ndarray]:
    """[S] -> stretches of up to 30 s, cut in the quietest tenth of a second of each window's last 5 s."""
    limit, step = int(WHISPER_SECONDS * SAMPLE_RATE), SAMPLE_RATE // 10
    parts = []
    while len(waveform) > limit:
        first = limit - 50 * step
        power = np.square(waveform[first:limit]).reshape(50, step).mean(axis=1)
        cut = first + int(power.argmin()) * step + step // 2
        parts.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*parts, waveform]


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram, batched, on whatever device the waveforms are on.

    Equal to transformers' WhisperFeatureExtractor (Radford et al. 2022, section 2.2); `num_mel_bins` is 80,
    or 128 for large-v3.
    """

    filters: Tensor
    window: Tensor
    dft: Tensor

    def __init__(self, num_mel_bins: int = 80):
        super().__init__()
        filters = mel_filter_bank(
            num_frequency_bins=1 + N_FFT // 2,
            num_mel_filters=num_mel_bins,
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("filters", torch.from_numpy(filters).float().T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.register_buffer("dft", windowed_dft(), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Waveforms [B, S] -> log-mel [B, M, T], T = S // 160, in float32 under autocast too."""
        with torch.autocast(waveforms.device.type, enabled=False):
            power = self._power_xla if waveforms.device.type == "xla" else self._power
            log_mel = (self.filters.float() @ power(waveforms.float())).clamp(min=1e-10).log10()
            # Each clip's own peak sets its floor, 80 dB below.
            log_mel = torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8.0)
            return (log_mel + 4.0) / 4.0

    def _power(self, waveforms: Tensor) -> Tensor:
        """Waveforms [B, S] -> power spectrogram [B, 1 + N_FFT / 2, T]."""
        stft = torch.stft(waveforms, N_FFT, HOP_SAMPLES, window=self.window.float(), return_complex=True)
        return stft[..., :-1].abs().square()

    def _power_xla(self, waveforms: Tensor) -> Tensor:
        """The same as a convolution: XLA has no STFT, and computes it on the host."""
        padded = F.pad(waveforms, (N_FFT // 2, N_FFT // 2), mode="reflect").unsqueeze(1)
        real, imaginary = F.conv1d(padded, self.dft.float(), stride=HOP_SAMPLES)[..., :-1].chunk(2, dim=1)
        return real.square() + imaginary.square()


def windowed_dft() -> Tensor:
    """The windowed transform of a frame as filters, [2 (1 + N_FFT / 2), 1, N_FFT]: real parts, then imaginary."""
    # Of whole turns the remainder only, and in float64: the sine of a large float32 is off.
    turns = torch.outer(torch.arange(1 + N_FFT // 2), torch.arange(N_FFT)) % N_FFT
    angle = turns.double() * (2 * math.pi / N_FFT)
    window = torch.hann_window(N_FFT, dtype=torch.float64)
    return torch.cat([angle.cos() * window, angle.sin() * window]).float().unsqueeze(1)
