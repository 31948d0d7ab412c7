"""Architectures without weights."""

import json

import pytest

from diva.config import make
from diva.errors import UserError
from diva.models.parts import load_tokenizer
from diva.models.pretrained import WHEELS, resolve
from diva.models.prompts import user_turn
from diva.models.skeleton import SHIPPED, StandInTokenizer, architecture
from diva.plan import compose


@pytest.mark.parametrize("name", sorted(file.stem.replace("--", "/") for file in SHIPPED.glob("*.json")))
def test_shipped_architectures_are_numbers_with_a_source(name):
    shipped = json.loads((SHIPPED / f"{name.replace('/', '--')}.json").read_text())
    assert name in shipped["source"]
    assert all(isinstance(value, int | float | str) for value in shipped["config"].values())


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
