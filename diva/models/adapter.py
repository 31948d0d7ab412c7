"""The only part that trains: encoder frames [B, F, E] -> virtual tokens [B, V, D] for the LLM.

Of Q queries there are as many virtual tokens, or Q / `stack` (`AdapterConfig.num_virtual_tokens`).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, WhisperConfig
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer

QUERY_STD = 0.02  # q ~ N(0, 0.02), DiVA section 3.1
GROUPED = "grouped"  # what transformers knows `grouped_attention` as


class QFormerAdapter(nn.Module):
    """Learned queries read the speech through Whisper's decoder, then a projection (DiVA section 3.1).

    The decoder's token embeddings are replaced by the queries; its position embeddings, causal
    self-attention and cross-attention stay, start from Whisper's weights and train.
    """

    def __init__(self, whisper: WhisperConfig, num_query_tokens: int, llm_width: int, stack: int = 1):
        super().__init__()
        self.stack = stack
        # Its own: the attention is chosen for the device, while the encoder, whose config this was, keeps what it has.
        self.config = copy.deepcopy(whisper)
        self.query_tokens = nn.Parameter(torch.randn(num_query_tokens, whisper.d_model) * QUERY_STD)
        self.positions = nn.Parameter(torch.randn(num_query_tokens, whisper.d_model) * QUERY_STD)
        self.layers = nn.ModuleList(
            WhisperDecoderLayer(self.config, layer_idx=i) for i in range(whisper.decoder_layers)
        )
        self.norm = nn.LayerNorm(whisper.d_model)
        self.projection = nn.Linear(whisper.d_model * stack, llm_width)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Frames [B, F, E], mask [B, F] (True: valid) -> virtual tokens [B, V, D]."""
        hidden = (self.query_tokens + self.positions).expand(len(frames), -1, -1)
        cross_mask = None if mask is None else mask[:, None, None, :]
        self.config._attn_implementation = GROUPED if frames.device.type == "cpu" else "sdpa"
        for layer in self.layers:
            # No attention mask: Whisper's decoder self-attention is causal by itself.
            hidden = layer(
                hidden, encoder_hidden_states=frames, encoder_attention_mask=cross_mask, use_cache=False
            )
        # Neighbours side by side: [B, Q, E] -> [B, V, stack E].
        return self.projection(self.norm(hidden).unflatten(1, (-1, self.stack)).flatten(2))


class MLPAdapter(nn.Module):
    """The paper's ablation without attention: frames averaged in Q equal stretches of the clip, then an MLP."""

    def __init__(self, whisper: WhisperConfig, num_query_tokens: int, llm_width: int):
        super().__init__()
        self.num_query_tokens = num_query_tokens
        self.hidden = nn.Linear(whisper.d_model, llm_width)
        self.projection = nn.Linear(llm_width, llm_width)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Frames [B, F, E], mask [B, F] (True: valid) -> virtual tokens [B, V, D], V being Q here."""
        pooled = pooling_matrix(frames, mask, self.num_query_tokens) @ frames
        return self.projection(nn.functional.gelu(self.hidden(pooled)))


def pooling_matrix(frames: Tensor, mask: Tensor | None, segments: int) -> Tensor:
    """[B, Q, F] weights that average each clip's valid frames in `segments` stretches.

    Borders as in adaptive average pooling, so that no stretch is empty even where a clip has fewer frames
    than stretches.
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
    """Attention in plain matrix products: the fastest on a CPU for up to some hundred positions.

    There the backward pass of torch's fused kernel takes several times as long. Query heads that share a key head
    are multiplied with it together, so keys and values are not copied for each, nor their gradients summed again.

    Queries [B, H, L, C], keys and values [B, G, K, C] where G divides H -> outputs [B, L, H, C], weights
    [B, H, L, K]. The mask, of a shape that broadcasts to the weights', holds True where to look, or what to add to
    the scores; without one a causal module looks at the past only, its last query being beside the last key.
    The softmax is in float32. Arguments are those that transformers hands to every attention function: `softcap` bounds
    the scores (Gemma 2), `s_aux` [H] are scores of a key that has no value (gpt-oss).
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
