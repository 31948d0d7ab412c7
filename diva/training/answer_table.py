"""The teacher's answers to all transcripts of a split, made once and cached."""

import json
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock
from torch import Tensor

from diva.data.batch import EMPTY_ROW, SpeechBatch
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.pretrained import cache_dir
from diva.models.prompts import user_turn
from diva.terminal import say, track
from diva.training.answer_server import AnswerServer
from diva.training.answers import Answer, AnswerSettings, Continuation, answer, end_ids
from diva.training.transcripts import Transcripts, digest, weights_digest

_GROUP = 64

T = TypeVar("T")
AnswerGroup = Callable[[int, Sequence[list[int]]], list[Answer]]


class AnswerTable:
    """The teacher's answers to the transcripts of a split, for each end of the user's turn and each sample."""

    def __init__(
        self, suffixes: list[list[int]], answers: list[Answer], numbers: dict[str, int], width: int = 0
    ):
        self.suffixes = suffixes
        self.answers = answers  # those to one transcript together: of the first suffix, of the second, ...
        self.numbers = numbers  # clip id -> which of the distinct transcripts
        self.width = width  # to which all batches are padded; 0: to their longest

    @classmethod
    def build(
        cls,
        model: DivaForConditionalGeneration,
        transcripts: Transcripts,
        limit: int,
        settings: AnswerSettings,
        instructions: Sequence[str] = (),
        width: int = 0,
    ) -> "AnswerTable":
        """From the cache, or answered by the LLM; answers have up to `limit` tokens, with 0 none."""
        suffixes = turn_ends(model, instructions)
        asked = [
            (ids, suffix)
            for ids in transcripts.distinct
            for suffix in suffixes
            for _ in range(settings.samples)
        ]
        if limit == 0:
            return cls(suffixes, [Answer([], False)] * len(asked), transcripts.numbers, width)
        prefix = model.prefix_ids.tolist()
        drawn = settings.temperature, settings.seed, settings.model
        key = digest(weights_digest(model.llm), prefix, asked, limit, *drawn)
        behind = [[*ids, *suffix] for ids, suffix in asked]
        groups = [behind[start : start + _GROUP] for start in range(0, len(behind), _GROUP)]
        answer_group = by_llm(model, settings, limit)
        if settings.endpoint is not None:
            answer_group = by_server(model, settings, limit)
        answers = make_answers(cache_dir() / "answers" / f"{key}.jsonl", groups, answer_group)
        return cls(suffixes, answers, transcripts.numbers, width)

    def __len__(self) -> int:
        """How many rows there are: suffixes and samples of all transcripts."""
        return len(self.answers)

    @cached_property
    def variants(self) -> int:
        """Rows of a transcript."""
        return len(self.answers) // len(set(self.numbers.values()))

    @cached_property
    def starts(self) -> Tensor:
        """[rows + 1], where each row's positions begin in those of all."""
        return torch.tensor([0, *(len(answer.ids) + 1 for answer in self.answers)]).cumsum(0)

    @property
    def positions(self) -> int:
        """Where a token of an answer is decided, over all rows."""
        return int(self.starts[-1])

    @property
    def digest(self) -> str:
        """Tells these answers from others."""
        return digest(self.suffixes, [tuple(answer) for answer in self.answers])

    def __call__(self, batch: SpeechBatch, step: int = 0) -> Continuation:
        """What the rows of a batch go on with at a step, on the batch's device. Empty rows have no answer.

        Which suffix and sample a clip gets is drawn by clip and step: on every rank, and after resuming, the same.
        """
        rows = []
        for clip_id in batch.clip_ids:
            drawn = zlib.crc32(f"{step} {clip_id}".encode()) % self.variants
            rows.append(self.numbers[clip_id] * self.variants + drawn if clip_id else EMPTY_ROW)
        return self.rows(rows).to(batch.tokens.device)

    def rows(self, rows: list[int]) -> Continuation:
        """What these rows go on with."""
        samples = self.variants // len(self.suffixes)
        suffixes = [self.suffixes[max(row, 0) % self.variants // samples] for row in rows]
        answers = [Answer([], False) if row == EMPTY_ROW else self.answers[row] for row in rows]
        return Continuation.of(suffixes, answers, rows, self.width)


def turn_ends(model: DivaForConditionalGeneration, instructions: Sequence[str]) -> list[list[int]]:
    """Token ids from the end of the speech to the answer: behind each instruction, or the template's alone."""
    plain = [model.suffix_ids.tolist()]
    tokenizer, llm = model.processor.tokenizer, model.config.llm
    turns = [
        user_turn(tokenizer, llm.system_prompt, f"\n{text}", llm.template_kwargs) for text in instructions
    ]
    return [turn.suffix_ids for turn in turns] or plain


def by_llm(model: DivaForConditionalGeneration, settings: AnswerSettings, limit: int) -> AnswerGroup:
    """Answers of the LLM in this process, to the token ids behind the prefix."""

    def answer_group(number: int, group: Sequence[list[int]]) -> list[Answer]:
        rows = [model.embed(torch.tensor(ids, device=model.prefix_ids.device)) for ids in group]
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed + number)
            return answer(model, rows, limit, settings.temperature)

    return answer_group


def by_server(model: DivaForConditionalGeneration, settings: AnswerSettings, limit: int) -> AnswerGroup:
    """Answers of a server that has the same LLM; the prompt goes with them."""
    assert settings.endpoint is not None
    assert settings.model is not None
    prefix, tokenizer = model.prefix_ids.tolist(), model.processor.tokenizer
    server = AnswerServer(settings.endpoint, settings.model, settings.concurrency, tokenizer, end_ids(model))

    def answer_group(number: int, group: Sequence[list[int]]) -> list[Answer]:
        prompts = [[*prefix, *ids] for ids in group]
        before = server.inexact
        answers = server.answer(prompts, limit, settings.temperature, settings.seed + number * _GROUP)
        if server.inexact > before:
            say(
                f"{server.inexact} answers of {settings.endpoint} so far are not exactly the tokens that were said:"
                " it returns no token ids, and their text is tokenized otherwise"
            )
        return answers

    return answer_group


def make_answers(
    file: Path, groups: Sequence[Sequence[T]], answer_group: Callable[[int, Sequence[T]], list[Answer]]
) -> list[Answer]:
    """The answers in `file`, to groups of questions; what is missing is made by `answer_group(number, questions)`.

    Another process that wants the same file waits.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        lines = _whole_lines(file)[: len(groups)]
        with file.open("a", encoding="utf-8") as out:
            left = list(enumerate(groups))[len(lines) :]
            for number, group in track(left, "the teacher answers", len(groups), len(lines), transient=True):
                line = json.dumps([list(answer) for answer in answer_group(number, group)])
                out.write(line + "\n")
                out.flush()
                lines.append(line)
    return [Answer(*fields) for line in lines for fields in json.loads(line)]


def _whole_lines(file: Path) -> list[str]:
    """The file's lines; what a killed process left behind the last of them is cut off."""
    if not file.is_file():
        return []
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with file.open("r+b") as cutting:
            cutting.truncate(len(whole))
    return whole.decode().splitlines()
