"""The arithmetic between samples at 16 kHz, mel frames of 10 ms (T), encoder frames of 20 ms (F) and virtual tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE = 16_000
HOP_SAMPLES = 160  # one mel frame, 10 ms
SAMPLES_PER_FRAME = 2 * HOP_SAMPLES  # one encoder frame, 20 ms
WHISPER_SECONDS = 30.0
# Whisper learned on 30 s windows, in which speech is followed by silence; an encoder that sees none of it
# after the last word shifts its frames. One second keeps their cosine to the 30 s ones at 0.98 to 0.99.
TAIL_SECONDS = 1.0
# Frames past the last valid one that the two convolutions look at: 2 mel frames, here with room to spare.
# They are always present as silence, so a clip's frames do not depend on the batch it is in.
_MARGIN_SAMPLES = 4 * HOP_SAMPLES


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
