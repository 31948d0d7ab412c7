"""Qwen2-Audio and Voxtral with tiny random weights, in the files that their makers publish."""

import base64
import json
from pathlib import Path

import torch
from tiny import make_tokenizer
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    WhisperFeatureExtractor,
)

LLM = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
# Special tokens of Voxtral's tokenizer by rank, as its processor and its model expect them.
_RANKS = {
    "<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "[AVAILABLE_TOOLS]": 5, "[/AVAILABLE_TOOLS]": 6,
    "[TOOL_RESULTS]": 7, "[/TOOL_RESULTS]": 8, "[TOOL_CALLS]": 9, "<pad>": 11, "[PREFIX]": 14, "[MIDDLE]": 15,
    "[SUFFIX]": 16, "[SYSTEM_PROMPT]": 17, "[/SYSTEM_PROMPT]": 18, "[TOOL_CONTENT]": 19, "[AUDIO]": 24,
    "[BEGIN_AUDIO]": 25, "[TRANSCRIBE]": 34,
}  # fmt: skip
_SPECIAL, _BYTES = 40, 256


def make_qwen2_audio(folder: Path) -> Path:
    """Its processor has the chat template built in."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]}
    )
    Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer).save_pretrained(folder)
    ears = {"model_type": "qwen2_audio_encoder", "d_model": 16, "encoder_layers": 1, "encoder_ffn_dim": 32}
    config = Qwen2AudioConfig(
        audio_config=ears | {"encoder_attention_heads": 2, "num_mel_bins": 128},
        text_config=LLM | {"model_type": "qwen2", "vocab_size": len(tokenizer)},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    _drawn(Qwen2AudioForConditionalGeneration(config)).save_pretrained(folder)
    return folder


def make_voxtral(folder: Path) -> Path:
    """Its tokenizer is a tekken.json, here of single bytes, which mistral-common reads."""
    by_rank = {rank: name for name, rank in _RANKS.items()}
    special = [
        {"rank": rank, "token_str": by_rank.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
        for rank in range(_SPECIAL)
    ]
    vocabulary = [
        {"rank": byte, "token_bytes": base64.b64encode(bytes([byte])).decode(), "token_str": None}
        for byte in range(_BYTES)
    ]
    tokenizer = {
        "config": {
            "pattern": r"[^\s]+|\s+", "num_vocab_tokens": _BYTES, "default_vocab_size": _BYTES + _SPECIAL,
            "default_num_special_tokens": _SPECIAL, "version": "v7",
        },
        "vocab": vocabulary,
        "special_tokens": special,
        "audio": {
            "sampling_rate": 16_000, "frame_rate": 12.5, "chunk_length_s": 30.0,
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
        },
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "tekken.json").write_text(json.dumps(tokenizer))
    features = WhisperFeatureExtractor(feature_size=128).to_dict() | {"processor_class": "VoxtralProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(features))
    ears = {"model_type": "voxtral_encoder", "hidden_size": 16, "num_hidden_layers": 1}
    config = VoxtralConfig(
        audio_config=ears | {"num_attention_heads": 2, "intermediate_size": 64, "num_mel_bins": 128},
        text_config=LLM | {"model_type": "llama", "vocab_size": _BYTES + _SPECIAL},
        audio_token_id=_RANKS["[AUDIO]"],
    )
    _drawn(VoxtralForConditionalGeneration(config)).save_pretrained(folder)
    return folder


def _drawn(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that what is heard changes what is said."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(std=0.4, generator=generator)
    return model
