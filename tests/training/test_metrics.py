"""Validation metrics against loops and hand-computed cases."""

import math

import pytest
import torch

from diva.planning.counting import Tally
from diva.training import metrics


def test_nearest_token_is_nearest_in_l2_not_by_product():
    embeddings = torch.tensor([[1.0, 0.0], [10.0, 0.0], [0.0, 1.0]])
    vectors = torch.tensor([[2.0, 0.0], [0.1, 0.6], [7.0, 1.0]])
    expected = [min(range(3), key=lambda j: float((v - embeddings[j]).norm())) for v in vectors]
    assert metrics.nearest_tokens(vectors, embeddings).tolist() == expected == [0, 2, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nearest_token_in_any_part_of_a_large_vocabulary(dtype):
    torch.manual_seed(0)
    embeddings = torch.randn(20_000, 8).to(dtype)
    wanted = torch.tensor([0, 5, 8191, 8192, 12_345, 16_383, 16_384, 19_999])
    vectors = embeddings[wanted].float() + 0.01 * torch.randn(len(wanted), 8)
    assert metrics.nearest_tokens(vectors, embeddings).tolist() == wanted.tolist()
    assert metrics.nearest_tokens(vectors[:0], embeddings).tolist() == []


def test_nearest_token_needs_no_copy_of_the_embedding_matrix():
    embeddings = torch.zeros(100_000, 64, dtype=torch.bfloat16)
    with Tally(tokens=0) as tally:
        metrics.nearest_tokens(torch.zeros(4, 64), embeddings)
    assert tally.peak < embeddings.nbytes


def test_aligned_tokens_looks_at_the_last_virtual_tokens():
    embeddings = torch.eye(4)
    v = torch.stack([embeddings[[3, 3, 1, 2]], embeddings[[0, 0, 0, 0]]])
    ids = torch.tensor([[1, 2, 0], [1, 0, 0]])
    aligned = metrics.aligned_tokens(v, ids, torch.tensor([2, 1]), embeddings)
    assert aligned.tolist() == [True, True, False]


def test_kl_divergence_by_hand():
    teacher, student = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert metrics.kl_divergence(student, teacher).item() == pytest.approx(expected, abs=1e-6)
    assert metrics.kl_divergence(student, student).item() == pytest.approx(0, abs=1e-6)


def test_next_token_agreement():
    a, b = torch.tensor([[0.0, 2.0], [3.0, 1.0]]), torch.tensor([[0.5, 0.6], [0.0, 1.0]])
    assert metrics.next_token_agreement(a, b).tolist() == [True, False]
