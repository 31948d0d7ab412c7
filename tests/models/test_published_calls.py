"""The call forms of the published model class, on ours."""

import pytest
import torch
from tiny import noise

from diva.models.load import load_model

CLIP = noise(1.3, 3)


@pytest.fixture(scope="module")
def model(export):
    model = load_model(str(export))
    model.generation_config.eos_token_id = None  # it never ends an answer by itself
    return model


def test_every_form_of_a_published_call_gives_the_same_text(model):
    expected = model.generate([CLIP], ["stop"], max_new_tokens=6)
    assert len(expected) == 1
    assert model.generate(audio=[CLIP], text_prompt=["stop"], max_new_tokens=6) == expected
    assert model.generate(CLIP, ["stop"], max_new_tokens=6) == expected
    assert model.generate(audio=CLIP, text_prompt="stop", max_new_tokens=6) == expected
    assert model.generate(torch.from_numpy(CLIP), "stop", max_new_tokens=6) == expected
    assert model.generate([CLIP], ["stop"], False, None, 6) == expected


def test_a_logits_processor_may_stand_alone(model):
    only = torch.zeros(1)

    def end(ids, logits):
        only.add_(1)
        return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([5]), 0.0)

    text = model.generate([CLIP], ["stop"], False, end, 3)
    assert text == [model.processor.tokenizer.decode([5] * 3)]
    assert int(only) == 3


def test_token_ids_are_still_token_ids(model):
    batch = model.processor.spoken_turns([CLIP], ["stop"])
    ids = model.generate(**batch, do_sample=False, max_new_tokens=6)[:, batch["input_ids"].shape[1] :]
    assert ids.shape == (1, 6)
    assert model.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=2).shape == (1, 5)


def test_a_stream_has_the_defaults_of_generate(model, monkeypatch):
    model.generation_config.do_sample = True
    try:
        streamed = "".join(model.generate_stream(CLIP, "stop"))
        assert streamed == model.generate([CLIP], ["stop"])[0]
    finally:
        model.generation_config.do_sample = False
    asked = []
    monkeypatch.setattr(model, "stream", lambda batch, **kwargs: asked.append(kwargs) or iter(()))
    list(model.generate_stream(CLIP))
    list(model.generate_stream(CLIP, max_new_tokens=3))
    assert asked == [{"do_sample": False, "max_new_tokens": length} for length in (128, 3)]
