"""How far virtual tokens are from the embeddings of tokens."""

import pytest
import torch
from tiny import noise

from diva.models.generation import HEARING_TOKENS
from diva.models.llm import nearest


def test_nearest_is_the_smallest_distance_to_any_row():
    torch.manual_seed(0)
    vectors, embeddings = torch.randn(7, 5), torch.randn(20_000, 5)
    embeddings[17] = vectors[3]
    distances, ids = nearest(vectors, embeddings)
    for vector, distance, row in zip(vectors, distances, ids, strict=True):
        expected = (vector - embeddings).norm(dim=1)
        assert int(row) == int(expected.argmin())
        assert float(distance) == pytest.approx(float(expected.min()), abs=1e-3)
    assert int(ids[3]) == 17


def test_the_distance_of_a_clip_is_that_of_its_last_tokens(tiny_model):
    clips = [noise(0.8, 1), noise(1.4, 2)]
    batch = tiny_model.processor.spoken_turns(clips, [None, None])
    v = tiny_model.virtual_tokens(batch["audio"], batch["audio_samples"])
    table = tiny_model.llm.get_input_embeddings().weight
    for clip, tokens, found in zip(clips, v, tiny_model.hearing_distances(v), strict=True):
        last = tokens[-HEARING_TOKENS:]
        expected = sum(float((token - table).norm(dim=1).min()) for token in last) / len(last)
        assert float(found) == pytest.approx(expected, rel=1e-4)
        assert tiny_model.hearing_distance(clip) == pytest.approx(expected, rel=1e-3)
    v[:, -HEARING_TOKENS:] = table[5]
    assert tiny_model.hearing_distances(v).tolist() == pytest.approx([0, 0], abs=1e-3)


def test_the_distance_of_a_long_clip_is_its_worst_windows(tiny_model):
    long = noise(40, 3)
    batch = tiny_model.processor.spoken_turns([long], [None])
    distances = tiny_model.hearing_distances(
        tiny_model.virtual_tokens(batch["audio"], batch["audio_samples"])
    )
    assert len(distances) == 2
    assert tiny_model.hearing_distance(long) == pytest.approx(float(distances.max()), rel=1e-4)
