"""The LLM's answers, which student and teacher both read after the user's turn.

They are the teacher's answers (generated once and cached) or the student's own (`diva.training.on_policy`).
The teacher answers each distinct transcript once. Each group of transcripts is one line of the cache file, written as
soon as it is answered. After an interruption the next process continues after the last complete line.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from filelock import FileLock
from torch import Tensor

from diva.data.batch import EMPTY_ROW, SpeechBatch
from diva.errors import UserError
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.pretrained import cache_dir
from diva.models.prompts import user_turn
from diva.terminal import track
from diva.training.transcripts import Transcripts, digest, weights_digest

_GROUP = 64

T = TypeVar("T")


class Answer(NamedTuple):
    """The first tokens of an answer, without the token that ends it."""

    ids: list[int]
    ended: bool  # True: the answer ends after them; False: it was cut there


@dataclass(frozen=True)
class AnswerSettings:
    """How the teacher answers: greedily at temperature 0, otherwise with `samples` sampled answers to each transcript.

    Validation compares the first `val_tokens` tokens of greedy answers. With `val_tokens=0` it compares only the first
    token.
    """

    temperature: float = 0.0
    samples: int = 1
    seed: int = 0
    val_tokens: int = 0

    def __post_init__(self):
        if self.samples > 1 and self.temperature == 0:
            raise UserError(f"answers.samples={self.samples} would be equal: set answers.temperature above 0")


@dataclass(frozen=True)
class Continuation:
    """The tokens after the speech (or its transcript) in each of B rows: the suffix of the turn, then an answer."""

    ids: Tensor  # [B, C] int64, zero-padded
    at: Tensor  # [B, P] int64, positions in `ids` that predict a token of the answer; padded by repeating the last
    answer: Tensor  # [B] int64, number of tokens of each answer, at most P - 1
    ended: Tensor  # [B] bool, whether the position after the answer's last token predicts its end
    suffixes: list[list[int]]  # [B] the suffix of each row's turn; `ids` begins with it
    rows: list[int] | None = None  # [B] rows of the answer table; None: the answers are not from a table

    @classmethod
    def of(
        cls,
        suffixes: Sequence[list[int]],
        answers: Sequence[Answer],
        rows: list[int] | None = None,
        width: int = 0,
    ) -> "Continuation":
        """Rows with these suffixes and answers, padded to answers of at least `width` tokens."""
        counts = torch.tensor([len(answer.ids) for answer in answers])
        width = max(width, int(counts.max()))
        ids = torch.zeros(len(answers), max(map(len, suffixes)) + width, dtype=torch.long)
        for row, (suffix, answer) in enumerate(zip(suffixes, answers, strict=True)):
            ids[row, : len(suffix) + len(answer.ids)] = torch.tensor([*suffix, *answer.ids])
        last = torch.tensor([len(suffix) - 1 for suffix in suffixes]).unsqueeze(1)
        at = last + torch.arange(width + 1).minimum(counts.unsqueeze(1))
        return cls(ids, at, counts, torch.tensor([answer.ended for answer in answers]), list(suffixes), rows)

    def to(self, device: torch.device | str) -> "Continuation":
        ids, at, answer, ended = (x.to(device) for x in (self.ids, self.at, self.answer, self.ended))
        return Continuation(ids, at, answer, ended, self.suffixes, self.rows)

    def weights(self, valid: Tensor, end_weight: float = 1.0) -> Tensor:
        """The weight of each position, [B, P] in float32: 0 for padding and in rows that are not `valid` [B]."""
        number = torch.arange(self.at.shape[1], device=self.at.device)
        there = (number <= self.answer.unsqueeze(1)) & valid.unsqueeze(1)
        ends = (number == self.answer.unsqueeze(1)) & self.ended.unsqueeze(1)
        return there * torch.where(ends, end_weight, 1.0)


# ---- answering


@torch.no_grad()
def answer(
    model: DivaForConditionalGeneration, rows: Sequence[Tensor], limit: int, temperature: float = 0.0
) -> list[Answer]:
    """The LLM's answers of at most `limit` tokens. Each row of embeddings [L_b, D] follows the prefix."""
    device, prefix = rows[0].device, len(model.prefix_ids)
    length = max(map(len, rows))
    inner = torch.stack([torch.nn.functional.pad(row, (0, 0, length - len(row), 0)) for row in rows])
    mask = torch.ones(len(rows), prefix + length, dtype=torch.long, device=device)
    for number, row in enumerate(rows):
        mask[number, prefix : prefix + length - len(row)] = 0
    before = model.embed(model.prefix_ids).to(inner.dtype).expand(len(rows), -1, -1)
    sampling: dict[str, Any] = (
        {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    )
    with torch.autocast(device.type, enabled=False):
        said = model.generate(
            input_ids=torch.full_like(mask, model.processor.pad_token_id),
            inputs_embeds=torch.cat([before, inner], dim=1),
            attention_mask=mask,
            past_key_values=model._prefix(len(rows)),
            max_new_tokens=limit,
            do_sample=temperature > 0,
            **sampling,
        )
    return [cut(ids, end_ids(model)) for ids in said[:, mask.shape[1] :].tolist()]


def end_ids(model: DivaForConditionalGeneration) -> set[int]:
    """The tokens that end an answer."""
    ids = model.generation_config.eos_token_id
    return set(ids) if isinstance(ids, list) else {ids}


def cut(ids: Sequence[int], ends: set[int]) -> Answer:
    """The generated ids before the first end token."""
    for number, token in enumerate(ids):
        if token in ends:
            return Answer(list(ids[:number]), True)
    return Answer(list(ids), False)


# ---- the teacher's answers, cached


class AnswerTable:
    """The teacher's answers to the transcripts of a split, for each end of the user's turn and each sample."""

    def __init__(
        self, suffixes: list[list[int]], answers: list[Answer], numbers: dict[str, int], width: int = 0
    ):
        self.suffixes = suffixes
        self.answers = answers  # grouped by transcript: those of its first suffix, of its second, ...
        self.numbers = numbers  # clip id -> index of its distinct transcript
        self.width = width  # all batches are padded to it; 0: each batch is padded to its longest answer

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
        """From the cache, or generated by the LLM. An answer has at most `limit` tokens; with 0 it is empty."""
        suffixes = turn_ends(model, instructions)
        asked = [
            (ids, suffix)
            for ids in transcripts.distinct
            for suffix in suffixes
            for _ in range(settings.samples)
        ]
        if limit == 0:
            return cls(suffixes, [Answer([], False)] * len(asked), transcripts.numbers, width)
        key = digest(
            weights_digest(model.llm),
            model.prefix_ids.tolist(),
            asked,
            limit,
            settings.temperature,
            settings.seed,
        )

        def of_group(number: int, group: Sequence) -> list[Answer]:
            rows = [
                model.embed(torch.tensor([*ids, *suffix], device=model.prefix_ids.device))
                for ids, suffix in group
            ]
            with torch.random.fork_rng():
                torch.manual_seed(settings.seed + number)
                return answer(model, rows, limit, settings.temperature)

        groups = [asked[start : start + _GROUP] for start in range(0, len(asked), _GROUP)]
        answers = make_answers(cache_dir() / "answers" / f"{key}.jsonl", groups, of_group)
        return cls(suffixes, answers, transcripts.numbers, width)

    def __len__(self) -> int:
        """Number of rows: transcripts x suffixes x samples."""
        return len(self.answers)

    @cached_property
    def variants(self) -> int:
        """Rows of a transcript."""
        return len(self.answers) // len(set(self.numbers.values()))

    @cached_property
    def starts(self) -> Tensor:
        """[rows + 1], offset of each row's first position among the positions of all rows."""
        return torch.tensor([0, *(len(answer.ids) + 1 for answer in self.answers)]).cumsum(0)

    @property
    def positions(self) -> int:
        """Number of positions that predict a token of an answer, over all rows."""
        return int(self.starts[-1])

    @property
    def digest(self) -> str:
        """A digest of these answers, for cache keys."""
        return digest(self.suffixes, [tuple(answer) for answer in self.answers])

    def __call__(self, batch: SpeechBatch, step: int = 0) -> Continuation:
        """The continuation of each row of a batch at a step, on the batch's device. Empty rows have no answer.

        The suffix and sample of a clip are drawn from the clip and the step. So they are the same on every rank and
        after a resume.
        """
        rows = []
        for clip_id in batch.clip_ids:
            drawn = zlib.crc32(f"{step} {clip_id}".encode()) % self.variants
            rows.append(self.numbers[clip_id] * self.variants + drawn if clip_id else EMPTY_ROW)
        return self.rows(rows).to(batch.tokens.device)

    def rows(self, rows: list[int]) -> Continuation:
        """The continuation of these rows of the table."""
        samples = self.variants // len(self.suffixes)
        suffixes = [self.suffixes[max(row, 0) % self.variants // samples] for row in rows]
        answers = [Answer([], False) if row == EMPTY_ROW else self.answers[row] for row in rows]
        return Continuation.of(suffixes, answers, rows, self.width)


def turn_ends(model: DivaForConditionalGeneration, instructions: Sequence[str]) -> list[list[int]]:
    """Token ids between the speech and the answer: one list for each instruction, else the template's suffix alone."""
    plain = [model.suffix_ids.tolist()]
    tokenizer, llm = model.processor.tokenizer, model.config.llm
    turns = [
        user_turn(tokenizer, llm.system_prompt, f"\n{text}", llm.template_kwargs) for text in instructions
    ]
    return [turn.suffix_ids for turn in turns] or plain


def make_answers(
    file: Path, groups: Sequence[Sequence[T]], answer_group: Callable[[int, Sequence[T]], list[Answer]]
) -> list[Answer]:
    """The answers in `file`, one line for each group of questions.

    `answer_group(number, questions)` generates the missing groups. Another process that needs the same file waits.
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
    """The complete lines of the file. An incomplete last line, written by a killed process, is removed."""
    if not file.is_file():
        return []
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with file.open("r+b") as cutting:
            cutting.truncate(len(whole))
    return whole.decode().splitlines()
