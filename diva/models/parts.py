"""The parts of a DiVA: a frozen encoder, a frozen LLM with its processor, and the adapter between them."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    WhisperModel,
)

from ..errors import UserError
from .adapter import MLPAdapter, QFormerAdapter
from .configuration import AdapterConfig, DivaConfig
from .llm import Embeddings, llm_from_config, load_llm
from .pretrained import resolve
from .processing import DivaProcessor


@dataclass(frozen=True)
class Parts:
    """The frozen parts of a DiVA, with encoder and LLM in their final precision."""

    whisper: (
        WhisperModel  # its encoder is used; a Q-Former has the shape of its decoder and may start from it
    )
    llm: PreTrainedModel
    processor: DivaProcessor  # with the LLM's tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of an LLM, with its chat template."""
    return AutoTokenizer.from_pretrained(resolve(name))


def load_parts(
    config: DivaConfig, tokenizer: PreTrainedTokenizerBase | None = None, device_map: Any = None
) -> Parts:
    """Load the parts that a config names. `tokenizer` is the LLM's, if it is already loaded."""
    dtype = getattr(torch, config.frozen_dtype)
    llm = load_llm(
        resolve(config.llm.name),
        dtype=dtype,
        attn_implementation=config.llm.attention,
        device_map=device_map,
    )
    whisper = load_whisper(config)
    whisper.encoder.to(dtype)  # the decoder stays in float32: an adapter may start from it
    return Parts(whisper, llm, make_processor(config, tokenizer, len(Embeddings(llm))))


def load_whisper(config: DivaConfig) -> WhisperModel:
    """The Whisper that a config names, in float32."""
    folder = resolve(config.encoder.name)
    return WhisperModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def random_parts(
    config: DivaConfig,
    whisper: PreTrainedConfig | None = None,
    llm: PreTrainedConfig | None = None,
    processor: DivaProcessor | None = None,
) -> Parts:
    """The parts that a config names, with random weights. Given arguments replace the files of their folders."""
    dtype = getattr(torch, config.frozen_dtype)
    whisper = whisper or AutoConfig.from_pretrained(resolve(config.encoder.name))
    llm = llm or AutoConfig.from_pretrained(resolve(config.llm.name))
    hearing = AutoModel.from_config(copy.deepcopy(whisper), dtype=dtype, attn_implementation="sdpa")
    reading = llm_from_config(copy.deepcopy(llm), dtype=dtype, attn_implementation=config.llm.attention)
    return Parts(hearing, reading, processor or make_processor(config, None, len(Embeddings(reading))))


def make_processor(
    config: DivaConfig, tokenizer: PreTrainedTokenizerBase | None, vocabulary: int
) -> DivaProcessor:
    """The processor of the model that a config describes. `vocabulary` is the number of the LLM's embeddings."""
    return DivaProcessor(
        # Never the tokenizer in an export's folder: transformers would read the export's config.json for it, which is
        # not the config of a text model.
        tokenizer or load_tokenizer(config.llm.name),
        num_virtual_tokens=config.adapter.num_virtual_tokens,
        tokens_per_second=config.adapter.tokens_per_second,
        audio_token_id=vocabulary,
        system_prompt=config.llm.system_prompt,
        prompt_layout=config.llm.prompt_layout,
        template_kwargs=config.llm.template_kwargs,
    )


def make_adapter(config: AdapterConfig, whisper: PreTrainedConfig, llm_width: int) -> nn.Module:
    """An adapter with random weights, for the encoder of this Whisper config and an LLM of this width."""
    limit = whisper.max_target_positions
    if config.num_query_tokens > limit:
        raise UserError(
            f"model.adapter.num_query_tokens={config.num_query_tokens} is more than the {limit} positions of"
            " the Whisper decoder that they go through"
        )
    if config.kind == "mlp":
        return MLPAdapter(whisper, config.num_query_tokens, llm_width)
    return QFormerAdapter(whisper, config.num_query_tokens, llm_width, config.stack)
