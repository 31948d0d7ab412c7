"""Systems on this machine: a DiVA, its LLM with the true transcript (ceiling), Whisper and then that LLM (cascade).

A system is built once and answers batches. `reader` is its LLM for text. The ceiling and the cascade of a DiVA share
the weights of its LLM.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from diva.audio.frames import SAMPLE_RATE, windows
from diva.errors import UserError
from diva.evaluation.labels import OnlyTokens, label_tokens
from diva.evaluation.samples import Instruction, Sample
from diva.models.configuration import DivaConfig
from diva.models.folders import export_folder, read
from diva.models.llm import load_llm
from diva.models.load import load_model
from diva.models.pretrained import adapter_files, resolve
from diva.models.processing import pad_left
from diva.models.prompts import Message, chat_pieces, encode, released_user_turn

Labels = Sequence[str] | None
Identity = dict[str, str | None]
# The baselines that can use a system's LLM.
BESIDE = ("teacher", "cascade")


class System(Protocol):
    """Answers clips.

    hears: whether it needs their waveforms. batches: whether it answers several at a time. identity: its models and
    settings.
    """

    @property
    def hears(self) -> bool: ...

    @property
    def batches(self) -> bool: ...

    @property
    def identity(self) -> Identity: ...

    def answer(
        self, samples: Sequence[Sample], instruction: Instruction, max_new_tokens: int, labels: Labels = None
    ) -> list[str]:
        """One greedy answer for each sample; one of `labels` if they are given.

        Raises UserError for what the user can mend. Any other exception is a failure of these samples.
        """
        ...


class Reader(Protocol):
    """Answers texts: the LLM of a system."""

    @property
    def batches(self) -> bool: ...

    @property
    def identity(self) -> Identity: ...

    @property
    def whisper(self) -> str | None:
        """The speech recogniser for its cascade."""
        ...

    def read(
        self, texts: Sequence[str], instruction: Instruction, max_new_tokens: int, labels: Labels = None
    ) -> list[str]: ...


def chat(instruction: Instruction, part: Mapping[str, Any]) -> list[Message]:
    """A chat: the system message, then a user's turn with one part and the question on a line of its own."""
    content = [dict(part)]
    if instruction.question is not None:
        content.append({"type": "text", "text": f"\n{instruction.question}"})
    system = [] if instruction.system is None else [{"role": "system", "content": instruction.system}]
    return [*system, {"role": "user", "content": content}]


@torch.no_grad()
def greedy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Mapping[str, Any],
    max_new_tokens: int,
    labels: Labels,
) -> list[str]:
    """Answers to a batch of inputs padded on the left. With labels, the label whose first token is the likeliest."""
    length = inputs["input_ids"].shape[1]
    if labels is None:
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)[:, length:]
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    tokens = label_tokens(tokenizer, labels)
    only = LogitsProcessorList([OnlyTokens(list(tokens))])
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=1, logits_processor=only)[:, length:]
    return [tokens[int(token)] for token in ids[:, 0]]


class TextLLM:
    """A text LLM that reads transcripts, with the prompt of a DiVA's teacher."""

    batches = True

    def __init__(
        self,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        system_prompt: str | None = None,
        prompt_layout: str = "template",
        whisper: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.llm = llm
        self.tokenizer = tokenizer
        self.name = name
        self.system_prompt = system_prompt
        self.prompt_layout = prompt_layout
        self.whisper = whisper
        self.template_kwargs = dict(template_kwargs or {})

    @property
    def identity(self) -> Identity:
        told = {"system_prompt": self.system_prompt, "prompt_layout": self.prompt_layout}
        if self.template_kwargs:
            told["template_kwargs"] = json.dumps(self.template_kwargs, sort_keys=True)
        return {"llm": self.name, "dtype": str(self.llm.dtype), **told}

    @classmethod
    def load(
        cls,
        model: str | None,
        llm: str | None,
        dtype: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> "TextLLM":
        """The LLM of a DiVA (`model`: run directory, export or hub id), or `llm` with `template_kwargs`."""
        if model is not None and template_kwargs:
            raise UserError(
                "system.template_kwargs is for system.llm=NAME: a DiVA's LLM keeps those of its training"
            )
        if (model is None) == (llm is None):
            raise UserError(
                "say whose LLM reads: system.model=RUN for that of a DiVA, or system.llm=NAME; one of them"
            )
        config = read(export_folder(model)).config if model is not None else None
        name = config.llm.name if config is not None else str(llm)
        folder = resolve(name)
        cuda = torch.cuda.is_available()
        loaded = load_llm(
            folder, dtype=dtype or ("auto" if cuda else "float32"), device_map="cuda" if cuda else None
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if config is None:
            return cls(loaded, tokenizer, name, template_kwargs=template_kwargs)
        return cls(loaded, tokenizer, name, **_prompting(config))

    def read(
        self, texts: Sequence[str], instruction: Instruction, max_new_tokens: int, labels: Labels = None
    ) -> list[str]:
        before, after = self._around(instruction.to_diva())
        # Tokenized separately, as in training, so that the text cannot merge with the template's tokens.
        rows = [[*before, *encode(self.tokenizer, text), *after] for text in texts]
        ids, mask = pad_left(rows, pad_token_id=0)
        device = self.llm.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        return greedy(self.llm, self.tokenizer, inputs, max_new_tokens, labels)

    def _around(self, instruction: Instruction) -> tuple[list[int], list[int]]:
        """Token ids of the prompt before and after the text."""
        system = instruction.system or self.system_prompt
        if self.prompt_layout == "released" and instruction.question is None:
            prompt = released_user_turn(self.tokenizer, system, template_kwargs=self.template_kwargs)
            return prompt.prefix_ids, prompt.suffix_ids
        messages = chat(Instruction(system, instruction.question), {"type": "audio"})
        before, after = chat_pieces(self.tokenizer, messages, template_kwargs=self.template_kwargs)
        return before, after


def _prompting(config: DivaConfig) -> dict[str, Any]:
    """The prompt settings of a DiVA's LLM, and its Whisper."""
    llm = config.llm
    return {
        "system_prompt": llm.system_prompt,
        "prompt_layout": llm.prompt_layout,
        "whisper": config.encoder.name,
        "template_kwargs": llm.template_kwargs,
    }


def _digest(files: Sequence[Path]) -> str:
    """A digest of the files' contents."""
    whole = sha256()
    for path in files:
        with open(path, "rb") as file:
            file_digest(file, lambda: whole)
    return whole.hexdigest()[:12]


class Diva:
    """A run, an export or a hub id."""

    hears = True
    batches = True

    def __init__(
        self,
        model: str,
        dtype: str | None = None,
        llm: str | None = None,
        encoder: str | None = None,
        encoder_dtype: str | None = None,
    ):
        self.model = load_model(model, dtype, llm, encoder, encoder_dtype)
        folder = export_folder(model)
        digest = _digest([folder / name for name in adapter_files(folder)])
        self.identity: Identity = {"model": model, "weights": digest, **self.reader.identity}
        if (precision := self.model.config.encoder.dtype) is not None:
            self.identity["encoder_dtype"] = precision

    @property
    def reader(self) -> TextLLM:
        """The teacher."""
        tokenizer, config = self.model.processor.tokenizer, self.model.config
        assert isinstance(config, DivaConfig)
        return TextLLM(self.model.llm, tokenizer, config.llm.name, **_prompting(config))

    def answer(
        self, samples: Sequence[Sample], instruction: Instruction, max_new_tokens: int, labels: Labels = None
    ) -> list[str]:
        processor, instruction = self.model.processor, instruction.to_diva()
        if instruction.question is None:
            clips = [sample.waveform for sample in samples if sample.waveform is not None]
            inputs = processor.spoken_turns(clips, [instruction.system] * len(clips))
        else:
            inputs = processor.apply_chat_template(
                [chat(instruction, {"type": "audio", "audio": sample.waveform}) for sample in samples]
            )
        return greedy(self.model, processor.tokenizer, inputs.to(self.model.device), max_new_tokens, labels)


@dataclass
class Teacher:
    """The ceiling: the LLM reads the true transcript."""

    reader: Reader
    hears = False

    @property
    def batches(self) -> bool:
        return self.reader.batches

    @property
    def identity(self) -> Identity:
        return {"reads": "transcript", **self.reader.identity}

    def answer(
        self, samples: Sequence[Sample], instruction: Instruction, max_new_tokens: int, labels: Labels = None
    ) -> list[str]:
        texts = [sample.transcript for sample in samples if sample.transcript is not None]
        if len(texts) < len(samples):
            raise UserError("the ceiling reads transcripts, and this task has none: choose another system")
        return self.reader.read(texts, instruction, max_new_tokens, labels)


class Cascade:
    """The cascade: Whisper writes a transcript, and the LLM reads it."""

    hears = True

    def __init__(self, reader: Reader, whisper: str | None = None):
        name = whisper or reader.whisper
        if name is None:
            raise UserError(
                "the cascade needs a speech recogniser: whisper=openai/whisper-large-v3 for one beside the system,"
                " system.whisper=openai/whisper-large-v3 for system=cascade"
            )
        folder = resolve(name)
        if (kind := AutoConfig.from_pretrained(folder).model_type) != "whisper":
            raise UserError(f"the cascade needs a Whisper, and {name} is a {kind}; name one: whisper=NAME")
        self.reader = reader
        self.batches = reader.batches
        self.identity: Identity = {"whisper": name, **reader.identity}
        self.features = WhisperFeatureExtractor.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        whisper_model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.whisper = whisper_model.to("cuda" if torch.cuda.is_available() else "cpu")

    def answer(
        self, samples: Sequence[Sample], instruction: Instruction, max_new_tokens: int, labels: Labels = None
    ) -> list[str]:
        return self.reader.read(self.transcribe(samples), instruction, max_new_tokens, labels)

    @torch.no_grad()
    def transcribe(self, samples: Sequence[Sample]) -> list[str]:
        """Whisper's greedy transcript of each clip, in windows of up to 30 s."""
        parts = [windows(sample.waveform) for sample in samples if sample.waveform is not None]
        flat = [window for clip in parts for window in clip]
        inputs = self.features(
            flat, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True
        ).to(self.whisper.device)
        ids = self.whisper.generate(**inputs, do_sample=False)
        heard = iter(self.tokenizer.batch_decode(ids, skip_special_tokens=True))
        return [" ".join(next(heard).strip() for _ in clip) for clip in parts]


def teacher(
    model: str | None = None,
    llm: str | None = None,
    dtype: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Teacher:
    """`system=teacher`."""
    return Teacher(TextLLM.load(model, llm, dtype, template_kwargs))


def cascade(
    model: str | None = None,
    llm: str | None = None,
    whisper: str | None = None,
    dtype: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Cascade:
    """`system=cascade`."""
    return Cascade(TextLLM.load(model, llm, dtype, template_kwargs), whisper)


def beside(system: System, name: str, whisper: str | None) -> System:
    """The baseline "teacher" (the ceiling) or "cascade", with the LLM of a loaded system."""
    assert name in BESIDE
    reader = getattr(system, "reader", None)
    if reader is None:
        raise UserError(f"beside={name}: this system has no LLM of its own that could read; give beside=[]")
    return Teacher(reader) if name == "teacher" else Cascade(reader, whisper)
