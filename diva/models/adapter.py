"""The only part that trains: encoder frames [B, F, E] -> virtual tokens [B, Q, D] for the LLM."""

import torch
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer

QUERY_STD = 0.02  # q ~ N(0, 0.02), DiVA section 3.1


class QFormerAdapter(nn.Module):
    """Learned queries read the speech through Whisper's decoder, then a projection (DiVA section 3.1).

    The decoder's token embeddings are replaced by the queries; its position embeddings, causal
    self-attention and cross-attention stay, start from Whisper's weights and train.
    """

    def __init__(self, whisper: WhisperConfig, num_query_tokens: int, llm_width: int):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.randn(num_query_tokens, whisper.d_model) * QUERY_STD)
        self.positions = nn.Parameter(torch.randn(num_query_tokens, whisper.d_model) * QUERY_STD)
        self.layers = nn.ModuleList(
            WhisperDecoderLayer(whisper, layer_idx=i) for i in range(whisper.decoder_layers)
        )
        self.norm = nn.LayerNorm(whisper.d_model)
        self.projection = nn.Linear(whisper.d_model, llm_width)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Frames [B, F, E], mask [B, F] (True: valid) -> virtual tokens [B, Q, D]."""
        hidden = (self.query_tokens + self.positions).expand(len(frames), -1, -1)
        cross_mask = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            # No attention mask: Whisper's decoder self-attention is causal by itself.
            hidden = layer(
                hidden, encoder_hidden_states=frames, encoder_attention_mask=cross_mask, use_cache=False
            )
        return self.projection(self.norm(hidden))


class MLPAdapter(nn.Module):
    """The paper's ablation without attention: frames averaged in Q equal stretches of the clip, then an MLP."""

    def __init__(self, whisper: WhisperConfig, num_query_tokens: int, llm_width: int):
        super().__init__()
        self.num_query_tokens = num_query_tokens
        self.hidden = nn.Linear(whisper.d_model, llm_width)
        self.projection = nn.Linear(llm_width, llm_width)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Frames [B, F, E], mask [B, F] (True: valid) -> virtual tokens [B, Q, D]."""
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
