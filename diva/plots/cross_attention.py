"""The cross-attention of the adapter's virtual tokens over a clip, and a picture of it."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperDecoderLayer

from diva.audio.decoding import to_waveform
from diva.audio.frames import HOP_SAMPLES, SAMPLE_RATE, pad_clips
from diva.audio.log_mel import LogMel
from diva.errors import UserError
from diva.models.adapter import QFormerAdapter
from diva.models.encoder import LogMelEncoder
from diva.models.llm import Embeddings
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.processing import Clip
from diva.plots import style
from diva.training.metrics import nearest_tokens

_INCHES_PER_TOKEN = 0.17


@dataclass(frozen=True)
class Attention:
    """Attention of the Q virtual tokens that the LLM reads of a clip. Tensors are float32 on the CPU.

    If queries are stacked into one virtual token, it is their mean.
    """

    mel: Tensor  # [M, T] log-mel, 10 ms a frame; as long as the F frames, which Whisper has every 20 ms
    weights: Tensor  # [layers, heads, Q, F]; each row sums to 1, masked frames have 0
    virtual_tokens: Tensor  # [Q, D]
    tokens: list[str]  # Q: the LLM's token nearest to each virtual token
    seconds: float  # length of the clip, without the silent tail


@torch.no_grad()
def cross_attention(model: DivaForConditionalGeneration, clip: Clip) -> Attention:
    """The adapter's attention over one clip of up to 30 s (a path, a file's bytes, or samples [S] at 16 kHz).

    Raises AudioFault for a clip that cannot be used, UserError for an adapter without attention.
    """
    if not isinstance(model.adapter, QFormerAdapter):
        raise UserError(
            "only the Q-Former attends to the speech (model.adapter.kind=qformer); this adapter is an MLP"
        )
    waveforms, samples = (tensor.to(model.device) for tensor in pad_clips([to_waveform(clip)]))
    weights: list[Tensor] = []
    with ExitStack() as hooks:
        for layer in model.adapter.layers:
            assert isinstance(layer, WhisperDecoderLayer)
            hook = partial(_record, weights)
            hooks.callback(layer.encoder_attn.register_forward_pre_hook(hook, with_kwargs=True).remove)
        virtual_tokens = model.virtual_tokens(waveforms, samples)[0]
    read = int(model.config.adapter.tokens_read(samples))
    virtual_tokens = virtual_tokens[-read:]
    # The encoder may have padded the clip to 30 s. The picture shows all its frames.
    seen = weights[0].shape[-1] * model.encoder.frame_count.samples_per_frame
    nearest = nearest_tokens(virtual_tokens, Embeddings(model.llm))
    return Attention(
        mel=_log_mel(model, nn.functional.pad(waveforms, (0, seen - waveforms.shape[1])))[0].cpu(),
        weights=torch.stack(weights).unflatten(2, (-1, model.adapter.stack)).mean(dim=3)[:, :, -read:].cpu(),
        virtual_tokens=virtual_tokens.float().cpu(),
        tokens=[model.processor.tokenizer.decode([token]) for token in nearest.tolist()],
        seconds=int(samples) / SAMPLE_RATE,
    )


def _log_mel(model: DivaForConditionalGeneration, waveforms: Tensor) -> Tensor:
    """The log-mel of the encoder; Whisper's, if the encoder reads other features."""
    encoder = model.encoder
    return (encoder.log_mel if isinstance(encoder, LogMelEncoder) else LogMel().to(waveforms.device))(
        waveforms
    )


def _record(weights: list[Tensor], module: WhisperAttention, args: tuple, kwargs: dict) -> None:
    """A hook that computes the weights [heads, Q, F] of one clip before a cross-attention runs, and appends them.

    The module itself runs fused attention, which returns no weights. Queries, keys and mask are the same.
    """
    hidden, frames, mask = args[0], kwargs["key_value_states"], kwargs["attention_mask"]
    query, key = (
        states.unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)
        for states in (module.q_proj(hidden) * module.scaling, module.k_proj(frames))
    )
    scores = (query @ key.transpose(2, 3)).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights.append(scores.softmax(dim=-1)[0])


@style.applied()
def plot(attention: Attention, tokens: int = 48) -> Figure:
    """The clip's log-mel, and under it the attention of its last `tokens` virtual tokens, mean over layers and heads.

    The last ones, because training aligns these with the transcript's tokens (DiVA section 3.2). The vertical line is
    the end of the clip, where the silent tail begins.
    """
    mean = attention.weights.mean(dim=(0, 1))[-tokens:]
    # Without pyplot, because a notebook would show a pyplot figure twice: as the current figure and as the value.
    heights = (1.6, max(_INCHES_PER_TOKEN * len(mean), 1.6))
    figure = Figure(figsize=(style.WIDTH, sum(heights) + 1.2))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    end = attention.mel.shape[1] * HOP_SAMPLES / SAMPLE_RATE
    above.imshow(
        attention.mel, origin="lower", aspect="auto", extent=(0, end, 0, len(attention.mel)), cmap="magma"
    )
    above.set(ylabel="mel bin", title="log-mel of the clip")
    heat = below.imshow(mean, aspect="auto", extent=(0, end, len(mean), 0), cmap="viridis")
    below.set_yticks(torch.arange(len(mean)) + 0.5, labels=list(map(_label, attention.tokens[-tokens:])))
    below.set(
        xlabel="seconds",
        ylabel="nearest token of the LLM",
        title="attention of each virtual token, mean over layers and heads",
    )
    for axes in (above, below):
        axes.grid(visible=False)
        axes.axvline(attention.seconds, color="white", linewidth=1)
    figure.colorbar(heat, ax=below, label="attention", fraction=0.05, pad=0.02)
    return figure


def _label(token: str) -> str:
    """A token as a label of axes: with visible spaces and without a dollar sign, which would begin a formula."""
    return repr(token)[1:-1].replace(" ", "␣").replace("$", r"\$")
