"""A DiVA without trained weights: its shapes come from the configs of its parts only.

Inside a `FakeTensorMode` it takes no memory and no compute, and its operations can be counted
(`diva.planning.counting`). Outside it has random weights, to be timed: they are as fast as trained ones.
"""

import copy
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, WhisperConfig

from diva.errors import UserError
from diva.models.configuration import DivaConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.parts import decoder_config, of_encoder, random_parts

# Configs of the models in the shipped experiments. With them, planning needs neither weights nor a network.
SHIPPED = Path(__file__).parent / "architectures"
_HUB_TIMEOUT_SECONDS = 5.0
_CHARACTERS_PER_TOKEN = 4  # approximately, for English: for a system prompt without a tokenizer


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the shapes of a DiVA."""

    encoder: PreTrainedConfig
    decoder: WhisperConfig  # the shape of a Q-Former
    llm: PreTrainedConfig
    tokenizer: Any  # the LLM's, or a stand-in whose chat template has as many tokens

    def with_layers(self, layers: tuple[int, int, int], vocabulary: int | None = None) -> "Architecture":
        """The same widths with other numbers of layers in the three parts, and optionally another vocabulary."""
        encoder, decoder, llm = map(copy.deepcopy, (self.encoder, self.decoder, self.llm))
        text = llm.get_text_config()
        encoder.num_hidden_layers, decoder.decoder_layers, text.num_hidden_layers = layers
        if isinstance(encoder, WhisperConfig):  # the decoder that is loaded with it
            encoder.decoder_layers = layers[1]
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: layers[2]]
        if vocabulary is not None:
            for part in (encoder, text):
                part.vocab_size = vocabulary
                part.bos_token_id = part.eos_token_id = part.pad_token_id = None
        return replace(self, encoder=encoder, decoder=decoder, llm=llm)

    @property
    def description(self) -> tuple[str, ...]:
        """Everything that decides the shapes, as text."""
        configs = (part.to_json_string(use_diff=False) for part in (self.encoder, self.decoder, self.llm))
        return (*configs, repr(self.tokenizer), str(self.tokenizer.chat_template))

    @property
    def layers(self) -> tuple[int, int, int]:
        """Number of layers of the encoder, of the Q-Former, of the LLM."""
        return (
            self.encoder.num_hidden_layers,
            self.decoder.decoder_layers,
            self.llm.get_text_config().num_hidden_layers,
        )


def architecture(config: DivaConfig) -> Architecture:
    """The architecture of a DiVA from local folders, shipped numbers or the hub's configs, in that order.

    Raises UserError for a model that none of them knows, and for parts that do not fit each other.
    """
    encoder = of_encoder(_model_config(config.encoder.name))
    named = None if config.adapter.decoder is None else _model_config(config.adapter.decoder)
    decoder = decoder_config(config, encoder, named)
    return Architecture(encoder, decoder, _model_config(config.llm.name), _tokenizer(config.llm.name))


def _shipped(name: str) -> dict | None:
    file = SHIPPED / f"{name.replace('/', '--')}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _model_config(name: str) -> PreTrainedConfig:
    folder = Path(name).expanduser()
    if not folder.is_dir() and (shipped := _shipped(name)):
        return AutoConfig.for_model(**shipped["config"])
    try:
        if not folder.is_dir():
            file = hf_hub_download(name, "config.json", etag_timeout=_HUB_TIMEOUT_SECONDS)
            folder = Path(file).parent
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # transport errors share no base class
        raise UserError(
            f"the architecture of {name!r} is not known: no such folder with a config.json, not among those shipped,"
            f" and the hub does not give it ({type(error).__name__}); download its config and tokenizer and give"
            " their folder"
        ) from error


def _tokenizer(name: str) -> Any:
    folder = Path(name).expanduser()
    if not folder.is_dir() and (shipped := _shipped(name)):
        prefix, suffix = shipped["prompt_tokens"]
        return StandInTokenizer(prefix, suffix, shipped.get("template_variables", []))
    return AutoTokenizer.from_pretrained(folder if folder.is_dir() else name)


class StandInTokenizer:
    """Replaces an unknown tokenizer. Only the length of its chat template around a user turn is known.

    It is only for counting: every id is 0.
    """

    name_or_path = "a stand-in"
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def __init__(self, prefix_tokens: int, suffix_tokens: int, variables: Sequence[str] = ()):
        self.chat_template = f"known by its length and its variables alone: {', '.join(variables)}"
        self.prefix_tokens = prefix_tokens
        self.suffix_tokens = suffix_tokens

    def __repr__(self) -> str:
        return f"StandInTokenizer({self.prefix_tokens}, {self.suffix_tokens})"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(text)}

    def apply_chat_template(self, chat: list[dict], **options: Any) -> str:
        """A text that `__call__` maps to as many tokens as the chat has."""
        *before, turn = (message["content"] for message in chat)
        system = math.ceil(sum(map(len, before)) / _CHARACTERS_PER_TOKEN)
        return "." * (self.prefix_tokens + system) + turn + "." * self.suffix_tokens


def assemble(
    config: DivaConfig,
    parts: Architecture,
    adapter_dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> DivaForConditionalGeneration:
    """The model of `config` with the shapes of `parts`, random weights and an adapter in `adapter_dtype`."""
    if device is not None:
        with device:
            model = assemble(config, parts, adapter_dtype)
        return model.to(device)  # the mel filters, made by numpy, are still on the host

    processor: Any = SimpleNamespace(tokenizer=parts.tokenizer)
    frozen = random_parts(config, parts.encoder, parts.decoder, parts.llm, processor)
    with _default_dtype(adapter_dtype):  # fake parameters cannot be converted afterwards
        return DivaForConditionalGeneration(config, frozen).eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
