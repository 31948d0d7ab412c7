"""OpenAI's protocol of chat completions: requests, answers, errors.

Source: the API reference of OpenAI, "Create chat completion". Unsupported fields that would change the answer are
refused by name. Unknown fields are refused too, as OpenAI does. docs/serving.md lists the fields.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

# Unsupported field -> its values without effect. Every other value is refused.
_NEUTRAL: dict[str, tuple] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "audio": (),
}
# These fields have no effect on the answer: names, notes, accounts, caches, speed.
_IGNORED = {
    "metadata",
    "moderation",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
MAX_CHOICES = 16
_MAX_TOP_LOGPROBS = 20
# The log probability of a probability of 0, because JSON has no infinity. OpenAI uses the same value.
_LEAST_LOGPROB = -9999.0
# A lower temperature overflows float32. The answer is then the greedy one anyway.
_GREEDY_BELOW = 1e-4
# Only the first items and the first errors of a body are looked at, however many there are.
_LIST: Any = Field(min_length=1, max_length=1024, fail_fast=True)


class ApiError(Exception):
    """An error that the client gets instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


# ---- requests


class _Model(BaseModel):
    # Strict: a number in a string is an error of the client. OpenAI's own clients do not send it.
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class TextPart(_Model):
    type: Literal["text"]
    text: str


class InputAudio(_Model):
    data: str  # base64 of the file
    format: str  # ignored: the format is detected from the file


class AudioPart(_Model):
    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioUrl(_Model):
    url: str  # data:audio/wav;base64,...


class AudioUrlPart(_Model):
    type: Literal["audio_url"]
    audio_url: AudioUrl


class ChatMessage(_Model):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[TextPart | AudioPart | AudioUrlPart, Field(discriminator="type")]] = _LIST
    # Other fields of an assistant's message. In DiVA's own answers they are empty.
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None

    @model_validator(mode="before")
    @classmethod
    def _assistant_without_words(cls, message: Any) -> Any:
        if (
            isinstance(message, dict)
            and message.get("role") == "assistant"
            and message.get("content") is None
        ):
            return message | {"content": ""}
        return message

    @field_validator("tool_calls", "function_call", "audio")
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        if value not in (None, []):
            raise ValueError("DiVA cannot read this; leave it out")
        return value

    @field_validator("content", mode="before")
    @classmethod
    def _text_as_part(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class StreamOptions(_Model):
    include_usage: bool = False


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are drawn. It does not depend on the other rows of the batch."""

    temperature: float
    top_p: float = 1.0  # 1: all
    seed: int | None = None
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # as a share of the likeliest token's probability


class ChatRequest(_Model):
    model_config = ConfigDict(extra="allow")  # for `parse` to look through

    model: str
    messages: list[ChatMessage] = _LIST
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    stop: list[Annotated[str, Field(min_length=1)]] | None = Field(None, max_length=4)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63 - MAX_CHOICES)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=_MAX_TOP_LOGPROBS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_as_list(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    def sampling(self, choice: int = 0) -> Sampling | None:
        """None for greedy, the default. A temperature, top_p, top_k or min_p asks for sampling."""
        top_k, min_p = max(self.top_k or 0, 0), self.min_p or 0.0
        temperature = self.temperature
        if temperature is None:
            temperature = 0.0 if self.top_p is None and not top_k and not min_p else 1.0
        if temperature < _GREEDY_BELOW:
            return None
        top_p = 1.0 if self.top_p is None else self.top_p
        return Sampling(temperature, top_p, None if self.seed is None else self.seed + choice, top_k, min_p)

    @property
    def limit(self) -> int | None:
        """The client's limit of new tokens, from the field's new name or its old one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """How many alternatives come with each token's log probability; None if no log probabilities are asked for."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def parse(body: bytes) -> ChatRequest:
    """The request in a body. Raises ApiError (400) that names the first wrong field."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        what = first["msg"][:300]  # it may quote the request
        message = f"{param}: {what}" if param else what
        raise ApiError(400, message, param=param, code=first["type"]) from error
    _refuse(request.model_extra or {})
    if request.max_tokens is not None and request.limit != request.max_tokens:
        raise ApiError(
            400, "max_tokens and max_completion_tokens differ; give one of them", param="max_tokens"
        )
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options is only allowed with stream: true", param="stream_options")
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs is only allowed with logprobs: true", param="top_logprobs")
    return request


def _refuse(fields: dict[str, Any]) -> None:
    """Raises ApiError (400) for the first unknown field, or unsupported field with an effect."""
    for name, value in fields.items():
        if name in _IGNORED:
            continue
        if name not in _NEUTRAL:
            raise ApiError(
                400, f"unknown parameter: {name!r:.100}", param=name[:100], code="unknown_parameter"
            )
        if value is not None and value not in _NEUTRAL[name]:
            raise ApiError(
                400,
                f"{name}: DiVA does not have this; leave it out",
                param=name,
                code="unsupported_parameter",
            )


# ---- answers


@dataclass(frozen=True)
class TokenLogprob:
    """A token's text, and the logarithm of its probability."""

    token: str
    logprob: float
    top: Sequence["TokenLogprob"] = ()

    def json(self) -> dict[str, Any]:
        # A token that is part of a character has no text, and its bytes are not known here.
        known = None if "\ufffd" in self.token else list(self.token.encode())
        return {"token": self.token, "logprob": max(self.logprob, _LEAST_LOGPROB), "bytes": known}


def _logprobs(entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if entries is None:
        return None
    content = [entry.json() | {"top_logprobs": [other.json() for other in entry.top]} for entry in entries]
    return {"content": content, "refusal": None}


@dataclass(frozen=True)
class Piece:
    """The next piece of a row's text."""

    text: str
    logprobs: Sequence[TokenLogprob] | None = None


@dataclass(frozen=True)
class Completion:
    """The end of a row."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int  # virtual tokens included
    completion_tokens: int  # the end-of-turn token included
    logprobs: Sequence[TokenLogprob] | None = None
    hearing: float | None = None  # distance of the last clip's virtual tokens; None without a clip


def usage(completions: Sequence[Completion]) -> dict[str, int]:
    """The usage of a request with these choices. Their prompt is counted once."""
    prompt, new = completions[0].prompt_tokens, sum(each.completion_tokens for each in completions)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


@dataclass
class Answer:
    """The JSON of one answer, whole or as the chunks of a stream."""

    model: str
    include_usage: bool = False  # a last chunk with the usage, null in the others
    hearing_threshold: float | None = None  # above it the model may not have understood; None: not known
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": _logprobs(completion.logprobs),
                "finish_reason": completion.finish_reason,
            }
            for index, completion in enumerate(completions)
        ]
        whole = self._head("chat.completion") | {"choices": choices, "usage": usage(completions)}
        return whole | self._hearing(completions[0])

    def first_chunk(self, index: int) -> dict[str, Any]:
        return self._chunk(index, {"role": "assistant", "content": ""})

    def chunk(self, index: int, event: Piece | Completion) -> dict[str, Any]:
        """A chunk with the next piece of a choice, or with its end."""
        if isinstance(event, Completion):
            return self._chunk(index, {}, finish_reason=event.finish_reason) | self._hearing(event)
        return self._chunk(index, {"content": event.text}, _logprobs(event.logprobs))

    def _hearing(self, completion: Completion) -> dict[str, Any]:
        """The extension field `hearing`, of an answer to speech. Every choice has heard the same."""
        if completion.hearing is None:
            return {}
        return {"hearing": {"distance": completion.hearing, "threshold": self.hearing_threshold}}

    def _chunk(
        self, index: int, delta: dict[str, str], logprobs: Any = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self.include_usage else {}
        return self._head("chat.completion.chunk") | {"choices": [choice]} | usage

    def usage_chunk(self, completions: Sequence[Completion]) -> dict[str, Any]:
        return self._head("chat.completion.chunk") | {"choices": [], "usage": usage(completions)}
