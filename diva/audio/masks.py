"""SpecAugment: parts of a log-mel that are hidden (Park et al. 2019, section 2; without its time warping).

The spans are drawn where a batch is made, and applied where the log-mel is, on the device. torchaudio's transforms draw
from the global generator of the device, which a resume with other workers or ranks would not reproduce.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Masks:
    """What is hidden in each log-mel of a batch; an empty span hides nothing."""

    times: Tensor  # [B, K, 2] int64, first mel frame and first one behind
    bands: Tensor  # [B, J, 2] float32, the same as fractions of the mel bins

    def __call__(self, log_mel: Tensor) -> Tensor:
        """Log-mel [B, M, T] -> the same with zeros in the spans, as Whisper's own SpecAugment in transformers."""
        bins, frames = log_mel.shape[1:]
        hidden_frames = _inside(torch.arange(frames, device=log_mel.device), self.times)
        hidden_bins = _inside((torch.arange(bins, device=log_mel.device) + 0.5) / bins, self.bands)
        return log_mel.masked_fill(hidden_bins.unsqueeze(2) | hidden_frames.unsqueeze(1), 0.0)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Masks":
        return Masks(change(self.times), change(self.bands))


def _inside(positions: Tensor, spans: Tensor) -> Tensor:
    """Positions [P], spans [B, K, 2] -> bool [B, P], whether a position is in a span."""
    starts, ends = spans[..., :1], spans[..., 1:]
    return ((positions >= starts) & (positions < ends)).any(dim=1)


def draw_spans(count: int, widest: float, end: float, generator: torch.Generator) -> Tensor:
    """`count` spans in [0, end]: start and end, float32 [count, 2]. Widths are uniform up to `widest`, places too."""
    width, place = torch.rand(2, count, generator=generator)
    widths = width * min(widest, end)
    starts = place * (end - widths)
    return torch.stack([starts, starts + widths], dim=1)
