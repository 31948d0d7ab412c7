"""Tiny random LLMs of the real classes in transformers, each with the chat template of its family in short."""

from pathlib import Path
from typing import Any

import torch
from tiny import TEMPLATE, make_tokenizer
from transformers import AutoConfig

from diva.models.llm import llm_from_config

# No system role: the message is refused, or put before the user's.
_REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|endoftext|>' }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The system message is lost.
_DROPS = (
    "{{ '<|endoftext|>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
_TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.2, "bos_token_id": None, "pad_token_id": 0, "eos_token_id": 2,
    "rms_norm_eps": 1e-6,
}  # fmt: skip
_GEMMA3 = _TEXT | {
    "head_dim": 8, "sliding_window": 8, "tie_word_embeddings": True, "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
_VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
# Model type -> what its config says beside _TEXT, and its template. Windows are shorter than the prefix.
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({"tie_word_embeddings": True}, TEMPLATE),
    "qwen2": ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, TEMPLATE),
    "qwen3": ({"head_dim": 16, "tie_word_embeddings": True}, TEMPLATE),
    "gemma3_text": (_GEMMA3 | {"vocab_size": 262_208}, _REFUSES),
    "gemma3": ({"text_config": _GEMMA3, "vision_config": _VISION, "mm_tokens_per_image": 4}, _REFUSES),
    "mistral": ({"sliding_window": 8, "head_dim": 8}, _DROPS),
    "phi3": ({"sliding_window": 9, "tie_word_embeddings": True, "partial_rotary_factor": 0.5}, TEMPLATE),
    "olmo2": ({"num_key_value_heads": 4}, TEMPLATE),
    "smollm3": ({"no_rope_layers": [1, 0, 1], "tie_word_embeddings": True}, TEMPLATE),
    "gemma2": (_GEMMA3 | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, _REFUSES),
    "granite": ({"embedding_multiplier": 3.0, "logits_scaling": 4.0}, TEMPLATE),
    "gpt_oss": (
        {"sliding_window": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8},
        TEMPLATE,
    ),
    "lfm2": ({"layer_types": ["conv", "full_attention", "conv"]}, TEMPLATE),
}
EAGER_ONLY = {"gemma2", "gpt_oss"}  # transformers has no sdpa for them


def make_llm_of(family: str, folder: Path, **sizes: int) -> Path:
    """A tiny LLM of a family, in `folder`, with other sizes of its text model."""
    torch.manual_seed(0)
    options, template = FAMILIES[family]
    tokenizer = make_tokenizer(template)
    text = {"vocab_size": len(tokenizer), **_TEXT}
    if "text_config" in options:
        options = options | {"text_config": text | options["text_config"] | sizes}
        config = AutoConfig.for_model(family, **options)
    else:
        config = AutoConfig.for_model(family, **text | options | sizes)
    llm_from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
