"""What a model is made of, as plain data: stored with every export and filled from `configs/model`."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from diva.errors import UserError
from diva.models.encoder import Context


def _check(name: str, value: Any, options: tuple) -> None:
    if value not in options:
        raise UserError(f"{name}={value} is unknown; it is one of: {', '.join(map(str, options))}")


@dataclass(frozen=True)
class EncoderConfig:
    """A Whisper encoder (hub name or local folder) and the audio it looks at (see SpeechEncoder)."""

    name: str
    context: Context = "bucket"

    def __post_init__(self):
        _check("model.encoder.context", self.context, get_args(Context))


@dataclass(frozen=True)
class AdapterConfig:
    """The trainable part.

    `init="whisper"` starts the Q-Former from Whisper's decoder. `projection_init="embeddings"` starts the
    virtual tokens with the mean and the spread of the token embeddings; "default" is torch's own.
    """

    num_query_tokens: int
    kind: Literal["qformer", "mlp"] = "qformer"
    init: Literal["whisper", "random"] = "whisper"
    projection_init: Literal["embeddings", "default"] = "embeddings"

    def __post_init__(self):
        _check("model.adapter.kind", self.kind, ("qformer", "mlp"))
        _check("model.adapter.init", self.init, ("whisper", "random"))
        _check("model.adapter.projection_init", self.projection_init, ("embeddings", "default"))
        if self.num_query_tokens < 1:
            raise UserError(f"model.adapter.num_query_tokens={self.num_query_tokens} must be at least 1")


@dataclass(frozen=True)
class LLMConfig:
    """A chat LLM (hub name or local folder), and the system prompt it is trained under, if any.

    `attention` is transformers' attn_implementation; on a CPU and short sequences "eager" is the faster one.
    """

    name: str
    system_prompt: str | None = None
    attention: Literal["sdpa", "eager"] = "sdpa"

    def __post_init__(self):
        _check("model.llm.attention", self.attention, ("sdpa", "eager"))


@dataclass(frozen=True)
class ModelConfig:
    """A whole DiVA; `frozen_dtype` is the precision in which encoder and LLM are held."""

    encoder: EncoderConfig
    adapter: AdapterConfig
    llm: LLMConfig
    frozen_dtype: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self):
        _check("model.frozen_dtype", self.frozen_dtype, ("bfloat16", "float32"))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        return cls(
            encoder=EncoderConfig(**values["encoder"]),
            adapter=AdapterConfig(**values["adapter"]),
            llm=LLMConfig(**values["llm"]),
            frozen_dtype=values["frozen_dtype"],
        )
