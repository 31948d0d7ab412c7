"""Published checkpoints in a cache of the hub."""

import json
import shutil

import pytest
import torch
from hub_cache import put, shard, write_config
from huggingface_hub import constants
from released_layouts import LLAMA, QWEN, REFERENCES, SMALL, WHISPER, answers, frozen_parts
from tiny import make_tokenizer, make_whisper
from transformers import Qwen2Config, Qwen2ForCausalLM

from diva import DivaForConditionalGeneration
from diva.models.build import build
from diva.models.configuration import DivaConfig
from diva.models.load import load_model
from diva.models.parts import load_tokenizer


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_whisper, tiny_llm):
    """A cache of the hub that holds the paper's frozen parts, and no network behind it."""
    hub = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    put(hub, WHISPER, tiny_whisper)
    put(hub, LLAMA, tiny_llm)
    return hub


@pytest.fixture
def authors(tmp_path, export, tiny_llm):
    """The files of the first release: one file of weights, and the tokenizer's beside them."""
    folder = tmp_path / "v0-8b"
    DivaForConditionalGeneration.from_pretrained(export).save_pretrained(folder, layout="released")
    write_config(folder, **REFERENCES)
    for file in ("tokenizer_config.json", "tokenizer.json"):
        shutil.copy(tiny_llm / file, folder / file)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return folder


@pytest.fixture
def expected(export):
    """What the adapter answers on Whisper's whole window, as the published code runs it."""
    model = load_model(str(export))
    model.encoder.context = "full"
    return answers(model)


@pytest.fixture
def nameless(hub, authors, tiny_whisper, tiny_llm):
    """The authors' distill-only and token-align models: shards, and no references in the config."""
    write_config(authors)
    shard(authors, frozen_parts(tiny_whisper, tiny_llm))
    put(hub, "WillHeld/nameless", authors)
    return "WillHeld/nameless"


@pytest.fixture
def fork(hub, tmp_path):
    """A model on other parts, its encoder no longer the named one's."""
    tokenizer = make_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(11)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    tokenizer.save_pretrained(tmp_path / "qwen")
    put(hub, QWEN, tmp_path / "qwen")
    put(hub, SMALL, make_whisper(tmp_path / "small"))
    made = DivaConfig(
        {"name": SMALL, "context": "full"},
        {"num_query_tokens": 16, "projection_init": "default"},
        {"name": QWEN, "prompt_layout": "released"},
        "float32",
    )
    model = build(made, load_tokenizer(QWEN))
    torch.nn.init.normal_(model.adapter.projection.weight)
    for parameter in model.encoder.body.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model
