"""A body -> a job: everything that can be wrong with a request is found here, before it meets the model."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from diva.audio.decoding import container_of, decode
from diva.audio.frames import SAMPLE_RATE, windows
from diva.errors import AudioFault, UserError
from diva.models.modeling import DivaForConditionalGeneration
from diva.serving.protocol import ApiError, AudioPart, ChatMessage, ChatRequest, InputAudio, parse
from diva.serving.rows import Job

MAX_CLIPS = 64  # in one request: the shortest is padded to the longest, up to 30 s
_FORMATS = {"wav": ("WAV", "WAVEX", "RF64"), "mp3": ("MP3", "MPEG")}  # libsndfile's names


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for."""

    audio_seconds: float
    new_tokens: int


class Listener:
    """Makes jobs of bodies, in any thread."""

    def __init__(self, model: DivaForConditionalGeneration, name: str, limits: RequestLimits):
        self._processor = model.processor
        # The server's limit holds, whatever the processor was saved with.
        self._processor.max_audio_seconds = limits.audio_seconds
        self._name = name
        self._limits = limits
        self._context = getattr(model.llm.config.get_text_config(), "max_position_embeddings", None)
        self._longest_token = max(map(len, self._processor.tokenizer.get_vocab()))

    def prepare(self, body: bytes, deliver: Callable[[Any], Any]) -> tuple[ChatRequest, Job]:
        """The request and its job. Raises ApiError (400, 404) for what cannot be answered."""
        request = parse(body)
        if request.model != self._name:
            raise ApiError(
                404,
                f"the model {request.model!r:.100} does not exist; this server has {self._name!r}",
                param="model",
                code="model_not_found",
            )
        if request.limit is not None and request.limit > self._limits.new_tokens:
            raise ApiError(
                400, f"max_tokens is at most {self._limits.new_tokens} on this server", param="max_tokens"
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
        parts = [len(window) for waveform in waveforms for window in windows(waveform)]
        job = Job(
            chat=chat,
            prompt_tokens=prompt_tokens,
            windows=len(parts),
            window_samples=max(parts, default=0),
            max_tokens=self._max_tokens(request, prompt_tokens),
            stop=request.stop or (),
            sampling=request.sampling,
            stream=bool(request.stream),
            deliver=deliver,
        )
        return request, job

    def _chat(self, messages: list[ChatMessage]) -> tuple[list[dict], list[np.ndarray]]:
        """Messages for DivaProcessor, and the waveforms in them. Parts of a message are lines of it."""
        chat: list[dict] = []
        waveforms: list[np.ndarray] = []
        for message in messages:
            content: list[dict] = []
            for part in message.content:
                if content:
                    content.append({"type": "text", "text": "\n"})
                if isinstance(part, AudioPart):
                    if message.role != "user":
                        raise ApiError(400, "only a user's message can have input_audio", param="messages")
                    if len(waveforms) == MAX_CLIPS:
                        raise ApiError(400, f"a request has at most {MAX_CLIPS} clips", param="messages")
                    heard = sum(map(len, waveforms)) / SAMPLE_RATE
                    waveforms.append(_hear(part.input_audio, self._limits.audio_seconds - heard))
                    content.append({"type": "audio", "audio": waveforms[-1]})
                else:
                    content.append({"type": "text", "text": part.text})
            role = "system" if message.role == "developer" else message.role
            chat.append({"role": role, "content": content})
        return chat, waveforms

    def _check_length(self, chat: list[dict]) -> None:
        """Refuse a text that cannot fit before it is tokenized, which would take as long as it is."""
        characters = sum(len(part.get("text", "")) for message in chat for part in message["content"])
        if self._context is not None and characters > self._context * self._longest_token:
            raise self._too_long(f"more than {self._context}")

    def _max_tokens(self, request: ChatRequest, prompt_tokens: int) -> int:
        limit = request.limit
        if self._context is None:
            return limit or self._limits.new_tokens
        room = self._context - prompt_tokens
        if room < (limit or 1):
            raise self._too_long(f"{prompt_tokens + (limit or 1)}")
        return limit or min(self._limits.new_tokens, room)

    def _too_long(self, tokens: str) -> ApiError:
        return ApiError(
            400,
            f"messages and answer would take {tokens} tokens; the model's context is {self._context}",
            param="messages",
            code="context_length_exceeded",
        )


def _hear(audio: InputAudio, max_seconds: float) -> np.ndarray:
    """A part's waveform [S] at 16 kHz. Raises AudioFault, or ApiError for what is no audio file at all."""
    try:
        data = base64.b64decode(audio.data, validate=True)
    except ValueError as error:
        raise ApiError(
            400, f"input_audio.data is no base64: {error}", param="messages", code="invalid_base64"
        ) from error
    container = container_of(data)
    if container not in _FORMATS[audio.format]:
        raise AudioFault("damaged audio", f"input_audio says {audio.format} and is {container}")
    return decode(data, max_seconds)
