"""Systems of other people: audio LLMs of transformers, any endpoint of OpenAI's protocol."""

import base64
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import soundfile
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor, VoxtralProcessor
from transformers.utils import is_mistral_common_available

from diva.audio.frames import SAMPLE_RATE
from diva.errors import UserError
from diva.evaluation.labels import NoLabel, which_label
from diva.evaluation.samples import Instruction, Sample
from diva.evaluation.systems.local import Identity, Labels, chat, greedy
from diva.models.pretrained import resolve


class _OneByOne(ABC):
    """An audio LLM that answers one sample at a time."""

    hears = True
    batches = False
    whisper = None
    identity: Identity

    @property
    def reader(self) -> Self:
        return self

    def answer(
        self, samples: Sequence[Sample], instruction: Instruction, max_new_tokens: int, labels: Labels = None
    ) -> list[str]:
        parts = [self._spoken(sample) for sample in samples]
        return [self._say(part, instruction, max_new_tokens, labels) for part in parts]

    def read(
        self, texts: Sequence[str], instruction: Instruction, max_new_tokens: int, labels: Labels = None
    ) -> list[str]:
        parts = [{"type": "text", "text": text} for text in texts]
        return [self._say(part, instruction, max_new_tokens, labels) for part in parts]

    @abstractmethod
    def _spoken(self, sample: Sample) -> dict[str, Any]:
        """A clip as a part of a user's turn."""

    @abstractmethod
    def _say(
        self, part: Mapping[str, Any], instruction: Instruction, max_new_tokens: int, labels: Labels
    ) -> str: ...


class TransformersAudio(_OneByOne):
    """An audio LLM of transformers' own, by its Auto classes and the chat template of its processor.

    It answers one clip at a time, because in some models the padding of a batch changes the answers.
    """

    def __init__(self, model: str, dtype: str | None = None, trust_remote_code: bool = False):
        folder = resolve(model)
        cuda = torch.cuda.is_available()
        try:
            self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
            self.model = AutoModelForMultimodalLM.from_pretrained(
                folder,
                trust_remote_code=trust_remote_code,
                dtype=dtype or ("auto" if cuda else "float32"),
                device_map="cuda" if cuda else None,
            ).eval()
        except ValueError as error:  # transformers' message names the model's class and the supported ones
            raise UserError(f"{model} is no audio LLM that transformers can load: {error}") from error
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.identity = {"model": model, "dtype": str(self.model.dtype)}
        self._is_voxtral = isinstance(self.processor, VoxtralProcessor)
        if self._is_voxtral and not is_mistral_common_available():
            raise UserError(f"{model} needs the tokenizer of its makers: pip install 'diva[voxtral]'")
        listens = getattr(getattr(self.processor, "feature_extractor", None), "sampling_rate", SAMPLE_RATE)
        if listens != SAMPLE_RATE:
            raise UserError(f"{model} listens at {listens} Hz; the clips of a task have {SAMPLE_RATE} Hz")

    def _spoken(self, sample: Sample) -> dict[str, Any]:
        if self._is_voxtral:  # its template takes a file or a file's bytes
            return {"type": "audio", "base64": _wav(sample)["data"]}
        return {"type": "audio", "audio": sample.waveform}

    def _say(
        self, part: Mapping[str, Any], instruction: Instruction, max_new_tokens: int, labels: Labels
    ) -> str:
        messages = _typed(chat(instruction, part))
        inputs = self.processor.apply_chat_template(
            _one_turn(messages) if self._is_voxtral else messages,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            return_tensors="pt",
        ).to(self.model.device)
        return greedy(self.model, self.tokenizer, inputs, max_new_tokens, labels)[0]


class OpenAIEndpoint(_OneByOne):
    """A server of OpenAI's chat completions that accepts `input_audio`.

    Its answers cannot be restricted to labels. An answer counts as the label that it is or begins with. An answer
    without a label has failed.
    """

    def __init__(self, model: str, base_url: str, key_variable: str, timeout_seconds: float):
        try:
            from openai import OpenAI
        except ImportError as error:
            raise UserError("system=openai needs its client: pip install openai") from error
        key = os.environ.get(key_variable)
        if not key and "api.openai.com" in base_url:
            raise UserError(f"system=openai needs a key: set {key_variable}")
        # A private server may need no key, but the client requires one.
        self.client = OpenAI(base_url=base_url, api_key=key or "none", timeout=timeout_seconds)
        self.model = model
        self.identity = {"model": model, "base_url": base_url}

    def _spoken(self, sample: Sample) -> dict[str, Any]:
        return {"type": "input_audio", "input_audio": _wav(sample)}

    def _say(
        self, part: Mapping[str, Any], instruction: Instruction, max_new_tokens: int, labels: Labels
    ) -> str:
        reply = self.client.chat.completions.create(
            model=self.model,
            messages=chat(instruction, part),  # type: ignore[arg-type]
            max_tokens=max_new_tokens,
            temperature=0.0,
        )
        text = (reply.choices[0].message.content or "").strip()
        if labels is None:
            return text
        label = which_label(text, labels)
        if label is None:
            raise NoLabel(f"no label in the answer {text!r}")
        return label


def _typed(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every content as a list of parts, which some templates ask for."""
    parts = [
        [{"type": "text", "text": m["content"]}] if isinstance(m["content"], str) else m["content"]
        for m in messages
    ]
    return [{**m, "content": content} for m, content in zip(messages, parts, strict=True)]


def _one_turn(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A system message as the first paragraph of the user's turn: Voxtral takes none beside audio (mistral-common,
    InstructTokenizerV7.validate_messages)."""
    *system, user = messages
    told = [{**part, "text": f"{part['text']}\n\n"} for message in system for part in message["content"]]
    return [{**user, "content": [*told, *user["content"]]}]


def _wav(sample: Sample) -> dict[str, str]:
    assert sample.waveform is not None
    file = io.BytesIO()
    soundfile.write(file, sample.waveform, SAMPLE_RATE, format="WAV")
    return {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}
