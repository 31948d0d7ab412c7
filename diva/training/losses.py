"""The losses of DiVA (section 3.2) as pure functions, and their weights.

    L_distill = mean_b   || h_student(b) - h_teacher(b) ||_2
    L_align   = sum_{b,n} || v_b[Q - N_b + n] - Embed(t_b[n]) ||_2  /  sum_b N_b

Neither norm is squared. h is the hidden state after the LLM's final norm at the last input position, so that,
with a frozen lm_head, matching h matches the next-token distribution without touching [B, V] logits.

Two facts about the published training code (Levanter) in which this one follows the paper instead:
up to November 2024 its alignment target was gathered from the prefixed sequence and so shifted by the prefix's
length (mended by its commit "Fix Token Shuffling"); and its transcripts carry BOS and EOS inside the user turn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diva.errors import UserError


def distill_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Student and teacher states [B, D] -> their L2 distances [B], in float32."""
    return torch.linalg.vector_norm(student.float() - teacher.float(), dim=-1)


def align_distances(virtual_tokens: Tensor, targets: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of the last N_b virtual tokens to the embeddings of the N_b transcript tokens.

    Virtual tokens [B, Q, D], target embeddings [B, N, D] of which `tokens` [B] are valid in each row, N <= Q.
    Returns distances [B, N] in float32, 0 where padded, and the mask [B, N] of valid ones.
    """
    last, mask = last_virtual_tokens(virtual_tokens, targets.shape[1], tokens)
    distances = torch.linalg.vector_norm(last.float() - targets.float(), dim=-1)
    return distances.masked_fill(~mask, 0.0), mask


def last_virtual_tokens(virtual_tokens: Tensor, width: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """v [B, Q, D] -> the last N_b of each row moved to the front, [B, width, D], and the mask of valid ones."""
    number = torch.arange(width, device=tokens.device)
    mask = number < tokens.unsqueeze(1)
    queries = virtual_tokens.shape[1]
    index = (queries - tokens.unsqueeze(1) + number).clamp(max=queries - 1)
    return virtual_tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, virtual_tokens.shape[2])), mask


@dataclass(frozen=True)
class Objective:
    """Weights of the two losses, and from which optimizer step on the first is used.

    Before `distill_from_step` nothing passes through the LLM.
    """

    distill_weight: float = 1.0
    align_weight: float = 1.0
    distill_from_step: int = 0

    def __post_init__(self):
        if self.distill_weight < 0 or self.align_weight < 0 or self.distill_weight + self.align_weight == 0:
            raise UserError(
                f"objective.distill_weight={self.distill_weight} and objective.align_weight={self.align_weight}"
                " leave nothing to learn; both must be >= 0 and one of them > 0"
            )
        if self.distill_from_step > 0 and self.align_weight == 0:
            raise UserError(
                f"objective.distill_from_step={self.distill_from_step} needs objective.align_weight > 0:"
                " nothing would be learned before that step"
            )

    def distills_at(self, step: int) -> bool:
        return self.distill_weight > 0 and step >= self.distill_from_step

    def distilled_steps(self, max_steps: int) -> int:
        """How many of a run's steps distil."""
        return max(0, max_steps - self.distill_from_step) if self.distill_weight > 0 else 0
