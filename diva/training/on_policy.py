"""What the student answers to what it hears: what it is corrected on, and how far it says what the teacher says."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diva.data.batch import SpeechBatch
from diva.models.modeling import DivaForConditionalGeneration
from diva.training.answers import Answer, Continuation, answer
from diva.training.frozen import FrozenParts
from diva.training.measures import SHARED_MEASURES


@torch.no_grad()
def student_answers(
    model: DivaForConditionalGeneration,
    frozen: FrozenParts,
    batch: SpeechBatch,
    suffixes: Sequence[Sequence[int]],
    limit: int,
) -> list[Answer]:
    """The student's greedy answers, of up to `limit` tokens, to each clip and the end of the turn behind it.

    Empty rows have none.
    """
    v = model.adapt(*frozen.frames(batch))
    read, valid = model.config.adapter.tokens_read(batch.samples).tolist(), batch.valid.tolist()
    rows = []
    for number in [n for n, there in enumerate(valid) if there]:
        after = model.embed(torch.tensor(suffixes[number], device=v.device))
        rows.append(torch.cat([v[number, v.shape[1] - read[number] :].to(after.dtype), after]))
    said = iter(answer(model, rows, limit)) if rows else iter(())
    return [next(said) if there else Answer([], False) for there in valid]


def student_continuation(
    model: DivaForConditionalGeneration,
    frozen: FrozenParts,
    batch: SpeechBatch,
    suffixes: list[list[int]],
    limit: int,
) -> Continuation:
    """What each row goes on with when the student answers."""
    answers = student_answers(model, frozen, batch, suffixes, limit)
    return Continuation.of(suffixes, answers).to(batch.tokens.device)


def shared_sums(
    model: DivaForConditionalGeneration,
    frozen: FrozenParts,
    batch: SpeechBatch,
    after: Continuation,
    limit: int,
) -> dict[str, Tensor]:
    """For each of SHARED_MEASURES its sum over a batch and over how many clips that is, [2] in float32.

    `after` holds the teacher's answers of up to `limit` tokens. Answers that end together have `limit` in common.
    """
    assert after.rows is not None
    assert frozen.answers is not None
    ours = student_answers(model, frozen, batch, after.suffixes, limit)
    theirs = [frozen.answers.answers[row] for row in after.rows]
    pairs = [pair for *pair, there in zip(ours, theirs, batch.valid.tolist(), strict=True) if there]
    shared = torch.tensor([float(shared_tokens(a, b, limit)) for a, b in pairs])
    count = float(len(pairs))
    sums = (float(shared.sum()), float((shared == limit).sum()))
    return {
        name: torch.tensor([value, count], device=batch.tokens.device)
        for name, value in zip(SHARED_MEASURES, sums, strict=True)
    }


def shared_tokens(one: Answer, other: Answer, limit: int) -> int:
    """How many of the first `limit` tokens two answers have in common; the end counts as all that would follow."""
    for number, (a, b) in enumerate(zip(one.ids, other.ids, strict=False)):
        if a != b:
            return number
    return limit if len(one.ids) == len(other.ids) else min(len(one.ids), len(other.ids))
