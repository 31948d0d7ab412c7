"""The losses against loops written from the formula."""

import math

import pytest
import torch

from diva.errors import UserError
from diva.training.losses import Objective, align_distances, distill_distances


def test_distillation_is_the_plain_l2_distance_of_the_last_states():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    expected = [
        math.sqrt(sum((float(student[b, d]) - float(teacher[b, d])) ** 2 for d in range(7))) for b in range(5)
    ]
    assert distill_distances(student, teacher).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_last_n_virtual_tokens_face_the_n_transcript_tokens():
    torch.manual_seed(0)
    B, Q, N, D = 4, 9, 6, 5
    v, targets, tokens = torch.randn(B, Q, D), torch.randn(B, N, D), torch.tensor([6, 1, 0, 3])
    expected = 0.0
    for b in range(B):
        for n in range(int(tokens[b])):
            difference = v[b, Q - int(tokens[b]) + n] - targets[b, n]
            expected += math.sqrt(sum(float(x) ** 2 for x in difference))
    distances, mask = align_distances(v, targets, tokens)
    assert float(distances.sum()) == pytest.approx(expected, abs=1e-4)
    assert mask.sum(dim=1).tolist() == tokens.tolist()
    assert distances[~mask].eq(0).all()


def test_padding_gets_no_gradient_and_a_perfect_match_no_nan():
    v = torch.randn(2, 4, 3, requires_grad=True)
    targets = torch.zeros(2, 4, 3)
    targets[0, 0] = v[0, 3].detach()  # distance 0, where the norm has no derivative
    distances, _ = align_distances(v, targets, torch.tensor([1, 0]))
    distances.sum().backward()
    assert v.grad.isfinite().all()
    assert v.grad[1].eq(0).all()
    assert v.grad[0, :3].eq(0).all()


def test_as_many_transcript_tokens_as_queries():
    v, targets = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    distances, _ = align_distances(v, targets, torch.tensor([4]))
    torch.testing.assert_close(distances[0], (v - targets)[0].norm(dim=-1))


def test_objectives_that_make_no_sense_are_refused():
    for wrong in (
        {"distill_weight": 0.0, "align_weight": 0.0},
        {"align_weight": -1.0},
        {"align_weight": 0.0, "distill_from_step": 5},
    ):
        with pytest.raises(UserError, match="objective"):
            Objective(**wrong)


def test_the_curriculum_distils_from_its_step_on():
    objective = Objective(distill_from_step=3)
    assert [objective.distills_at(step) for step in range(5)] == [False, False, False, True, True]
    assert not Objective(distill_weight=0.0).distills_at(10)
