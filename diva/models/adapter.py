"""The adapter, the only trainable part: encoder frames [B, F, E] -> virtual tokens [B, V, D] for the LLM.

Q queries give V = Q / `stack` virtual tokens (`AdapterConfig.num_virtual_tokens`). By default `stack` is 1.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, WhisperConfig
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer

QUERY_STD = 0.02  # q ~ N(0, 0.02), DiVA section 3.1
GROUPED = "grouped"  # the name of `grouped_attention` in transformers


class QFormerAdapter(nn.Module):
    """Learned queries through Whisper's decoder, then a projection (DiVA section 3.1).

    The queries replace the decoder's token embeddings. Its position embeddings, causal self-attention and
    cross-attention to the encoder frames start from Whisper's weights and are trained. Frames of another width than the
    decoder's are mapped to it first.
    """

    def __init__(
        self,
        whisper: WhisperConfig,
        num_query_tokens: int,
        llm_width: int,
        stack: int = 1,
        encoder_width: int | None = None,  # None: the decoder's
    ):
        super().__init__()
        self.stack = stack
        # A copy of the config: the adapter's attention is chosen for the device. The encoder's config must not change.
        self.config = copy.deepcopy(whisper)
        self.query_tokens = nn.Parameter(torch.randn(num_query_tokens, whisper.d_model) * QUERY_STD)
        self.positions = nn.Parameter(torch.randn(num_query_tokens, whisper.d_model) * QUERY_STD)
        self.layers = nn.ModuleList(
            WhisperDecoderLayer(self.config, layer_idx=i) for i in range(whisper.decoder_layers)
        )
        self.norm = nn.LayerNorm(whisper.d_model)
        self.projection = nn.Linear(whisper.d_model * stack, llm_width)
        same = encoder_width in (None, whisper.d_model)
        self.from_frames = nn.Identity() if same else nn.Linear(encoder_width or 0, whisper.d_model)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Frames [B, F, E], mask [B, F] (True: valid) -> virtual tokens [B, V, D]."""
        hidden = (self.query_tokens + self.positions).expand(len(frames), -1, -1)
        frames = self.from_frames(frames)
        cross_mask = None if mask is None else mask[:, None, None, :]
        self.config._attn_implementation = GROUPED if frames.device.type == "cpu" else "sdpa"
        for layer in self.layers:
            # No attention mask: the self-attention of Whisper's decoder is always causal.
            hidden = layer(
                hidden, encoder_hidden_states=frames, encoder_attention_mask=cross_mask, use_cache=False
            )
        # Concatenate the outputs of neighbouring queries: [B, Q, E] -> [B, V, stack E].
        return self.projection(self.norm(hidden).unflatten(1, (-1, self.stack)).flatten(2))


class MLPAdapter(nn.Module):
    """The paper's ablation without attention: frames averaged over Q equal segments of the clip, then an MLP."""

    def __init__(self, encoder_width: int, num_query_tokens: int, llm_width: int):
        super().__init__()
        self.num_query_tokens = num_query_tokens
        self.hidden = nn.Linear(encoder_width, llm_width)
        self.projection = nn.Linear(llm_width, llm_width)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Frames [B, F, E], mask [B, F] (True: valid) -> virtual tokens [B, V, D]; here V = Q."""
        pooled = pooling_matrix(frames, mask, self.num_query_tokens) @ frames
        return self.projection(nn.functional.gelu(self.hidden(pooled)))


def pooling_matrix(frames: Tensor, mask: Tensor | None, segments: int) -> Tensor:
    """[B, Q, F] weights that average each clip's valid frames over `segments` segments, Q = `segments`.

    The borders are those of adaptive average pooling. So no segment is empty, even if a clip has fewer frames than
    segments.
    """
    batch, length, _ = frames.shape
    if mask is None:
        valid = torch.full((batch, 1), length, device=frames.device)
    else:
        valid = mask.sum(dim=1, keepdim=True).clamp(min=1)
    segment = torch.arange(segments, device=frames.device)
    start = segment * valid // segments
    end = ((segment + 1) * valid + segments - 1) // segments
    frame = torch.arange(length, device=frames.device)
    inside = (frame >= start.unsqueeze(-1)) & (frame < end.unsqueeze(-1))
    return inside.to(frames.dtype) / (end - start).unsqueeze(-1).to(frames.dtype)


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention as plain matrix products: the fastest way on a CPU for up to a few hundred positions.

    There the backward pass of torch's fused kernel takes several times as long. All query heads of one key head are
    multiplied with it together. So keys and values are not copied for each query head.

    Queries [B, H, L, C], keys and values [B, G, K, C] where G divides H -> outputs [B, L, H, C], weights [B, H, L, K].
    The mask has a shape that broadcasts to that of the weights. It is True at visible positions, or holds numbers that
    are added to the scores. Without a mask a causal module sees past positions only; the last query is at the position
    of the last key.
    The softmax is in float32. The arguments are those of every attention function in transformers: `softcap` bounds the
    scores (Gemma 2), `s_aux` [H] are scores of a key without a value (gpt-oss).
    """
    rows, heads, length, width = query.shape
    groups, keys = key.shape[1:3]
    scores = query.reshape(rows, groups, -1, width) @ key.transpose(2, 3) * scaling
    scores = scores.view(rows, heads, length, keys)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is None and length > 1 and getattr(module, "is_causal", False):
        attention_mask = torch.ones(length, keys, dtype=torch.bool, device=query.device).tril(keys - length)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    elif attention_mask is not None:
        scores = scores + attention_mask
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.view(1, -1, 1, 1).expand(rows, -1, length, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32)[..., :keys].to(query.dtype)
    weights = nn.functional.dropout(weights, dropout)
    output = weights.view(rows, groups, -1, keys) @ value
    return output.view(rows, heads, length, width).transpose(1, 2), weights


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, eager_mask)
