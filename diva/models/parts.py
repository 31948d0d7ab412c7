"""The parts of a DiVA: a frozen encoder, a frozen LLM with its processor, and the adapter between them."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
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
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperModel,
)

from ..errors import UserError
from .adapter import MLPAdapter, QFormerAdapter
from .configuration import AdapterConfig, DivaConfig
from .encoder import (
    AUDIO_LLMS,
    KNOWN,
    ON_WAVEFORMS,
    SpeechEncoder,
    WaveformEncoder,
    has_window,
    make_encoder,
)
from .llm import Embeddings, llm_from_config, load_llm
from .pretrained import PREPROCESSOR, resolve
from .processing import DivaProcessor


@dataclass(frozen=True)
class Parts:
    """The frozen parts of a DiVA, with encoder and LLM in their final precision."""

    encoder: SpeechEncoder
    llm: PreTrainedModel
    processor: DivaProcessor  # with the LLM's tokenizer
    decoder: WhisperConfig  # a Q-Former has the shape of this Whisper's decoder
    whisper: WhisperModel | None = None  # the encoder's own Whisper, whose decoder a Q-Former may start from


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of an LLM, with its chat template."""
    return AutoTokenizer.from_pretrained(resolve(name))


def load_parts(
    config: DivaConfig, tokenizer: PreTrainedTokenizerBase | None = None, device_map: Any = None
) -> Parts:
    """Load the parts that a config names. `tokenizer` is the LLM's, if it is already loaded."""
    # The encoder first: parts that do not fit each other are refused before the LLM's weights are loaded.
    encoder, decoder, whisper = load_encoder(config)
    llm = load_llm(
        resolve(config.llm.name),
        dtype=getattr(torch, config.frozen_dtype),
        attn_implementation=config.llm.attention,
        device_map=device_map,
    )
    return Parts(encoder, llm, make_processor(config, tokenizer, len(Embeddings(llm))), decoder, whisper)


def load_encoder(
    config: DivaConfig, dtype: torch.dtype | None = None
) -> tuple[SpeechEncoder, WhisperConfig, WhisperModel | None]:
    """Load `Parts.encoder`, `Parts.decoder` and `Parts.whisper`. `dtype` replaces the encoder's precision."""
    folder = resolve(config.encoder.name)
    hearing = of_encoder(AutoConfig.from_pretrained(folder))
    decoder = decoder_config(config, hearing)
    whisper = load_whisper(config.encoder.name) if isinstance(hearing, WhisperConfig) else None
    body = _load_body(folder, hearing) if whisper is None else whisper.encoder
    # The decoder of a Whisper stays in float32: an adapter may start from it.
    body = body.to(dtype or config.encoder_dtype)
    standardizes = whisper is not None or _standardizes(folder, hearing)
    return make_encoder(body, config.encoder.context, standardizes), decoder, whisper


def load_whisper(name: str) -> WhisperModel:
    """A whole Whisper, in float32."""
    return WhisperModel.from_pretrained(resolve(name), dtype=torch.float32, attn_implementation="sdpa")


def of_encoder(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the speech encoder in a model's config: a part of it, if the model is an audio LLM."""
    return config.audio_config if config.model_type in AUDIO_LLMS else config


def _load_body(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder without a decoder, in float32."""
    below = {r"^(model\.)?audio_tower\.": ""}  # its name in the files of an audio LLM
    return AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, key_mapping=below)


def _standardizes(folder: Path, config: PreTrainedConfig) -> bool:
    """Whether an encoder that reads waveforms was trained on standardized ones, which its files say."""
    if config.model_type not in ON_WAVEFORMS:
        return True
    file = folder / PREPROCESSOR
    if not file.is_file():
        raise UserError(
            f"{file} is missing: it says whether this encoder needs standardized waveforms (do_normalize)"
        )
    return json.loads(file.read_text(encoding="utf-8")).get("do_normalize", True)


def save_encoder(encoder: SpeechEncoder, folder: Path, whisper: str, own: bool) -> None:
    """Write an encoder in transformers' format. `whisper` is the name of its Whisper, which is written whole.

    Unless the encoder is the model's `own`, the Whisper is written as it was loaded, in float32.
    """
    if encoder.body.config.model_type == "whisper":
        model = load_whisper(whisper)
        if own:
            model.encoder.load_state_dict(encoder.body.state_dict())
        model.save_pretrained(folder)
        return
    # Under its own names, not those of the audio LLM that it may have come from.
    encoder.body.save_pretrained(folder, save_original_format=False)
    if isinstance(encoder, WaveformEncoder):
        Wav2Vec2FeatureExtractor(do_normalize=encoder.standardizes).save_pretrained(folder)


def random_parts(
    config: DivaConfig,
    hearing: PreTrainedConfig | None = None,
    decoder: WhisperConfig | None = None,
    llm: PreTrainedConfig | None = None,
    processor: DivaProcessor | None = None,
) -> Parts:
    """The parts that a config names, with random weights. Given arguments replace the files of their folders.

    `hearing` is the config of the encoder, `decoder` the shape of a Q-Former.
    """
    hearing = hearing or of_encoder(AutoConfig.from_pretrained(resolve(config.encoder.name)))
    decoder = decoder or decoder_config(config, hearing)
    llm = llm or AutoConfig.from_pretrained(resolve(config.llm.name))
    body = AutoModel.from_config(copy.deepcopy(hearing), dtype=config.encoder_dtype)
    encoder = make_encoder(body.encoder if isinstance(body, WhisperModel) else body, config.encoder.context)
    reading = llm_from_config(
        copy.deepcopy(llm),
        dtype=getattr(torch, config.frozen_dtype),
        attn_implementation=config.llm.attention,
    )
    return Parts(
        encoder, reading, processor or make_processor(config, None, len(Embeddings(reading))), decoder
    )


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


def decoder_config(
    config: DivaConfig, hearing: PreTrainedConfig, named: PreTrainedConfig | None = None
) -> WhisperConfig:
    """The Whisper whose decoder gives a Q-Former its shape. `hearing` is the config of the encoder.

    It is the one of `AdapterConfig.decoder` (`named` replaces its file), else the encoder's own. For an encoder without
    a decoder the Q-Former has the encoder's width, heads and number of layers.
    Raises UserError for parts that do not fit each other.
    """
    name, adapter = config.encoder.name, config.adapter
    if hearing.model_type not in KNOWN:
        raise UserError(
            f"model.encoder.name={name} is a {hearing.model_type}, which is no known speech encoder; known are"
            f" {', '.join(KNOWN)}"
        )
    if getattr(hearing, "add_adapter", False):
        raise UserError(
            f"model.encoder.name={name} has an adapter of its own (add_adapter), which is not supported"
        )
    if config.encoder.context == "full" and not has_window(hearing):
        raise UserError(
            f"model.encoder.context=full is Whisper's window of 30 s, and model.encoder.name={name} is a"
            f" {hearing.model_type}, which has none: give model.encoder.context=bucket"
        )
    if adapter.decoder is not None:
        named = named or AutoConfig.from_pretrained(resolve(adapter.decoder))
        if not isinstance(named, WhisperConfig):
            raise UserError(f"model.adapter.decoder={adapter.decoder} is no Whisper but {named.model_type!r}")
        return named
    if isinstance(hearing, WhisperConfig):
        return hearing
    if adapter.kind == "qformer" and adapter.init == "whisper":
        raise UserError(
            f"model.adapter.init=whisper: model.encoder.name={name} is a {hearing.model_type}, which has no decoder;"
            " name a Whisper in model.adapter.decoder, or give model.adapter.init=random or model.adapter.kind=mlp"
        )
    return WhisperConfig(
        d_model=hearing.hidden_size,
        decoder_layers=hearing.num_hidden_layers,
        decoder_attention_heads=hearing.num_attention_heads,
        decoder_ffn_dim=hearing.intermediate_size,
        max_target_positions=adapter.num_query_tokens,
    )


def make_adapter(
    config: AdapterConfig, decoder: WhisperConfig, encoder_width: int, llm_width: int
) -> nn.Module:
    """An adapter with random weights between an encoder and an LLM of these widths."""
    limit = decoder.max_target_positions
    if config.num_query_tokens > limit:
        raise UserError(
            f"model.adapter.num_query_tokens={config.num_query_tokens} is more than the {limit} positions of"
            " the Whisper decoder that they go through"
        )
    if config.kind == "mlp":
        return MLPAdapter(encoder_width, config.num_query_tokens, llm_width)
    return QFormerAdapter(decoder, config.num_query_tokens, llm_width, config.stack, encoder_width)
