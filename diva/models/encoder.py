"""The frozen Whisper encoder, run on the clip's own length or on Whisper's 30 s window."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ..audio.frames import SAMPLE_RATE, WHISPER_SECONDS, valid_frames
from ..audio.log_mel import LogMel

Context = Literal["bucket", "full"]


class SpeechEncoder(nn.Module):
    """Waveforms -> frames. Frozen: it never computes gradients.

    `context="bucket"` encodes the padded length of the batch and masks the frames after each clip's silent tail.
    `context="full"` pads to 30 s and masks nothing, as Whisper and the published DiVA do.
    """

    def __init__(self, whisper: WhisperEncoder, context: Context = "bucket"):
        super().__init__()
        self.log_mel = LogMel(whisper.num_mel_bins)
        self.whisper = whisper.requires_grad_(False)
        self.context = context

    @torch.no_grad()
    def forward(self, waveforms: Tensor, samples: Tensor) -> tuple[Tensor, Tensor | None]:
        """Waveforms [B, S] of `samples` [B] -> frames [B, F, E], mask [B, F] (True: valid; None: all are)."""
        window = int(WHISPER_SECONDS * SAMPLE_RATE)
        if self.context == "full":
            waveforms = F.pad(waveforms, (0, window - waveforms.shape[1]))
        # Frozen weights compute in their own precision. Autocast would only add casts.
        with torch.autocast(waveforms.device.type, enabled=False):
            return self._encode(self.log_mel(waveforms), samples)

    def _encode(self, mel: Tensor, samples: Tensor) -> tuple[Tensor, Tensor | None]:
        whisper = self.whisper
        hidden = F.gelu(whisper.conv1(mel.to(whisper.conv1.weight.dtype)))
        hidden = F.gelu(whisper.conv2(hidden)).transpose(1, 2)
        hidden = hidden + whisper.embed_positions.weight[: hidden.shape[1]]
        mask = None
        if self.context == "bucket":
            frames = torch.arange(hidden.shape[1], device=samples.device)
            mask = frames < valid_frames(samples).unsqueeze(1)
        for layer in whisper.layers:
            hidden = layer(hidden, attention_mask=None if mask is None else mask[:, None, None, :])
        return whisper.layer_norm(hidden), mask
