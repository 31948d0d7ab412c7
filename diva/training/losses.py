"""The losses of DiVA (section 3.2) as pure functions, and their weights.

    L_distill = mean_{b,k} d( student(b, k), teacher(b, k) )         k = 0..n_b, the positions of the teacher's answer
    L_align   = sum_{b,n} || v_b[Q - N_b + n] - Embed(t_b[n]) ||_2  /  sum_b N_b

The paper's L_distill has one position per clip: k = 0, the last position of the input, which predicts the first token
of the answer. Its distance is d = || h_student - h_teacher ||_2. Neither norm is squared.
h is the hidden state after the LLM's final norm. lm_head is frozen, so matching h matches the next-token distribution
without computing [B, V] logits.
With `answer_tokens=K` both also read the first n_b <= K tokens of the teacher's answer.
d may also be a divergence of the next-token distributions.

The published training code (Levanter) differs from the paper in two points. This code follows the paper:
1. Up to November 2024 its alignment target was gathered from the prefixed sequence, so it was shifted by the length of
   the prefix. Its commit "Fix Token Shuffling" corrected this.
2. Its transcripts have BOS and EOS inside the user turn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from random import Random
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diva.errors import UserError

Distance = Literal["l2", "kl", "reverse_kl", "jsd"]
Head = Callable[[Tensor], Tensor]  # states [..., D] -> logits [..., V]
# Positions whose logits are in memory at a time: 130 MB for a vocabulary of 128,000, for student and teacher each.
_ROWS = 256


def distill_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Student and teacher states [..., D] -> their L2 distances [...], in float32."""
    return torch.linalg.vector_norm(student.float() - teacher.float(), dim=-1)


def divergences(
    student: Tensor, teacher: Tensor, head: Head, kind: Distance, temperature: float = 1.0
) -> Tensor:
    """Student and teacher states [..., D] -> divergences [...] of their next-token distributions, in nats.

    `head` computes the logits. p is the teacher's and q the student's distribution at `temperature`.
    "kl" is KL(p || q). "reverse_kl" is KL(q || p). "jsd" is Jensen-Shannon: (KL(p || m) + KL(q || m)) / 2 with
    m = (p + q) / 2.
    The result is multiplied by the square of the temperature, so the size of the gradients does not depend on it
    (Hinton et al., arXiv 1503.02531, section 2). Only `student` gets gradients.
    Logits exist for a few positions at a time, and in the forward pass only.
    """
    between = _DIVERGENCES[kind]

    def of_states(student: Tensor, teacher: Tensor) -> Tensor:
        p, q = (F.log_softmax(head(states).float() / temperature, dim=-1) for states in (teacher, student))
        return between(p, q) * temperature**2

    return _InSlices.apply(student.flatten(0, -2), teacher.flatten(0, -2), of_states).view(student.shape[:-1])


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)


def _jsd(p: Tensor, q: Tensor) -> Tensor:
    m = torch.logaddexp(p, q) - log(2)
    return (_kl(p, m) + _kl(q, m)) / 2


# Functions of the log-probabilities [..., V] of the teacher, p, and of the student, q.
_DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": _kl,
    "reverse_kl": lambda p, q: _kl(q, p),
    "jsd": _jsd,
}


class _InSlices(torch.autograd.Function):
    """A distance of logits, computed for a few positions at a time.

    The distance at a position depends on its own state only. So the forward pass also computes the gradient, and the
    backward pass needs no logits.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, distance: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        values, gradients = [], []
        for some, theirs in zip(student.split(_ROWS), teacher.split(_ROWS), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                own = some.detach().requires_grad_(ctx.needs_input_grad[0])
                value = distance(own, theirs)
                if ctx.needs_input_grad[0]:
                    gradients.append(torch.autograd.grad(value.sum(), own)[0])
            values.append(value.detach())
        ctx.save_for_backward(*gradients)
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *of_values: Tensor) -> tuple[Tensor, None, None]:
        gradient = torch.cat(ctx.saved_tensors)
        return gradient * of_values[0].unsqueeze(-1).to(gradient.dtype), None, None


def align_distances(virtual_tokens: Tensor, targets: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """L2 distances of the last N_b virtual tokens to the embeddings of the N_b transcript tokens.

    Takes virtual tokens [B, Q, D] and target embeddings [B, N, D], N <= Q. The first `tokens` [B] of each row are
    valid. Returns distances [B, N] in float32, 0 in padding, and the mask [B, N] of valid tokens.
    """
    last, mask = last_virtual_tokens(virtual_tokens, targets.shape[1], tokens)
    distances = torch.linalg.vector_norm(last.float() - targets.float(), dim=-1)
    return distances.masked_fill(~mask, 0.0), mask


def last_virtual_tokens(virtual_tokens: Tensor, width: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """v [B, Q, D] -> the last N_b of each row moved to the front, [B, width, D], and their mask [B, width]."""
    number = torch.arange(width, device=tokens.device)
    mask = number < tokens.unsqueeze(1)
    queries = virtual_tokens.shape[1]
    index = (queries - tokens.unsqueeze(1) + number).clamp(max=queries - 1)
    return virtual_tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, virtual_tokens.shape[2])), mask


@dataclass(frozen=True)
class Objective:
    """Which losses a step has, and their weights.

    Before `distill_from_step` the LLM is not run. `distance` compares student and teacher.
    `answer_tokens=0` is the paper's objective. `answer_tokens=K` also compares them after each of the first K tokens
    of the teacher's answer. If the answer ends within these, the position that predicts its end has the weight
    `end_weight`.
    In a fraction `on_policy` of the distilled steps both read the student's own answer, not the teacher's.
    """

    distill_weight: float = 1.0
    align_weight: float = 1.0
    distill_from_step: int = 0
    answer_tokens: int = 0
    distance: Distance = "l2"
    temperature: float = 1.0  # of the distributions that a divergence compares; L2 does not use it
    end_weight: float = 1.0
    on_policy: float = 0.0
    # One of these is drawn for each clip and step, and follows the speech; such as "Reply briefly".
    instructions: tuple[str, ...] = ()

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
        if self.distance != "l2" and self.distance not in _DIVERGENCES:
            raise UserError(
                f"objective.distance={self.distance} is unknown; there are: l2, {', '.join(_DIVERGENCES)}"
            )
        if self.answer_tokens == 0 and (self.on_policy > 0 or self.end_weight != 1.0):
            raise UserError(
                "objective.on_policy and objective.end_weight are about answers: set objective.answer_tokens above 0"
            )

    @property
    def aligns(self) -> bool:
        return self.align_weight > 0

    def distills_at(self, step: int) -> bool:
        return self.distill_weight > 0 and step >= self.distill_from_step

    def distilled_steps(self, max_steps: int) -> int:
        """How many of a run's steps distil."""
        return max(0, max_steps - self.distill_from_step) if self.distill_weight > 0 else 0

    def is_on_policy(self, step: int) -> bool:
        """Whether the student answers at this step. The same on every rank and after a resume."""
        return self.on_policy > 0 and Random(step).random() < self.on_policy

    def distances(self, student: Tensor, teacher: Tensor, head: Head) -> Tensor:
        """States [..., D] twice -> their distances [...] in float32."""
        if self.distance == "l2":
            return distill_distances(student, teacher)
        return divergences(student, teacher, head, self.distance, self.temperature)
