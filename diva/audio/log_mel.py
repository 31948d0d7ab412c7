"""Waveforms -> log-mel, Whisper's features."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from .frames import HOP_SAMPLES, SAMPLE_RATE

N_FFT = 400


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram, batched, on the device of the waveforms.

    Equal to transformers' WhisperFeatureExtractor (Radford et al. 2022, section 2.2). `num_mel_bins` is 80, or 128 for
    large-v3.
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
        self.register_buffer("window", torch.hann_window(N_FFT, dtype=torch.float32), persistent=False)
        self.register_buffer("dft", windowed_dft(), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Waveforms [B, S] -> log-mel [B, M, T], T = S // 160. Always in float32, also under autocast."""
        with torch.autocast(waveforms.device.type, enabled=False):
            power = self._power_xla if waveforms.device.type == "xla" else self._power
            log_mel = (self.filters.float() @ power(waveforms.float())).clamp(min=1e-10).log10()
            # The floor is 80 dB below the peak of each clip.
            log_mel = torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8.0)
            return (log_mel + 4.0) / 4.0

    def _power(self, waveforms: Tensor) -> Tensor:
        """Waveforms [B, S] -> power spectrogram [B, 1 + N_FFT / 2, T]."""
        stft = torch.stft(waveforms, N_FFT, HOP_SAMPLES, window=self.window.float(), return_complex=True)
        return stft[..., :-1].abs().square()

    def _power_xla(self, waveforms: Tensor) -> Tensor:
        """`_power` as a convolution. XLA has no STFT and would compute it on the host."""
        padded = F.pad(waveforms, (N_FFT // 2, N_FFT // 2), mode="reflect").unsqueeze(1)
        real, imaginary = F.conv1d(padded, self.dft.float(), stride=HOP_SAMPLES)[..., :-1].chunk(2, dim=1)
        return real.square() + imaginary.square()


def windowed_dft() -> Tensor:
    """The windowed DFT of a frame as filters, [2 (1 + N_FFT / 2), 1, N_FFT]: real parts, then imaginary parts."""
    # Angles modulo a full turn, in float64: the sine of a large float32 is inexact.
    turns = torch.outer(torch.arange(1 + N_FFT // 2), torch.arange(N_FFT)) % N_FFT
    angle = turns.double() * (2 * math.pi / N_FFT)
    window = torch.hann_window(N_FFT, dtype=torch.float64)
    return torch.cat([angle.cos() * window, angle.sin() * window]).float().unsqueeze(1)
