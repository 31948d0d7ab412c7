"""The config of a model as plain data. Every export stores it; training fills it from `configs/model`."""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..audio.frames import tokens_read
from ..errors import UserError
from .encoder import Context

Dtype = Literal["bfloat16", "float16", "float32"]


def _check(name: str, value: Any, options: tuple) -> None:
    if value not in options:
        raise UserError(f"{name}={value} is unknown; it is one of: {', '.join(map(str, options))}")


@dataclass(frozen=True)
class EncoderConfig:
    """A speech encoder (hub name or local folder) and its input length (see SpeechEncoder).

    `dtype` is the precision of its weights. None: that of the LLM, `DivaConfig.frozen_dtype`. The published code
    computes the encoder in float32 on every device.
    """

    name: str
    context: Context = "bucket"
    dtype: Dtype | None = None

    def __post_init__(self):
        _check("model.encoder.context", self.context, get_args(Context))
        _check("model.encoder.dtype", self.dtype, (None, *get_args(Dtype)))


@dataclass(frozen=True)
class AdapterConfig:
    """The trainable part.

    `init="whisper"` initializes the Q-Former from Whisper's decoder. That is the decoder of the encoder's own Whisper,
    or of the Whisper that `decoder` names. The Q-Former has its shape also with `init="random"`. Without such a decoder
    the Q-Former has the encoder's width, heads and number of layers, and must be random.

    `projection_init` is the start of the projection (`diva/models/build.py`). With "embeddings" the virtual tokens have
    the mean and the spread of the token embeddings. With "shared_tokens" they also have their direction, from a map of
    Whisper's token embeddings. "default" is torch's own initialization.

    With `tokens_per_second` the LLM reads only the last virtual tokens, in proportion to the length of the clip. This
    saves compute. In the paper it reads all of them (null).

    The outputs of `stack` neighbouring queries are concatenated into one virtual token. With 4 the LLM reads a
    quarter as many. The published code supports 4 too.
    """

    num_query_tokens: int
    kind: Literal["qformer", "mlp"] = "qformer"
    init: Literal["whisper", "random"] = "whisper"
    decoder: str | None = None
    projection_init: Literal["embeddings", "shared_tokens", "default"] = "embeddings"
    tokens_per_second: float | None = None
    stack: int = 1

    def __post_init__(self):
        _check("model.adapter.kind", self.kind, ("qformer", "mlp"))
        _check("model.adapter.init", self.init, ("whisper", "random"))
        starts = ("embeddings", "shared_tokens", "default")
        _check("model.adapter.projection_init", self.projection_init, starts)
        if self.projection_init == "shared_tokens" and (self.kind, self.init) != ("qformer", "whisper"):
            raise UserError(
                "model.adapter.projection_init=shared_tokens continues Whisper's decoder, so it needs"
                " model.adapter.kind=qformer and model.adapter.init=whisper; else take embeddings"
            )
        if self.decoder is not None and self.kind == "mlp":
            raise UserError(
                f"model.adapter.decoder={self.decoder} needs model.adapter.kind=qformer; an MLP has none"
            )
        if self.num_query_tokens < 1:
            raise UserError(f"model.adapter.num_query_tokens={self.num_query_tokens} must be at least 1")
        if self.stack < 1 or self.num_query_tokens % self.stack:
            raise UserError(
                f"model.adapter.stack={self.stack} must divide model.adapter.num_query_tokens={self.num_query_tokens}"
            )
        if self.stack > 1 and self.kind == "mlp":
            raise UserError(
                f"model.adapter.stack={self.stack} needs model.adapter.kind=qformer; of an MLP take a smaller"
                " model.adapter.num_query_tokens"
            )
        rate = self.tokens_per_second
        if rate is not None and rate < 0.001:
            raise UserError(
                f"model.adapter.tokens_per_second={rate} must be at least 0.001, or null for all of them"
            )
        if rate is not None and self.kind == "mlp":
            raise UserError(
                "model.adapter.tokens_per_second needs model.adapter.kind=qformer: each virtual token of the MLP"
                " speaks for a stretch of the clip, and the LLM would miss the first of them"
            )

    @property
    def num_virtual_tokens(self) -> int:
        """Number of virtual tokens of a clip."""
        return self.num_query_tokens // self.stack

    def tokens_read(self, samples: Tensor) -> Tensor:
        """Samples of each clip [B] -> number of its virtual tokens that the LLM reads (the last ones), [B]."""
        return tokens_read(samples, self.num_virtual_tokens, self.tokens_per_second)


@dataclass(frozen=True)
class LoraConfig:
    """LoRA on the LLM (`diva/models/lora.py`): matrices of rank `r`, scaled by `alpha` / `r`, trained with the adapter.

    `target_modules` are names of linear layers, such as ["q_proj", "v_proj"]. None: all of the LLM's layers.
    There is no dropout: the LLM always computes in evaluation mode, and the steps of a resumed run are the same.
    """

    r: int | None = None  # None: no LoRA
    alpha: float = 16.0
    target_modules: list[str] | None = None

    def __post_init__(self):
        if self.r is not None and (self.r < 1 or self.alpha <= 0):
            raise UserError(f"model.llm.lora: r={self.r} must be at least 1, alpha={self.alpha} above 0")
        names = self.target_modules
        if names is not None and not (
            isinstance(names, list) and names and all(isinstance(n, str) for n in names)
        ):
            raise UserError(
                f"model.llm.lora.target_modules={names} must be a list of names of linear layers, null for all"
            )


@dataclass(frozen=True)
class LLMConfig:
    """A chat LLM (hub name or local folder), and the system prompt of the training, if any.

    `attention` is transformers' attn_implementation. On a CPU "eager" is faster for short sequences.
    `prompt_layout="released"` puts an instruction where the published code puts it (`diva.models.prompts`).
    `template_kwargs` are variables of the chat template, such as `enable_thinking: false`. Without that one the answers
    of Qwen3 and SmolLM3 start with a thinking block, and the first token of the answer is what DiVA distils.
    `lora` is None for an LLM that stays as it is, as in the paper.
    """

    name: str
    system_prompt: str | None = None
    attention: Literal["sdpa", "eager"] = "sdpa"
    prompt_layout: Literal["template", "released"] = "template"
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    lora: LoraConfig | None = None  # a dict of its values is taken too

    def __post_init__(self):
        lora = LoraConfig(**self.lora) if isinstance(self.lora, dict) else self.lora
        object.__setattr__(self, "lora", None if lora is None or lora.r is None else lora)
        if not isinstance(self.template_kwargs, dict):
            raise UserError(
                f"model.llm.template_kwargs={self.template_kwargs} must be a mapping, {{}} for none"
            )
        _check("model.llm.attention", self.attention, ("sdpa", "eager"))
        _check("model.llm.prompt_layout", self.prompt_layout, ("template", "released"))


def _published(values: dict[str, Any]) -> dict[str, Any]:
    """The config of a published DiVA, converted to ours. A part that it does not name gets the name ""."""
    return {
        "encoder": {"name": values.get("reference_encoder") or "", "context": "full"},
        "adapter": {"num_query_tokens": 448, "projection_init": "default"},
        "llm": {"name": values.get("reference_decoder") or "", "prompt_layout": "released"},
        "frozen_dtype": "float16" if torch.cuda.is_available() else "float32",
    }


class DivaConfig(PreTrainedConfig):
    """The config of a whole DiVA. It names the frozen parts; `frozen_dtype` is the precision of their weights, if the
    encoder has none of its own.

    `start_from` is for training only (`diva/models/start.py`). Exports do not have it.
    A training adds to its export:
    `trained_on`: the corpus, with its number of clips and of distinct words;
    `hearing_threshold`: the hearing distance (`SpokenGenerationMixin.hearing_distances`) above which the model may not
    have understood a clip.
    """

    model_type: ClassVar[str] = "diva"
    has_no_defaults_at_init: ClassVar[bool] = True
    _of_llm: ClassVar[PreTrainedConfig | None] = None
    trained_on: dict[str, Any] | None = None
    hearing_threshold: float | None = None

    def __init__(
        self,
        encoder: EncoderConfig | dict,
        adapter: AdapterConfig | dict,
        llm: LLMConfig | dict,
        frozen_dtype: Dtype = "bfloat16",
        start_from: str | None = None,
        **kwargs: Any,
    ):
        _check("model.frozen_dtype", frozen_dtype, get_args(Dtype))
        super().__init__(**kwargs)
        self.encoder = encoder if isinstance(encoder, EncoderConfig) else EncoderConfig(**encoder)
        self.adapter = adapter if isinstance(adapter, AdapterConfig) else AdapterConfig(**adapter)
        self.llm = llm if isinstance(llm, LLMConfig) else LLMConfig(**llm)
        self.frozen_dtype = frozen_dtype
        self.start_from = start_from

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers. A published config.json holds at most the names of the frozen parts; the rest is as in
        the paper.

        The arguments `encoder` and `llm` replace the names in the config.
        """
        names = {part: kwargs.pop(part) for part in ("encoder", "llm") if isinstance(kwargs.get(part), str)}
        values = config_dict if "adapter" in config_dict else _published(config_dict)
        values = values | {part: {**values[part], "name": name} for part, name in names.items()}
        made = super().from_dict(values, **kwargs)
        return (made[0], made[1] | names) if isinstance(made, tuple) else made

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The LLM's own config. transformers' `generate` reads the sizes of its caches from it."""
        return self if self._of_llm is None else self._of_llm

    def know_llm(self, config: PreTrainedConfig) -> None:
        """Set the LLM's own config. The model calls it after loading the LLM, which is only named here."""
        self.__dict__["_of_llm"] = config

    @property
    def encoder_dtype(self) -> torch.dtype:
        """The precision of the encoder's weights."""
        return getattr(torch, self.encoder.dtype or self.frozen_dtype)

    def in_precision(
        self, dtype: str | torch.dtype | None, encoder_dtype: str | torch.dtype | None
    ) -> "DivaConfig":
        """The config with `dtype` for all frozen parts and `encoder_dtype` for the encoder.

        None and "auto" keep the config's own, but with `dtype` alone the encoder gets it too.
        """
        every, own = (
            None if wanted in (None, "auto") else str(wanted).removeprefix("torch.")
            for wanted in (dtype, encoder_dtype)
        )
        values = self.to_dict()
        encoder = values["encoder"] | ({"dtype": own} if every or own else {})
        return self.from_dict(values | {"encoder": encoder, "frozen_dtype": every or self.frozen_dtype})

    def to_released(self) -> dict[str, Any]:
        """The content of config.json in the published layout."""
        references = {"reference_encoder": self.encoder.name, "reference_decoder": self.llm.name}
        return {"model_type": self.model_type} | references

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        for key in ("_of_llm", "start_from"):
            values.pop(key, None)
        return values | {part: asdict(getattr(self, part)) for part in ("encoder", "adapter", "llm")}
