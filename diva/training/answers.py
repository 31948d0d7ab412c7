"""The LLM's answers, which student and teacher both read after the user's turn.

They are the teacher's answers (generated once and cached) or the student's own (`diva.training.on_policy`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diva.errors import UserError
from diva.models.modeling import DivaForConditionalGeneration


class Answer(NamedTuple):
    """The first tokens of an answer, without the token that ends it."""

    ids: list[int]
    ended: bool  # True: the answer ends after them; False: it was cut there


@dataclass(frozen=True)
class AnswerSettings:
    """How the teacher answers: greedily at temperature 0, otherwise with `samples` sampled answers to each transcript.

    Validation compares the first `val_tokens` tokens of greedy answers. With `val_tokens=0` it compares only the first
    token. With `endpoint` a server answers that has the same LLM, under the name `model`
    (`diva.training.answer_server`).
    """

    temperature: float = 0.0
    samples: int = 1
    seed: int = 0
    val_tokens: int = 0
    endpoint: str | None = None
    model: str | None = None
    concurrency: int = 32

    def __post_init__(self):
        if (self.endpoint is None) != (self.model is None):
            raise UserError(
                "answers.endpoint and answers.model go together: the server's address, the LLM's name there"
            )
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
    return [cut(ids, model.end_tokens) for ids in said[:, mask.shape[1] :].tolist()]


def cut(ids: Sequence[int], ends: set[int]) -> Answer:
    """The generated ids before the first end token."""
    for number, token in enumerate(ids):
        if token in ends:
            return Answer(list(ids[:number]), True)
    return Answer(list(ids), False)
