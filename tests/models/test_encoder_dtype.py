"""The encoder in another precision than the LLM: the published code computes it in float32."""

import pytest
import torch
from omegaconf import OmegaConf
from tiny import noise

from diva import DivaForConditionalGeneration
from diva.audio.frames import pad_clips
from diva.errors import UserError
from diva.models.configuration import DivaConfig, EncoderConfig
from diva.models.load import load_model
from diva.models.parts import random_parts
from diva.training.model_card import _frozen_precision

CLIP = noise(1.0, 0)


@pytest.fixture(scope="module")
def folder(export, tmp_path_factory):
    """An export whose config has the LLM in bfloat16 and the encoder in float32."""
    model = DivaForConditionalGeneration.from_pretrained(export, dtype="bfloat16", encoder_dtype="float32")
    folder = tmp_path_factory.mktemp("precise")
    model.save_pretrained(folder)
    return folder


def precisions(model) -> list[torch.dtype]:
    return [next(part.parameters()).dtype for part in (model.encoder, model.llm)]


@torch.no_grad()
def test_its_frames_are_those_of_a_model_in_float32_to_the_bit(folder, export):
    model = DivaForConditionalGeneration.from_pretrained(folder)
    assert precisions(model) == [torch.float32, torch.bfloat16]
    exact, coarse = (
        DivaForConditionalGeneration.from_pretrained(export, dtype=d) for d in ("float32", "bfloat16")
    )
    frames, wanted, rounded = (of.encoder(*pad_clips([CLIP]))[0] for of in (model, exact, coarse))
    assert torch.equal(frames, wanted)
    assert not torch.equal(frames, rounded.float())
    assert model.generate([CLIP], max_new_tokens=3)[0] is not None


def test_a_precision_for_all_parts_replaces_the_configs(folder):
    model = DivaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    assert precisions(model) == [torch.float32, torch.float32]
    assert precisions(load_model(str(folder), "bfloat16")) == [torch.bfloat16, torch.bfloat16]
    assert precisions(load_model(str(folder), "float32", encoder_dtype="bfloat16")) == [
        torch.bfloat16,
        torch.float32,
    ]
    assert precisions(DivaForConditionalGeneration.from_pretrained(folder, dtype="auto"))[0] == torch.float32


def test_the_plan_counts_the_encoder_in_its_own_precision(folder):
    config = DivaConfig.from_pretrained(folder, dtype=None)
    assert random_parts(config).encoder.dtype == config.encoder_dtype == torch.float32


def test_an_unknown_precision_is_one_line(export):
    with pytest.raises(
        UserError, match=r"model\.encoder\.dtype=fp8 is unknown; it is one of: None, bfloat16"
    ):
        EncoderConfig("x", dtype="fp8")
    with pytest.raises(UserError, match="--encoder-dtype fp8 is unknown"):
        load_model(str(export), encoder_dtype="fp8")


def test_the_model_card_says_the_precision_of_the_encoder():
    model = OmegaConf.create({"frozen_dtype": "bfloat16", "encoder": {"name": "x"}})
    assert _frozen_precision(model) == "frozen parts in bfloat16"
    model.encoder.dtype = "float32"
    assert _frozen_precision(model) == "frozen parts in bfloat16, the encoder in float32"
