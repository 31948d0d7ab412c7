"""The plugin for vLLM: `vllm serve EXPORT` serves a DiVA where both are installed.

vLLM runs encoder and adapter once per clip. The LLM is vLLM's own implementation. `register` is the entry point in
`vllm.general_plugins` (setup.cfg). vLLM calls it in each of its processes, so it imports no model.
"""

from collections.abc import Mapping
from typing import Any

from diva.errors import UserError

ARCHITECTURE = "DivaForConditionalGeneration"
MODE = "diva"  # the name of the renderer and of the tokenizer in vLLM


def refuse_lora(described: Mapping[str, Any]) -> None:
    """Raise UserError for an export with LoRA matrices. `described` is the content of its config.json."""
    if (described.get("llm") or {}).get("lora"):
        raise UserError(
            "vLLM serves no DiVA with LoRA matrices of the LLM (model.llm.lora): serve it without --engine vllm"
        )


def register() -> None:
    """Register config, model, renderer and tokenizer with vLLM."""
    from transformers import AutoTokenizer
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    from .config import LLMTokenizer, ServedConfig, ServedModelConfig

    _CONFIG_REGISTRY[ServedConfig.model_type] = ServedConfig
    AutoTokenizer.register(ServedConfig, fast_tokenizer_class=LLMTokenizer, exist_ok=True)
    MODELS_CONFIG_MAP[ARCHITECTURE] = ServedModelConfig
    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:ServedDiva")
    if MODE not in RENDERER_REGISTRY.renderers:
        RENDERER_REGISTRY.register(MODE, f"{__name__}.renderer", "DivaRenderer")
        TokenizerRegistry.register(MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
