"""Tiny random speech encoders of the real classes, in the folders of the models that they come in."""

from pathlib import Path
from typing import Any

import torch
from tiny import make_tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultimodalLM,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

_WHISPER = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 120, "max_target_positions": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3, "init_std": 0.2,
}  # fmt: skip
_TOWER = {
    "d_model": 16, "hidden_size": 16, "encoder_layers": 2, "num_hidden_layers": 2, "encoder_attention_heads": 2,
    "num_attention_heads": 2, "encoder_ffn_dim": 32, "intermediate_size": 32, "num_mel_bins": 128,
    "init_std": 0.2, "initializer_range": 0.2,
}  # fmt: skip
_TEXT = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 50, "pad_token_id": 0,
}  # fmt: skip
_BASE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "initializer_range": 0.2, "mask_time_prob": 0.0,
}  # fmt: skip
_CONVOLUTIONS = _BASE | {
    "conv_dim": (8,) * 7, "conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
_LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def _audio_llm(tower: str, text: str) -> dict[str, Any]:
    return {"audio_config": _TOWER | {"model_type": tower}, "text_config": _TEXT | {"model_type": text}}


# Name -> model type, what its config says, and for those that read waveforms: whether they want them standardized.
ENCODERS: dict[str, tuple[str, dict[str, Any], bool | None]] = {
    "whisper": ("whisper", _WHISPER, None),
    "whisper_turbo": ("whisper", _WHISPER | {"num_mel_bins": 128, "encoder_layers": 3, "decoder_layers": 1}, None),
    "qwen2_audio": ("qwen2_audio", _audio_llm("qwen2_audio_encoder", "qwen2"), None),
    "voxtral": ("voxtral", _audio_llm("voxtral_encoder", "llama"), None),
    "hubert_base": ("hubert", _CONVOLUTIONS | {"feat_extract_norm": "group"}, True),
    "hubert_large": ("hubert", _CONVOLUTIONS | _LARGE, True),
    "wavlm_base": ("wavlm", _CONVOLUTIONS | {"feat_extract_norm": "group"}, False),
    "wavlm_large": ("wavlm", _CONVOLUTIONS | _LARGE, True),
    "wav2vec2": ("wav2vec2", _CONVOLUTIONS | _LARGE, True),
    "wav2vec2_bert": ("wav2vec2-bert", _BASE | {"feature_projection_input_dim": 160}, None),
}  # fmt: skip
WHISPERS = ("whisper", "whisper_turbo")
WINDOWS = (*WHISPERS, "qwen2_audio", "voxtral")  # trained on 30 s


def make_encoder_of(name: str, folder: Path) -> Path:
    """A tiny encoder in `folder`, with the weights and the preprocessor's config as on the hub."""
    torch.manual_seed(0)
    kind, options, standardizes = ENCODERS[name]
    config = AutoConfig.for_model(kind, **options)
    llm = "text_config" in options
    model: PreTrainedModel = (AutoModelForMultimodalLM if llm else AutoModel).from_config(config)
    for parameter in model.parameters():  # biases and norms too
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    if name in WINDOWS:
        WhisperFeatureExtractor(
            feature_size=getattr(config, "audio_config", config).num_mel_bins
        ).save_pretrained(folder)
    elif standardizes is None:
        SeamlessM4TFeatureExtractor().save_pretrained(folder)
    else:
        masked = options.get("feat_extract_norm") == "layer"
        Wav2Vec2FeatureExtractor(do_normalize=standardizes, return_attention_mask=masked).save_pretrained(
            folder
        )
    if name in WHISPERS:
        make_tokenizer().save_pretrained(folder)
    return folder
