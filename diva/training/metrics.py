"""The metrics of validation as pure functions. Each returns one value per sample."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diva.models.llm import Embeddings, nearest
from diva.training.losses import last_virtual_tokens

# Positions whose logits are in memory at a time.
_POSITIONS = 256


def aligned_tokens(
    virtual_tokens: Tensor, token_ids: Tensor, tokens: Tensor, embeddings: Tensor | Embeddings
) -> Tensor:
    """Whether the embedding nearest to a virtual token is that of its transcript token.

    Takes virtual tokens [B, Q, D], token ids [B, N] of which `tokens` [B] are valid, and the embedding matrix [V, D].
    Returns booleans, one per valid token of the batch.
    """
    last, mask = last_virtual_tokens(virtual_tokens, token_ids.shape[1], tokens)
    return nearest_tokens(last[mask], embeddings) == token_ids[mask]


def nearest_tokens(vectors: Tensor, embeddings: Tensor | Embeddings) -> Tensor:
    """Vectors [n, D] -> ids [n] of the nearest rows of the embedding matrix [V, D] in L2."""
    return nearest(vectors, embeddings)[1]


def next_token_measures(
    student: Tensor, teacher: Tensor, head: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Student and teacher states [..., D] -> agreement of the most likely next token, and KL(teacher || student).

    Both results are [...]. `head` computes logits [n, V] from states [n, D].
    """
    agreement, kl = [], []
    for ours, theirs in zip(
        student.flatten(0, -2).split(_POSITIONS), teacher.flatten(0, -2).split(_POSITIONS), strict=True
    ):
        logits = head(ours), head(theirs)
        agreement.append(next_token_agreement(*logits))
        kl.append(kl_divergence(*logits))
    shape = student.shape[:-1]
    return torch.cat(agreement).view(shape), torch.cat(kl).view(shape)


def next_token_agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Student and teacher logits [B, V] -> booleans [B]: both have the same most likely next token."""
    return student_logits.argmax(dim=-1) == teacher_logits.argmax(dim=-1)


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Student and teacher logits [B, V] -> KL(teacher || student) [B] of the next-token distributions, in nats."""
    student, teacher = (F.log_softmax(x.float(), dim=-1) for x in (student_logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
