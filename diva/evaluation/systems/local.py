"""Who answers: a DiVA, its LLM reading the true transcript (the ceiling), Whisper and that LLM (the rival).

A system is built once and asked for batches. `reader` is its LLM without ears: the ceiling and the cascade of a
DiVA share its weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import (
    AutoModelForCausalLM,
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
from diva.models.folders import export_folder, read
from diva.models.load import load_model
from diva.models.pretrained import adapter_files, resolve
from diva.models.processing import pad_left
from diva.models.prompts import Message, chat_pieces, encode, released_user_turn

Labels = Sequence[str] | None
Identity = dict[str, str | None]
# Who can answer beside a system, with its LLM.
BESIDE = ("teacher", "cascade")


class System(Protocol):
    """Answers clips. `hears` says whether it needs their waveforms, `batches` whether it answers several in one go,
    `identity` what it is made of."""

    @property
    def hears(self) -> bool: ...

    @property
    def batches(self) -> bool: ...

    @property
    def identity(self) -> Identity: ...

    def answer(
        self, samples: Sequence[Sample], instruction: Instruction, max_new_tokens: int, labels: Labels = None
    ) -> list[str]:
        """One answer a sample, greedy; one of `labels` where there are any.

        Raises UserError for what the user can mend; anything else is a failure of these samples.
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
        """The speech recogniser that goes with it."""
        ...

    def read(
        self, texts: Sequence[str], instruction: Instruction, max_new_tokens: int, labels: Labels = None
    ) -> list[str]: ...


def chat(instruction: Instruction, part: Mapping[str, Any]) -> list[Message]:
    """A user's turn with one part, the system message before it, the question behind it on a line of its own."""
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
    """What `model` says to a batch of inputs padded on the left; with labels, the likeliest first token's."""
    length = inputs["input_ids"].shape[1]
    if labels is None:
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)[:, length:]
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    tokens = label_tokens(tokenizer, labels)
    only = LogitsProcessorList([OnlyTokens(list(tokens))])
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=1, logits_processor=only)[:, length:]
    return [tokens[int(token)] for token in ids[:, 0]]


class TextLLM:
    """A text LLM that reads transcripts, in the prompt under which it teaches a DiVA."""

    batches = True

    def __init__(
        self,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        system_prompt: str | None = None,
        prompt_layout: str = "template",
        whisper: str | None = None,
    ):
        self.llm = llm
        self.tokenizer = tokenizer
        self.name = name
        self.system_prompt = system_prompt
        self.prompt_layout = prompt_layout
        self.whisper = whisper

    @property
    def identity(self) -> Identity:
        told = {"system_prompt": self.system_prompt, "prompt_layout": self.prompt_layout}
        return {"llm": self.name, "dtype": str(self.llm.dtype), **told}

    @classmethod
    def load(cls, model: str | None, llm: str | None, dtype: str | None = None) -> "TextLLM":
        """The LLM of a DiVA (`model`: run directory, export or hub id), or the one named `llm`."""
        if (model is None) == (llm is None):
            raise UserError(
                "say whose LLM reads: system.model=RUN for that of a DiVA, or system.llm=NAME; one of them"
            )
        config = read(export_folder(model)).config if model is not None else None
        name = config.llm.name if config is not None else str(llm)
        folder = resolve(name)
        cuda = torch.cuda.is_available()
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or ("auto" if cuda else "float32"), device_map="cuda" if cuda else None
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if config is None:
            return cls(loaded.eval(), tokenizer, name)
        layout, whisper = config.llm.prompt_layout, config.encoder.name
        return cls(loaded.eval(), tokenizer, name, config.llm.system_prompt, layout, whisper)

    def read(
        self, texts: Sequence[str], instruction: Instruction, max_new_tokens: int, labels: Labels = None
    ) -> list[str]:
        before, after = self._around(instruction)
        # By itself, as in training: nothing that is read can merge with the template's tokens.
        rows = [[*before, *encode(self.tokenizer, text), *after] for text in texts]
        ids, mask = pad_left(rows, pad_token_id=0)
        device = self.llm.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        return greedy(self.llm, self.tokenizer, inputs, max_new_tokens, labels)

    def _around(self, instruction: Instruction) -> tuple[list[int], list[int]]:
        """Token ids before and after what is read."""
        system = instruction.system or self.system_prompt
        if self.prompt_layout == "released" and instruction.question is None:
            prompt = released_user_turn(self.tokenizer, system)
            return prompt.prefix_ids, prompt.suffix_ids
        messages = chat(Instruction(system, instruction.question), {"type": "audio"})
        before, after = chat_pieces(self.tokenizer, messages)
        return before, after


def _digest(files: Sequence[Path]) -> str:
    """Of what is in the files, one behind the other."""
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
        self, model: str, dtype: str | None = None, llm: str | None = None, encoder: str | None = None
    ):
        self.model = load_model(model, dtype, llm, encoder)
        folder = export_folder(model)
        digest = _digest([folder / name for name in adapter_files(folder)])
        self.identity: Identity = {"model": model, "weights": digest, **self.reader.identity}

    @property
    def reader(self) -> TextLLM:
        """The teacher."""
        config = self.model.config
        return TextLLM(
            self.model.llm,
            self.model.processor.tokenizer,
            config.llm.name,
            config.llm.system_prompt,
            config.llm.prompt_layout,
            config.encoder.name,
        )

    def answer(
        self, samples: Sequence[Sample], instruction: Instruction, max_new_tokens: int, labels: Labels = None
    ) -> list[str]:
        processor = self.model.processor
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
    """The ceiling: the LLM reads what was said."""

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
            raise UserError("the ceiling reads what is said, and this task has no transcripts")
        return self.reader.read(texts, instruction, max_new_tokens, labels)


class Cascade:
    """The rival: Whisper writes down what it hears, the LLM reads it."""

    hears = True

    def __init__(self, reader: Reader, whisper: str | None = None):
        name = whisper or reader.whisper
        if name is None:
            raise UserError(
                "the cascade needs a speech recogniser: whisper=openai/whisper-large-v3 for one beside the system,"
                " system.whisper=openai/whisper-large-v3 for system=cascade"
            )
        folder = resolve(name)
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
        """What Whisper hears in each clip, window by window of up to 30 s, greedy."""
        parts = [windows(sample.waveform) for sample in samples if sample.waveform is not None]
        flat = [window for clip in parts for window in clip]
        inputs = self.features(
            flat, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True
        ).to(self.whisper.device)
        ids = self.whisper.generate(**inputs, do_sample=False)
        heard = iter(self.tokenizer.batch_decode(ids, skip_special_tokens=True))
        return [" ".join(next(heard).strip() for _ in clip) for clip in parts]


def teacher(model: str | None = None, llm: str | None = None, dtype: str | None = None) -> Teacher:
    """`system=teacher`."""
    return Teacher(TextLLM.load(model, llm, dtype))


def cascade(
    model: str | None = None, llm: str | None = None, whisper: str | None = None, dtype: str | None = None
) -> Cascade:
    """`system=cascade`."""
    return Cascade(TextLLM.load(model, llm, dtype), whisper)


def beside(system: System, name: str, whisper: str | None) -> System:
    """The ceiling ("teacher") or the rival ("cascade") with the LLM of a system that is loaded."""
    assert name in BESIDE
    reader = getattr(system, "reader", None)
    if reader is None:
        raise UserError(f"beside={name}: this system has no LLM of its own that could read; give beside=[]")
    return Teacher(reader) if name == "teacher" else Cascade(reader, whisper)
