"""OpenAI's chat completions as they go over the wire: requests, answers, errors.

Source: the API reference of OpenAI, "Create chat completion". Fields that would change the answer in a way that
DiVA cannot give are refused; other fields of OpenAI's clients are tolerated.
"""

import time
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

# Field -> its values that ask for nothing; every other one is refused.
_NEUTRAL: dict[str, tuple] = {
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
}
# Below this a temperature makes float32 overflow, and the answer is the greedy one anyway.
_GREEDY_BELOW = 1e-4
# A body of millions of items, or of millions of mistakes, costs no more than its first ones.
_LIST: Any = Field(min_length=1, max_length=1024, fail_fast=True)


class ApiError(Exception):
    """What the client is told instead of an answer."""

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
    # Strict: a number in a string is a mistake of the client's, and no client of OpenAI's makes it.
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class TextPart(_Model):
    type: Literal["text"]
    text: str


class InputAudio(_Model):
    data: str  # base64 of the file
    format: Literal["wav", "mp3"]


class AudioPart(_Model):
    type: Literal["input_audio"]
    input_audio: InputAudio


class ChatMessage(_Model):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[TextPart | AudioPart, Field(discriminator="type")]] = _LIST

    @field_validator("content", mode="before")
    @classmethod
    def _text_as_part(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class StreamOptions(_Model):
    include_usage: bool = False


@dataclass(frozen=True)
class Sampling:
    """How a row is drawn, whatever else is in its batch."""

    temperature: float
    top_p: float
    seed: int | None


class ChatRequest(_Model):
    model_config = ConfigDict(extra="allow")  # for `parse` to look through

    model: str
    messages: list[ChatMessage] = _LIST
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    stop: list[Annotated[str, Field(min_length=1)]] | None = Field(None, max_length=4)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_as_list(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @property
    def sampling(self) -> Sampling | None:
        """None for greedy: the default, unless a temperature or a top_p asks for a draw."""
        temperature = self.temperature
        if temperature is None:
            temperature = 0.0 if self.top_p is None else 1.0
        if temperature < _GREEDY_BELOW:
            return None
        return Sampling(temperature, 1.0 if self.top_p is None else self.top_p, self.seed)

    @property
    def limit(self) -> int | None:
        """New tokens that the client allows, under the new name of the field or the old one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def parse(body: bytes) -> ChatRequest:
    """The request in a body. Raises ApiError (400) that names the first field that is wrong."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        what = first["msg"][:300]  # it may quote the request
        message = f"{param}: {what}" if param else what
        raise ApiError(400, message, param=param, code=first["type"]) from error
    for name, value in (request.model_extra or {}).items():
        if value is not None and name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise ApiError(
                400,
                f"{name}: DiVA does not have this; leave it out",
                param=name,
                code="unsupported_parameter",
            )
    if request.max_tokens is not None and request.limit != request.max_tokens:
        raise ApiError(
            400, "max_tokens and max_completion_tokens differ; give one of them", param="max_tokens"
        )
    return request


# ---- answers


@dataclass(frozen=True)
class Completion:
    """How a row ended."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int  # virtual tokens included
    completion_tokens: int  # the end-of-turn token included

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass
class Answer:
    """The JSON of one answer: whole, or as the chunks of a stream."""

    model: str
    include_usage: bool = False  # a last chunk with the usage, null in the others
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def whole(self, completion: Completion) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": None,
            "finish_reason": completion.finish_reason,
        }
        return self._head("chat.completion") | {"choices": [choice], "usage": completion.usage}

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self.include_usage else {}
        return self._head("chat.completion.chunk") | {"choices": [choice]} | usage

    def usage_chunk(self, completion: Completion) -> dict[str, Any]:
        return self._head("chat.completion.chunk") | {"choices": [], "usage": completion.usage}
