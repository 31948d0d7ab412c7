"""The frozen speech encoders: Whisper's, those of audio LLMs, HuBERT and its relatives, wav2vec2-BERT.

All have one interface, `SpeechEncoder`. The model type in transformers' config chooses the class.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..audio.filterbank import FILTERBANK_FRAMES, Filterbank, standardized
from ..audio.frames import (
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    WHISPER_FRAMES,
    WHISPER_SECONDS,
    FrameCount,
    valid_mask,
)
from ..audio.log_mel import LogMel

Context = Literal["bucket", "full"]
# Model types in transformers' configs. First the audio LLMs whose encoder can be used, and that encoder's type.
AUDIO_LLMS = {"qwen2_audio": "qwen2_audio_encoder", "voxtral": "voxtral_encoder"}
ON_WAVEFORMS = ("hubert", "wavlm", "wav2vec2")
KNOWN = ("whisper", *AUDIO_LLMS.values(), *ON_WAVEFORMS, "wav2vec2-bert")
# In Qwen2-Audio each pair of frames is averaged, and no frame after the end of the clip is seen.
_QWEN2_AUDIO = FrameCount(((1, SAMPLES_PER_FRAME), (2, 2)))


def frame_count(config: PreTrainedConfig) -> FrameCount:
    """How many frames the encoder of this config makes."""
    kind: str = config.model_type
    if kind in ("whisper", "voxtral_encoder"):
        return WHISPER_FRAMES
    if kind == "qwen2_audio_encoder":
        return _QWEN2_AUDIO
    if kind == "wav2vec2-bert":
        return FILTERBANK_FRAMES
    assert kind in ON_WAVEFORMS, kind  # decoder_config refuses others
    return FrameCount(tuple(zip(config.conv_kernel, config.conv_stride, strict=True)))


def has_window(config: PreTrainedConfig) -> bool:
    """Whether an encoder was trained on windows of 30 s, as Whisper was."""
    return config.model_type in ("whisper", *AUDIO_LLMS.values())


# Log-mel [B, M, T] -> the same with parts hidden: diva.audio.masks.Masks, which an export does not have.
Hide = Callable[[Tensor], Tensor]


class SpeechEncoder(nn.Module):
    """Waveforms -> frames of `width` E, `frame_count.samples_per_frame` samples apart. Frozen: no gradients.

    `context="bucket"` encodes the padded length of the batch and masks the frames after each clip's silent tail.
    `context="full"` pads to 30 s and masks nothing, as Whisper and the published DiVA do.
    In a bucket a clip's frames do not depend on the other clips of its batch.
    """

    def __init__(self, body: PreTrainedModel, context: Context = "bucket"):
        super().__init__()
        self.body = body.requires_grad_(False)
        self.context = context
        self.frame_count = frame_count(body.config)

    @property
    def width(self) -> int:
        return self.body.config.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights and of the frames."""
        return self.body.dtype

    @property
    def device(self) -> torch.device:
        return self.body.device

    @property
    def layers(self) -> Any:
        """The transformer layers, an nn.ModuleList."""
        return getattr(self.body, "encoder", self.body).layers

    @torch.no_grad()
    def forward(
        self, waveforms: Tensor, samples: Tensor, masks: Hide | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Waveforms [B, S] of `samples` [B] -> frames [B, F, E], mask [B, F] (True: valid; None: all are).

        `masks` hides parts of the log-mel (SpecAugment); only a LogMelEncoder takes them.
        """
        # Frozen weights compute in their own precision. Autocast would only add casts.
        with torch.autocast(waveforms.device.type, enabled=False):
            if masks is None:
                return self._encode(waveforms, samples)
            assert isinstance(self, LogMelEncoder)
            return self._encode(waveforms, samples, masks)

    def _encode(self, waveforms: Tensor, samples: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


class LogMelEncoder(SpeechEncoder):
    """The encoder of Whisper, and those of Qwen2-Audio and Voxtral, which have its layout."""

    def __init__(self, body: PreTrainedModel, context: Context = "bucket"):
        super().__init__(body, context)
        self.log_mel = LogMel(body.config.num_mel_bins)

    def _encode(
        self, waveforms: Tensor, samples: Tensor, masks: Hide | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if self.context == "full":
            waveforms = F.pad(waveforms, (0, int(WHISPER_SECONDS * SAMPLE_RATE) - waveforms.shape[1]))
        body: Any = self.body
        log_mel = self.log_mel(waveforms)
        if masks is not None:
            log_mel = masks(log_mel)
        hidden = F.gelu(body.conv1(log_mel.to(body.conv1.weight.dtype)))
        hidden = F.gelu(body.conv2(hidden)).transpose(1, 2)
        hidden = hidden + body.embed_positions.weight[: hidden.shape[1]]
        seen, *pooled = self.frame_count.stages
        mask = None
        if self.context == "bucket":
            mask = valid_mask(
                hidden.shape[1], FrameCount((seen,), self.frame_count.tail_samples).valid(samples)
            )
        for layer in body.layers:
            hidden = layer(hidden, attention_mask=None if mask is None else mask[:, None, None, :])
        if pooled:
            hidden = body.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2)
            mask = None if mask is None else valid_mask(hidden.shape[1], self.frame_count.valid(samples))
        return body.layer_norm(hidden), mask


class WaveformEncoder(SpeechEncoder):
    """HuBERT, WavLM and wav2vec 2.0: convolutions over the waveform, then a transformer.

    If `standardizes`, each waveform gets mean 0 and variance 1 first (do_normalize in preprocessor_config.json).
    """

    def __init__(self, body: PreTrainedModel, standardizes: bool):
        super().__init__(body)
        self.standardizes = standardizes

    def _encode(self, waveforms: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        if self.standardizes:
            waveforms = standardized(waveforms.float(), valid_mask(waveforms.shape[1], samples))
        body: Any = self.body
        features = body.feature_projection(self._features(waveforms.to(self.dtype), samples).transpose(1, 2))
        hidden = features[0] if isinstance(features, tuple) else features  # only HuBERT's is not a tuple
        mask = valid_mask(hidden.shape[1], self.frame_count.valid(samples))
        return body.encoder(hidden, attention_mask=mask)[0], mask

    def _features(self, waveforms: Tensor, samples: Tensor) -> Tensor:
        """Waveforms [B, S] -> output of the convolutions [B, C, F].

        In the base models the first convolution is followed by a norm over time. It is taken over the clip without its
        padding, so the frames are those of the clip alone.
        """
        first, *others = self.body.feature_extractor.conv_layers
        hidden = waveforms.unsqueeze(1)
        if isinstance(first.layer_norm, nn.GroupNorm):
            hidden = first.conv(hidden)
            valid = FrameCount(self.frame_count.stages[:1]).valid(samples)
            hidden = first.activation(
                _norm_over_time(first.layer_norm, hidden, valid_mask(hidden.shape[2], valid))
            )
        else:
            hidden = first(hidden)
        for layer in others:
            hidden = layer(hidden)
        return hidden


def _norm_over_time(norm: nn.GroupNorm, hidden: Tensor, mask: Tensor) -> Tensor:
    """`norm`, whose groups are the single channels, over the valid positions [B, T] of [B, C, T]."""
    valid, values = mask.unsqueeze(1), hidden.float()
    count = valid.sum(dim=2, keepdim=True)
    mean = values.masked_fill(~valid, 0.0).sum(dim=2, keepdim=True) / count
    variance = (values - mean).masked_fill(~valid, 0.0).square().sum(dim=2, keepdim=True) / count
    scale = norm.weight.float().unsqueeze(1) * (variance + norm.eps).rsqrt()
    return ((values - mean) * scale + norm.bias.float().unsqueeze(1)).to(hidden.dtype)


class FilterbankEncoder(SpeechEncoder):
    """wav2vec2-BERT: a conformer over filterbank energies."""

    def __init__(self, body: PreTrainedModel):
        super().__init__(body)
        self.filterbank = Filterbank()

    def _encode(self, waveforms: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        features = self.filterbank(waveforms, samples).to(self.dtype)
        mask = valid_mask(features.shape[1], self.frame_count.valid(samples))
        return self.body(features, attention_mask=mask).last_hidden_state, mask


def make_encoder(body: PreTrainedModel, context: Context, standardizes: bool = True) -> SpeechEncoder:
    """The encoder around a model of transformers. `standardizes` is for those that read waveforms."""
    if has_window(body.config):
        return LogMelEncoder(body, context)
    if body.config.model_type in ON_WAVEFORMS:
        return WaveformEncoder(body, standardizes)
    return FilterbankEncoder(body)
