"""The step: what one micro-batch goes through, in training and in validation. Everything that trains, counts or
times a step calls these two functions.

Both tell `on_stage` the name of each stage when it has ended: "encoder", "adapter", "alignment", "student", "teacher",
in validation "logits" too, and in training "student, backward" once the gradient has come back to the virtual tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diva.data.batch import SpeechBatch
from diva.models.llm import Embeddings
from diva.models.modeling import DivaForConditionalGeneration
from diva.training import metrics
from diva.training.frozen import FrozenParts
from diva.training.losses import align_distances, distill_distances, last_virtual_tokens

OnStage = Callable[[str], None]
MEASURES = ("alignment_accuracy", "first_token_agreement", "kl")


def no_stage(name: str) -> None:
    """For those who want to know of no stage."""


@dataclass(frozen=True)
class LossSums:
    """Sums over a micro-batch in float32: the denominators are those of the global batch."""

    distill: Tensor  # scalar, of the distances of last hidden states, over clips
    align: Tensor  # scalar, of the distances of virtual tokens to token embeddings, over transcript tokens


def loss_sums(
    model: DivaForConditionalGeneration,
    frozen: FrozenParts,
    batch: SpeechBatch,
    *,
    aligns: bool,
    distills: bool,
    on_stage: OnStage = no_stage,
) -> LossSums:
    """L_distill and L_align of a micro-batch before their division (see `diva.training.losses`); 0 where not asked."""
    v = _virtual_tokens(model, frozen, batch, on_stage)
    if v.requires_grad and on_stage is not no_stage:
        v.register_hook(lambda gradient: on_stage("student, backward"))
    distill = align = v.new_zeros((), dtype=torch.float32)
    if aligns:
        align = align_distances(v, model.embed(batch.token_ids), batch.tokens)[0].sum()
        on_stage("alignment")
    if distills:
        student, teacher = _states(model, frozen, batch, v, on_stage)
        distill = distill_distances(student, teacher).masked_fill(~batch.valid, 0.0).sum()
    return LossSums(distill, align)


@torch.no_grad()
def measure_sums(
    model: DivaForConditionalGeneration,
    frozen: FrozenParts,
    batch: SpeechBatch,
    *,
    static_shapes: bool = False,
    on_stage: OnStage = no_stage,
) -> dict[str, Tensor]:
    """For each of MEASURES its sum over a batch and over how many clips or tokens that is, [2] in float32.

    With `static_shapes` no shape depends on the data: on XLA each would be compiled anew.
    """
    v = _virtual_tokens(model, frozen, batch, on_stage)
    aligned = _aligned_tokens(model, v, batch, static_shapes)
    on_stage("alignment")
    states = _states(model, frozen, batch, v, on_stage)
    student, teacher = map(model.logits, states)
    values = (
        aligned,
        (metrics.first_token_agreement(student, teacher), batch.valid),
        (metrics.kl_divergence(student, teacher), batch.valid),
    )
    # Masked, not chosen, for the same reason.
    sums = [
        torch.stack([value.float().masked_fill(~valid, 0.0).sum(), valid.float().sum()])
        for value, valid in values
    ]
    on_stage("logits")
    return dict(zip(MEASURES, sums, strict=True))


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
    model: DivaForConditionalGeneration, frozen: FrozenParts, batch: SpeechBatch, v: Tensor, on_stage: OnStage
) -> tuple[Tensor, Tensor]:
    """h_student and h_teacher [B, D]."""
    student = model.student_states(v, batch.samples, batch.padded_samples)
    on_stage("student")
    teacher = frozen.teacher_states(batch)
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
