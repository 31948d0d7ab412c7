"""The arithmetic between samples at 16 kHz, mel frames of 10 ms (T), encoder frames (F) and virtual tokens.

The encoder frames of most encoders are 20 ms apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE = 16_000
HOP_SAMPLES = 160  # one mel frame, 10 ms
SAMPLES_PER_FRAME = 2 * HOP_SAMPLES  # one encoder frame, 20 ms
WHISPER_SECONDS = 30.0
# Whisper was trained on 30 s windows, in which silence follows the speech. Without silence after the last word the
# encoder's frames change. With one second of it, their cosine to the frames of a 30 s window is 0.98 to 0.99.
TAIL_SECONDS = 1.0
# The two convolutions read 2 mel frames after the last valid one. The margin is larger than that. It is always silence,
# so a clip's frames do not depend on its batch.
_MARGIN_SAMPLES = 4 * HOP_SAMPLES


@dataclass(frozen=True)
class FrameCount:
    """How many frames an encoder makes of a clip.

    Each of `stages` is a window and a step: it makes one output of as many inputs as the window has, and moves on by
    the step. The inputs of the first stage are samples at 16 kHz. `tail_samples` of the silence after a clip are valid
    too.
    """

    stages: tuple[tuple[int, int], ...]
    tail_samples: int = 0

    @property
    def samples_per_frame(self) -> int:
        """Samples between the starts of two frames."""
        return math.prod(step for _, step in self.stages)

    def of(self, samples: Any) -> Any:
        """Number of frames of `samples`, an int or a tensor."""
        for window, step in self.stages:
            samples = (samples - window) // step + 1
        return samples

    def valid(self, samples: Tensor) -> Tensor:
        """Number of valid frames of clips of `samples`: speech and silent tail of at most 30 s. At least 1."""
        heard = (samples + self.tail_samples).clamp(max=int(WHISPER_SECONDS * SAMPLE_RATE))
        return self.of(heard).clamp(min=1)


WHISPER_FRAMES = FrameCount(((SAMPLES_PER_FRAME, SAMPLES_PER_FRAME),), int(TAIL_SECONDS * SAMPLE_RATE))


def valid_frames(samples: Tensor) -> Tensor:
    """Number of valid frames of 20 ms of clips of `samples`, as Whisper's encoder counts them."""
    return WHISPER_FRAMES.valid(samples)


def tokens_read(samples: Tensor, most: int, per_second: float | None) -> Tensor:
    """Samples of each clip [B] -> number of virtual tokens of each clip that the LLM reads, [B].

    The number is `per_second` times the seconds of speech and silent tail, at least 1 and at most `most`.
    With `per_second` None it is `most`.
    """
    if per_second is None:
        return torch.full_like(samples, most)
    return _tokens_of(valid_frames(samples), per_second).clamp(1, most)


def longest_tokens_read(padded_samples: int, most: int, per_second: float | None) -> int:
    """`tokens_read` of the longest clip that fits into a batch of `padded_samples`; it depends on the shape only."""
    if per_second is None:
        return most
    return max(1, min(most, _tokens_of(padded_samples // SAMPLES_PER_FRAME, per_second)))


def _tokens_of(frames: Any, per_second: float) -> Any:
    """Integer arithmetic, so that devices and the host agree. `per_second` is rounded to a thousandth."""
    frames_per_second = SAMPLE_RATE // SAMPLES_PER_FRAME
    return -(-frames * round(1000 * per_second) // (1000 * frames_per_second))


def padded_samples(seconds: float) -> int:
    """Samples of a padded batch: room for clips of at most `seconds`, the silent tail, and the margin.

    At most Whisper's 30 s window. There a long clip has a shorter tail.
    """
    wanted = int(np.ceil((seconds + TAIL_SECONDS) * SAMPLE_RATE / SAMPLES_PER_FRAME)) * SAMPLES_PER_FRAME
    return min(wanted + _MARGIN_SAMPLES, int(WHISPER_SECONDS * SAMPLE_RATE))


def pad_clips(clips: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Clips [S] -> one batch: waveforms [B, S'], padded with the silent tail that the encoder needs; samples [B]."""
    samples = torch.tensor([len(clip) for clip in clips])
    padded = torch.zeros(len(clips), padded_samples(int(samples.max()) / SAMPLE_RATE))
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    return padded, samples


def windows(waveform: np.ndarray) -> list[np.ndarray]:
    """[S] -> segments of at most 30 s. Each cut is in the quietest 0.1 s of the last 5 s of a window."""
    limit, step = int(WHISPER_SECONDS * SAMPLE_RATE), SAMPLE_RATE // 10
    parts = []
    while len(waveform) > limit:
        first = limit - 50 * step
        power = np.square(waveform[first:limit]).reshape(50, step).mean(axis=1)
        cut = first + int(power.argmin()) * step + step // 2
        parts.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*parts, waveform]


def valid_mask(length: int, valid: Tensor) -> Tensor:
    """Number of valid positions [B] -> mask [B, `length`], True at valid ones."""
    return torch.arange(length, device=valid.device) < valid.unsqueeze(1)
