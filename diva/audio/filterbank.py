"""Waveforms -> log filterbank energies as Kaldi computes them, the features of wav2vec2-BERT."""

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from .frames import HOP_SAMPLES, SAMPLE_RATE, FrameCount, valid_mask

WINDOW_SAMPLES = 400
_BINS = 80
_N_FFT = 512
_PREEMPHASIS = 0.97
_FLOOR = 1.192092955078125e-07  # float32's epsilon, Kaldi's floor
_STACK = 2
_ENERGIES = FrameCount(((WINDOW_SAMPLES, HOP_SAMPLES),))  # one every 10 ms
# Two neighbouring energies are one input of the encoder.
FILTERBANK_FRAMES = FrameCount((*_ENERGIES.stages, (_STACK, _STACK)))


class Filterbank(nn.Module):
    """Log energies, standardized over each clip and stacked in pairs, on the device of the waveforms.

    Equal to transformers' SeamlessM4TFeatureExtractor (Barrault et al. 2023, SeamlessM4T).
    """

    filters: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        filters = mel_filter_bank(
            num_frequency_bins=1 + _N_FFT // 2,
            num_mel_filters=_BINS,
            min_frequency=20,
            max_frequency=SAMPLE_RATE // 2,
            sampling_rate=SAMPLE_RATE,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        window = torch.hann_window(WINDOW_SAMPLES, periodic=False, dtype=torch.float64).pow(0.85)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", window.float(), persistent=False)

    def forward(self, waveforms: Tensor, samples: Tensor) -> Tensor:
        """Waveforms [B, S] of `samples` [B] -> features [B, F, 160] in float32, one every 20 ms."""
        energies = self._energies(waveforms)
        valid = valid_mask(energies.shape[1], _ENERGIES.valid(samples))
        features = standardized(energies, valid.unsqueeze(-1), correction=1)
        pairs = features.shape[1] // _STACK
        return features[:, : pairs * _STACK].reshape(len(features), pairs, _STACK * _BINS)

    def _energies(self, waveforms: Tensor) -> Tensor:
        """Waveforms [B, S] -> log energies [B, T, 80]."""
        # Kaldi's samples are whole numbers of 16 bits.
        windows = (waveforms.float() * 2**15).unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)
        windows = windows - windows.mean(dim=-1, keepdim=True)
        before = torch.cat([windows[..., :1], windows[..., :-1]], dim=-1)
        windows = (windows - _PREEMPHASIS * before) * self.window.float()
        power = torch.fft.rfft(windows, n=_N_FFT).abs().square()
        return (power @ self.filters.float()).clamp(min=_FLOOR).log()


def standardized(values: Tensor, valid: Tensor, correction: int = 0) -> Tensor:
    """Values [B, T, ...] with mean 0 and variance 1 over the valid ones of each row; the others are 0.

    `valid` broadcasts to the shape of the values. The variance divides by the number of values less `correction`.
    """
    count = valid.sum(dim=1, keepdim=True)
    mean = values.masked_fill(~valid, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)
    centred = (values - mean).masked_fill(~valid, 0.0)
    variance = centred.square().sum(dim=1, keepdim=True) / (count - correction).clamp(min=1)
    return centred / (variance + 1e-7).sqrt()
