"""Published checkpoints as they lie on the hub: tokenizer files, shards and all, with tiny weights inside."""

import json
import shutil

import pytest
import soundfile
from command_line import run
from hub_cache import put
from huggingface_hub import constants
from tiny import noise
from transformers import AutoModel

import diva
from diva.models.load import load_model

DIVA = "WillHeld/DiVA-llama-3-v0-8b"
WHISPER, LLAMA = "openai/whisper-large-v3", "meta-llama/Meta-Llama-3-8B-Instruct"
CLIP = noise(1.3, 3)


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
def v0_8b(tmp_path, export, tiny_llm):
    """The files of the first release: one file of weights, and the tokenizer's beside them."""
    folder = tmp_path / "v0-8b"
    model = diva.DivaForConditionalGeneration.from_pretrained(export)
    model.save_pretrained(folder, layout="released")
    write_config(folder, {"reference_encoder": WHISPER, "reference_decoder": LLAMA})
    # Its own `tokenizer_config.json` says no other class than the LLM's.
    for file in ("tokenizer_config.json", "tokenizer.json"):
        shutil.copy(tiny_llm / file, folder / file)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return folder


def write_config(folder, references, model_type="diva"):
    values = {
        "architectures": ["DiVAModel"],
        "model_type": model_type,
        "torch_dtype": "float32",
        **references,
    }
    values["auto_map"] = {
        "AutoConfig": "configuration_diva.DiVAConfig",
        "AutoModel": "modeling_diva.DiVAModel",
    }
    (folder / "config.json").write_text(json.dumps(values))


def answers(model) -> list[str]:
    return model.generate([CLIP], max_new_tokens=6)


def full_window(model):
    """The same model on Whisper's whole window, as the published code runs it."""
    model.encoder.context = "full"
    return model


def test_a_release_with_tokenizer_files_answers_by_name(hub, v0_8b, export):
    put(hub, DIVA, v0_8b)
    expected = answers(full_window(load_model(str(export))))
    assert answers(load_model(DIVA)) == expected
    assert answers(AutoModel.from_pretrained(DIVA, dtype="float32")) == expected


@pytest.mark.integration
def test_a_release_with_tokenizer_files_answers_on_the_command_line(
    hub, v0_8b, export, tmp_path, monkeypatch
):
    put(hub, DIVA, v0_8b)
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    soundfile.write(tmp_path / "clip.wav", CLIP, 16_000)
    done = run("diva.generate", DIVA, "clip.wav", "--max-new-tokens=6", cache=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
