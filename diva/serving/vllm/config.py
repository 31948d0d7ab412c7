"""The config of a DiVA as vLLM needs it: with the config of its LLM, and with the folders of tokenizer and LLM."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from vllm.config import ModelConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from diva.models.configuration import DivaConfig
from diva.models.folders import export_folder, read
from diva.models.parts import load_tokenizer
from diva.models.pretrained import resolve

from . import ARCHITECTURE, MODE, refuse_lora


class ServedConfig(DivaConfig):
    """The config of an export or of a published DiVA. `name_or_path` is its folder."""

    def __init__(self, **kwargs: Any):  # without it transformers makes one that sets the fields only
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config of the model `name_or_path`, from its files. Its dtype is the precision of the frozen parts.

        A published config.json says less than its weights do. Thus `config_dict`, its content, is not used.
        """
        folder = export_folder(kwargs["name_or_path"])
        config = super().from_dict(_described(folder), name_or_path=str(folder))
        config.architectures = [ARCHITECTURE]
        config.dtype = getattr(torch, config.frozen_dtype)
        config.know_llm(_text_config(AutoConfig.from_pretrained(resolve(config.llm.name))))
        return config

    def to_dict(self) -> dict[str, Any]:
        """With the LLM's config: vLLM's caches of compiled code depend on it."""
        values = super().to_dict()
        return values if self._of_llm is None else values | {"text_config": self._of_llm.to_dict()}


@lru_cache
def _described(folder: Path) -> dict[str, Any]:
    """The config of the model in a folder. vLLM asks several times, and for a published one the weights are read."""
    described = read(folder).config.to_dict()
    refuse_lora(described)
    return described


def _text_config(whole: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the part of an LLM that reads text, with the name of its class."""
    text = whole.get_text_config()
    if not text.architectures:
        llm: Any = AutoModelForCausalLM._model_mapping[type(text)]
        text.architectures = [llm.__name__]
    return text


class LLMTokenizer(PreTrainedTokenizerFast):
    """The tokenizer of a model's folder without one, as transformers' AutoTokenizer takes it: that of the LLM.

    vLLM loads a tokenizer of this folder before it asks `ServedModelConfig`.
    """

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> PreTrainedTokenizerBase:
        return load_tokenizer(ServedConfig.from_dict({}, name_or_path=folder).llm.name)


class ServedModelConfig(VerifyAndUpdateConfig):
    """What vLLM asks for when it has read the config."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Take tokenizer and generation config of the LLM, as diva does, and render chats as diva does."""
        llm = str(resolve(model_config.hf_config.llm.name))
        model_config.tokenizer_mode = MODE
        if model_config.tokenizer == model_config.model:
            model_config.tokenizer, model_config.tokenizer_revision = llm, None
        if model_config.generation_config == "auto":
            model_config.generation_config = llm
