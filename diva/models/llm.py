"""The differences between chat LLMs: loading, input embeddings, attention masks, logits.

All other code works with any LLM of transformers: embeddings in, states after the final norm out.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..errors import UserError

# Types of layers whose state is keys and values by position, so that those of a prefix can be cached.
_WITH_KEYS = {"full_attention", "sliding_attention"}
# Rows of the embedding matrix at a time: the whole matrix of a large model takes gigabytes in float32.
_ROWS = 8192


def load_llm(folder: Path, **options: Any) -> PreTrainedModel:
    """Load a chat LLM in evaluation mode. A multi-modal LLM is loaded whole, but only its text part is used.

    `options` are those of transformers' `from_pretrained`. Raises UserError if the LLM does not have that attention.
    """
    try:
        return _auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder, **options).eval()
    except ValueError as error:
        if "attention implementation" not in str(error):
            raise
        raise UserError(
            f"model.llm.attention={options.get('attn_implementation')}: the LLM in {folder} has none in transformers;"
            " take model.llm.attention=eager"
        ) from error


def llm_from_config(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """A chat LLM of this config with random weights."""
    return _auto_class(config).from_config(config, **options).eval()


def _auto_class(config: PreTrainedConfig) -> Any:
    return (
        AutoModelForCausalLM
        if type(config) in AutoModelForCausalLM._model_mapping
        else AutoModelForMultimodalLM
    )


def decoder(llm: PreTrainedModel) -> Any:
    """The part that maps embeddings to states after the final norm. For a multi-modal LLM it is the text part."""
    return llm.get_decoder()


def nearest(vectors: Tensor, embeddings: "Tensor | Embeddings") -> tuple[Tensor, Tensor]:
    """Vectors [n, D] -> the L2 distance to the nearest row of the embedding matrix [V, D], and its number, both [n]."""
    vectors = vectors.float()
    scores, ids = [], []
    for first in range(0, len(embeddings), _ROWS):
        some = embeddings[first : first + _ROWS].float()
        # argmin |v - e|^2 = argmax v.e - |e|^2 / 2: one product instead of n V differences.
        score, row = (vectors @ some.T - torch.linalg.vector_norm(some, dim=1).square() / 2).max(dim=1)
        scores.append(score)
        ids.append(row + first)
    score, best = torch.stack(scores).max(dim=0, keepdim=True)
    squares = torch.linalg.vector_norm(vectors, dim=1).square() - 2 * score.squeeze(0)
    return squares.clamp(min=0).sqrt(), torch.stack(ids).gather(0, best).squeeze(0)


class Embeddings:
    """The input embeddings of all tokens, [V, D], as the LLM reads them. They are read in slices.

    Gemma 3 multiplies its embedding table by the square root of D (Gemma3TextScaledWordEmbedding). For an LLM that
    reads its table unchanged, a slice is not a copy.
    """

    def __init__(self, llm: PreTrainedModel):
        self.table = llm.get_input_embeddings()
        assert isinstance(self.table.weight, Tensor)
        self.weight = self.table.weight

    @property
    def shape(self) -> torch.Size:
        """[V, D]"""
        return self.weight.shape

    def __len__(self) -> int:
        return self.shape[0]

    @torch.no_grad()
    def __getitem__(self, rows: slice) -> Tensor:
        if type(self.table) is nn.Embedding:
            return self.weight[rows]
        return self.table(torch.arange(*rows.indices(len(self)), device=self.weight.device))


def has_keys_only(llm: PreTrainedModel) -> bool:
    """Whether the state of every layer is keys and values by position. A recurrent layer cannot cache a prefix."""
    return set(getattr(llm.config.get_text_config(), "layer_types", None) or ()) <= _WITH_KEYS


def masks(llm: PreTrainedModel, mask: Tensor, positions: Tensor) -> Any:
    """A mask [B, 1, L, K] (True: visible) in the form that the LLM needs, with its sliding windows.

    `positions` [B, K] are the positions of the keys. The last L of them are the positions of the queries.
    """
    config = llm.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is None:
        return mask
    distance = positions[:, -mask.shape[2] :].unsqueeze(2) - positions.unsqueeze(1)
    near = mask & (distance < window).unsqueeze(1)
    # LLMs with two types of layers need one mask for each type. Other LLMs need a single mask.
    mixed = getattr(config, "layer_types", None) is not None
    return {"full_attention": mask, "sliding_attention": near} if mixed else near


def logits(llm: PreTrainedModel, states: Tensor) -> Tensor:
    """States after the final norm [..., D] -> next-token logits [..., V] in float32, scaled as the LLM scales them."""
    config, head = llm.config.get_text_config(), llm.get_output_embeddings()
    values = head(states).float()
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
        values = torch.tanh(values / cap) * cap
    # Cohere multiplies, Granite divides.
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return values if scale == 1 else values * scale
