"""LoRA (Hu et al., arXiv 2106.09685) on the LLM, through peft: two small trained matrices beside each linear layer.

The student reads with them: W x + alpha / r B A x. The teacher is the same LLM without them (`without_lora`). B starts
at zero, so the student starts as the frozen LLM, to the bit.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import UserError
from .configuration import LoraConfig
from .llm import decoder, llm_from_config

LORA = "lora."  # the start of their names in an export
_NAME = "default"  # peft's name of the only pair of matrices in each layer
# Where peft puts the frozen layer, and its own matrices.
_FROZEN, _TRAINED = ".base_layer.", ".lora_"


class _InInputsPrecision(nn.Linear):
    """A linear layer that computes in the precision of its input. Its weights keep theirs, which is float32."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))


def add_lora(llm: PreTrainedModel, config: LoraConfig) -> None:
    """Put fresh LoRA matrices beside the linear layers of the LLM's text part, in place. They alone are trainable.

    The state of torch's random generator is the same afterwards.
    Raises UserError for a name in `target_modules` that no linear layer has.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise UserError(
            "this model has LoRA weights (model.llm.lora), which need peft: pip install peft"
        ) from error
    assert config.r is not None
    layers = decoder(llm).layers
    linear = {
        name.rpartition(".")[2] for name, layer in layers.named_modules() if isinstance(layer, nn.Linear)
    }
    targets = sorted(linear) if config.target_modules is None else config.target_modules
    if unknown := [name for name in targets if name not in linear]:
        raise UserError(
            f"model.llm.lora.target_modules: no linear layer of the LLM is called {unknown[0]!r}; there are:"
            f" {', '.join(sorted(linear))}"
        )
    with torch.device("meta"):  # peft would make the matrices in the LLM's precision
        options = PeftConfig(r=config.r, lora_alpha=config.alpha, target_modules=targets)
        inject_adapter_in_model(options, layers, _NAME)
    with torch.random.fork_rng(devices=[]):
        for layer in _layers(llm):
            device = layer.get_base_layer().weight.device
            for of in (layer.lora_A, layer.lora_B):
                width, height = of[_NAME].in_features, of[_NAME].out_features
                of[_NAME] = _InInputsPrecision(width, height, bias=False, device=device)
            layer.cast_input_dtype_enabled = False
            layer.reset_lora_parameters(_NAME, True)


def check_lora(llm: PreTrainedConfig, config: LoraConfig) -> None:
    """Raise UserError if an LLM of this config cannot have such LoRA matrices. No weights are loaded."""
    with torch.device("meta"):
        add_lora(llm_from_config(llm), config)


def lora_state(llm: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The LoRA matrices of an LLM by the names that they have in an export; none for an LLM without LoRA."""
    named = decoder(llm).layers.named_parameters()
    return {f"{LORA}{name.replace(f'.{_NAME}.', '.')}": value for name, value in named if _TRAINED in name}


@torch.no_grad()
def load_lora(llm: PreTrainedModel, state: dict[str, Tensor], source: str) -> None:
    """Copy matrices by their names in an export. Raises UserError if they are not those that the LLM has."""
    own = lora_state(llm)
    for name in sorted(own.keys() | state.keys()):
        found, needed = (tuple(of[name].shape) if name in of else "missing" for of in (state, own))
        if found != needed:
            raise UserError(
                f"{source} has LoRA matrices of another LLM or with other settings (model.llm.lora): its {name} is"
                f" {found}, here it is {needed}"
            )
        own[name].copy_(state[name])


@contextmanager
def without_lora(llm: PreTrainedModel) -> Iterator[None]:
    """Inside, the LLM computes without its LoRA matrices: as the teacher. An LLM without LoRA does so anyway."""
    layers = [layer for layer in _layers(llm) if not layer.disable_adapters]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def reads_with_lora(llm: PreTrainedModel) -> bool:
    """Whether the LLM computes with LoRA matrices now."""
    return any(not layer.disable_adapters for layer in _layers(llm))


def is_lora(name: str) -> bool:
    """Whether a weight of this name is a LoRA matrix."""
    return _TRAINED in name


def frozen_weights(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The named weights of an LLM without its LoRA matrices, by the names that they have in the LLM alone."""
    return {name.replace(_FROZEN, "."): value for name, value in named if not is_lora(name)}


def _layers(llm: PreTrainedModel) -> list[Any]:
    return [layer for layer in llm.modules() if hasattr(layer, "lora_A")]
