"""A request's body -> jobs. All errors of a request are found here, before the model runs."""

import base64
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from diva.audio.decoding import decode
from diva.audio.frames import SAMPLE_RATE, windows
from diva.errors import AudioFault, UserError
from diva.models.modeling import DivaForConditionalGeneration
from diva.serving.protocol import ApiError, AudioPart, AudioUrlPart, ChatMessage, ChatRequest, TextPart, parse
from diva.serving.rows import Job

MAX_CLIPS = 64  # in one request: the shortest is padded to the longest, up to 30 s


@dataclass(frozen=True)
class RequestLimits:
    """Limits of one request."""

    audio_seconds: float
    new_tokens: int


class Listener:
    """Makes jobs of bodies, in any thread."""

    def __init__(self, model: DivaForConditionalGeneration, name: str, limits: RequestLimits):
        self._processor = model.processor
        # The server's limit replaces the one that was saved with the processor.
        self._processor.max_audio_seconds = limits.audio_seconds
        self._name = name
        self._limits = limits
        self._context = getattr(model.llm.config.get_text_config(), "max_position_embeddings", None)
        self._longest_token = max(map(len, self._processor.tokenizer.get_vocab()))

    def prepare(self, body: bytes, deliver: Callable[[int, Any], Any]) -> tuple[ChatRequest, list[Job]]:
        """The request, and a job for each of its choices. `deliver` gets the number of the choice.

        Raises ApiError (400, 404) for a request that cannot be answered.
        """
        request = parse(body)
        if request.model != self._name:
            raise ApiError(
                404,
                f"the model {request.model!r:.100} does not exist; this server has {self._name!r}",
                param="model",
                code="model_not_found",
            )
        try:
            chat, waveforms = self._chat(request.messages)
            self._check_length(chat)
            inputs = self._processor.apply_chat_template([chat])
        except AudioFault as fault:
            raise ApiError(400, str(fault), param="messages", code=fault.reason.replace(" ", "_")) from fault
        except UserError as error:
            raise ApiError(400, str(error), param="messages") from error
        prompt_tokens = inputs["input_ids"].shape[1]
        max_tokens = self._max_tokens(request, prompt_tokens)
        cut = [windows(waveform) for waveform in waveforms]
        parts = [len(window) for clip in cut for window in clip]
        jobs = [
            Job(
                chat=chat,
                prompt_tokens=prompt_tokens,
                windows=len(parts),
                window_samples=max(parts, default=0),
                last_windows=len(cut[-1]) if cut else 0,
                max_tokens=max_tokens,
                stop=request.stop or (),
                sampling=request.sampling(choice),
                stream=bool(request.stream),
                deliver=functools.partial(deliver, choice),
                repetition_penalty=request.repetition_penalty,
                logprobs=request.alternatives,
            )
            for choice in range(request.n or 1)
        ]
        return request, jobs

    def _chat(self, messages: list[ChatMessage]) -> tuple[list[dict], list[np.ndarray]]:
        """Messages for DivaProcessor, and their waveforms. Each part of a message is a line of it."""
        chat: list[dict] = []
        waveforms: list[np.ndarray] = []
        for message in messages:
            content: list[dict] = []
            for part in message.content:
                if content:
                    content.append({"type": "text", "text": "\n"})
                if isinstance(part, TextPart):
                    content.append({"type": "text", "text": part.text})
                    continue
                if message.role != "user":
                    raise ApiError(400, f"only a user's message can have {part.type}", param="messages")
                if len(waveforms) == MAX_CLIPS:
                    raise ApiError(400, f"a request has at most {MAX_CLIPS} clips", param="messages")
                heard = sum(map(len, waveforms)) / SAMPLE_RATE
                waveforms.append(decode(_file(part), self._limits.audio_seconds - heard))
                content.append({"type": "audio", "audio": waveforms[-1]})
            role = "system" if message.role == "developer" else message.role
            chat.append({"role": role, "content": content})
        return chat, waveforms

    def _check_length(self, chat: list[dict]) -> None:
        """Refuse a text that is too long before it is tokenized, because tokenizing it could take long."""
        characters = sum(len(part.get("text", "")) for message in chat for part in message["content"])
        if self._context is not None and characters > self._context * self._longest_token:
            raise self._too_long(f"more than {self._context}")

    def _max_tokens(self, request: ChatRequest, prompt_tokens: int) -> int:
        """The request's limit of new tokens, at most the server's limit and the free part of the context."""
        limit = min(request.limit or self._limits.new_tokens, self._limits.new_tokens)
        if self._context is None:
            return limit
        if prompt_tokens >= self._context:
            raise self._too_long(f"{prompt_tokens + 1}")
        return min(limit, self._context - prompt_tokens)

    def _too_long(self, tokens: str) -> ApiError:
        return ApiError(
            400,
            f"messages and answer would take {tokens} tokens; the model's context is {self._context}",
            param="messages",
            code="context_length_exceeded",
        )


def _file(part: AudioPart | AudioUrlPart) -> bytes:
    """The audio file in a part. Raises ApiError if it is not base64."""
    data = part.input_audio.data if isinstance(part, AudioPart) else _data_of(part.audio_url.url)
    try:
        # Some encoders insert line breaks, and copied text may have spaces.
        return base64.b64decode("".join(data.split()), validate=True)
    except ValueError as error:
        raise ApiError(
            400, f"{part.type} has no base64: {error}", param="messages", code="invalid_base64"
        ) from error


def _data_of(url: str) -> str:
    """The base64 in a data: URL (RFC 2397). Raises ApiError for any other URL, because nothing is fetched."""
    head, comma, data = url.partition(",")
    if comma and head[:5].lower() == "data:" and head[-7:].lower() == ";base64":
        return data
    raise ApiError(
        400,
        "audio_url: this server fetches nothing; put the file into the URL: data:audio/wav;base64,...",
        param="messages",
        code="unsupported_url",
    )
