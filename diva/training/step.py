"""The step: what one micro-batch goes through, in training and in validation. Everything that trains, counts or
times a step calls these two functions.

Both tell `on_stage` the name of each stage when it has ended: "encoder", "adapter", "alignment", "student", "teacher",
then in validation "logits", in training "distance", and "student, backward" once the gradient has come back to the
virtual tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diva.data.batch import SpeechBatch
from diva.models.llm import Embeddings
from diva.models.modeling import DivaForConditionalGeneration
from diva.training import metrics
from diva.training.answers import Continuation
from diva.training.frozen import FrozenParts
from diva.training.losses import Objective, align_distances, last_virtual_tokens
from diva.training.measures import ANSWER_MEASURES, MEASURES

OnStage = Callable[[str], None]


def no_stage(name: str) -> None:
    """For those who want to know of no stage."""


@dataclass(frozen=True)
class LossSums:
    """Sums over a micro-batch in float32: the denominators are those of the global batch."""

    distill: Tensor  # scalar, of the distances of student and teacher, over the positions that count
    align: Tensor  # scalar, of the distances of virtual tokens to token embeddings, over transcript tokens


def loss_sums(
    model: DivaForConditionalGeneration,
    frozen: FrozenParts,
    batch: SpeechBatch,
    objective: Objective,
    *,
    distills: bool,
    after: Continuation | None = None,
    on_stage: OnStage = no_stage,
) -> LossSums:
    """L_distill and L_align of a micro-batch before their division (see `diva.training.losses`); 0 where not asked.

    `after` is what its rows go on with; None: the suffix of the prompt, as in the paper.
    """
    v = _virtual_tokens(model, frozen, batch, on_stage)
    if v.requires_grad and on_stage is not no_stage:
        v.register_hook(lambda gradient: on_stage("student, backward"))
    distill = align = v.new_zeros((), dtype=torch.float32)
    if objective.aligns:
        align = align_distances(v, model.embed(batch.token_ids), batch.tokens)[0].sum()
        on_stage("alignment")
    if distills:
        student, teacher = _states(model, frozen, batch, v, after, on_stage)
        distances = objective.distances(student, teacher, model.logits)
        weights = position_weights(batch, after, objective)
        distill = (distances.masked_fill(weights == 0, 0.0) * weights).sum()
        on_stage("distance")
    return LossSums(distill, align)


def position_weights(batch: SpeechBatch, after: Continuation | None, objective: Objective) -> Tensor:
    """How much each position of a batch counts in L_distill, [B] or [B, P]; their sum is its denominator."""
    return batch.valid.float() if after is None else after.weights(batch.valid, objective.end_weight)


@torch.no_grad()
def measure_sums(
    model: DivaForConditionalGeneration,
    frozen: FrozenParts,
    batch: SpeechBatch,
    *,
    after: Continuation | None = None,
    static_shapes: bool = False,
    on_stage: OnStage = no_stage,
) -> dict[str, Tensor]:
    """For each of MEASURES its sum over a batch and over how many clips or tokens that is, [2] in float32.

    With `after`, what its rows go on with, for each of ANSWER_MEASURES too. With `static_shapes` no shape depends on
    the data: on XLA each would be compiled anew.
    """
    v = _virtual_tokens(model, frozen, batch, on_stage)
    aligned = _aligned_tokens(model, v, batch, static_shapes)
    on_stage("alignment")
    states = _states(model, frozen, batch, v, after, on_stage)
    agreement, kl = metrics.next_token_measures(*states, model.logits)
    values = {MEASURES[0]: aligned}
    if after is None:
        values |= {MEASURES[1]: (agreement, batch.valid), MEASURES[2]: (kl, batch.valid)}
    else:
        valid = after.weights(batch.valid) > 0
        values |= {MEASURES[1]: (agreement[:, 0], batch.valid), MEASURES[2]: (kl[:, 0], batch.valid)}
        values |= {ANSWER_MEASURES[0]: (agreement, valid), ANSWER_MEASURES[1]: (kl, valid)}
    # Masked, not chosen, for the same reason.
    sums = {
        name: torch.stack([value.float().masked_fill(~valid, 0.0).sum(), valid.float().sum()])
        for name, (value, valid) in values.items()
    }
    on_stage("logits")
    return sums


def _virtual_tokens(
    model: DivaForConditionalGeneration, frozen: FrozenParts, batch: SpeechBatch, on_stage: OnStage
) -> Tensor:
    """v [B, Q, D] of a batch."""
    frames, mask = frozen.frames(batch)
    on_stage("encoder")
    v = model.adapt(frames, mask)
    on_stage("adapter")
    return v


def _states(
    model: DivaForConditionalGeneration,
    frozen: FrozenParts,
    batch: SpeechBatch,
    v: Tensor,
    after: Continuation | None,
    on_stage: OnStage,
) -> tuple[Tensor, Tensor]:
    """h_student and h_teacher [B, D], or [B, P, D] where the rows go on."""
    where = (None, None) if after is None else (after.ids, after.at)
    student = model.student_states(v, batch.samples, batch.padded_samples, *where)
    on_stage("student")
    teacher = frozen.teacher_states(batch, after)
    on_stage("teacher")
    return student, teacher


def _aligned_tokens(
    model: DivaForConditionalGeneration, v: Tensor, batch: SpeechBatch, static_shapes: bool
) -> tuple[Tensor, Tensor]:
    """Whether each transcript token is the nearest to the virtual token that faces it, and which are valid."""
    embeddings = Embeddings(model.llm)
    if not static_shapes:
        found = metrics.aligned_tokens(v, batch.token_ids, batch.tokens, embeddings)
        return found, torch.ones_like(found)
    last, valid = last_virtual_tokens(v, batch.token_ids.shape[1], batch.tokens)
    nearest = metrics.nearest_tokens(last.flatten(0, 1), embeddings)
    return nearest.view_as(valid) == batch.token_ids, valid
