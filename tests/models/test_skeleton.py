"""Architectures without weights."""

import json

import pytest
import torch
from transformers import AutoModel

from diva.config import make
from diva.errors import UserError
from diva.models.llm import llm_from_config
from diva.models.parts import load_tokenizer
from diva.models.pretrained import WHEELS, resolve
from diva.models.prompts import user_turn
from diva.models.skeleton import SHIPPED, StandInTokenizer, _model_config, architecture
from diva.plan import compose


@pytest.mark.parametrize("name", sorted(file.stem.replace("--", "/") for file in SHIPPED.glob("*.json")))
def test_shipped_architectures_are_numbers_with_a_source(name):
    shipped = json.loads((SHIPPED / f"{name.replace('/', '--')}.json").read_text())
    assert name in shipped["source"]
    parts = [part for part in shipped["config"].values() if isinstance(part, dict)]
    values = [value for part in (shipped["config"], *parts) for value in part.values() if value not in parts]
    assert all(isinstance(value, int | float | str | None) for value in values)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("HuggingFaceTB/SmolLM3-3B", 3_075_098_624),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
        ("google/gemma-3-4b-it", 4_300_079_472),
    ],
)
def test_shipped_llms_have_as_many_parameters_as_the_hub_says(name, parameters):
    with torch.device("meta"):
        llm = llm_from_config(_model_config(name), attn_implementation="sdpa")
    assert sum(parameter.numel() for parameter in llm.parameters()) == parameters


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("tiny", 37_760_640),
        ("base", 72_593_920),
        ("small", 241_734_912),
        ("medium", 763_857_920),
        ("large-v3", 1_543_490_560),
        ("large-v3-turbo", 808_878_080),
    ],
)
def test_shipped_whispers_have_as_many_parameters_as_the_hub_says(size, parameters):
    with torch.device("meta"):
        whisper = AutoModel.from_config(_model_config(f"openai/whisper-{size}"))
    assert sum(parameter.numel() for parameter in whisper.parameters()) == parameters


@pytest.mark.parametrize("name", sorted(WHEELS))
def test_shipped_architectures_are_those_of_the_real_models(name):
    real = json.loads((resolve(name) / "config.json").read_text())
    shipped = json.loads((SHIPPED / f"{name.replace('/', '--')}.json").read_text())
    real |= real.get("rope_parameters", {})
    assert {key: real[key] for key in shipped["config"]} == shipped["config"]
    if "prompt_tokens" in shipped:
        prompt = user_turn(load_tokenizer(name))
        assert shipped["prompt_tokens"] == [len(prompt.prefix_ids), len(prompt.suffix_ids)]


def test_a_stand_in_has_as_many_tokens_as_it_was_told():
    prompt = user_turn(StandInTokenizer(24, 6))
    assert (len(prompt.prefix_ids), len(prompt.suffix_ids)) == (24, 6)
    prompt = user_turn(StandInTokenizer(24, 6), "x" * 40)
    assert (len(prompt.prefix_ids), len(prompt.suffix_ids)) == (34, 6)


def test_an_unknown_model_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = make(compose(["model.llm.name=nobody/nothing"]).model)
    with pytest.raises(UserError, match="architecture of 'nobody/nothing' is not known"):
        architecture(config)
