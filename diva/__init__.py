"""Distilled Voice Assistants: a frozen text LLM learns to hear. Importing it registers the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from diva.models.configuration import DivaConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.processing import DivaProcessor

AutoConfig.register(DivaConfig.model_type, DivaConfig)
for _auto in (AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM):
    _auto.register(DivaConfig, DivaForConditionalGeneration)
AutoProcessor.register(DivaConfig, DivaProcessor)

__all__ = ["DivaConfig", "DivaForConditionalGeneration", "DivaProcessor"]
