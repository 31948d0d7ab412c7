"""Exports: what they hold, who can read them, and the published layout both ways."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import environment
from hub_cache import put, upload_api
from safetensors.torch import load_file, save_file
from tiny import noise
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor

import diva
from diva.errors import UserError
from diva.models.build import build
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig
from diva.models.parts import load_tokenizer

CLIP, NAME = noise(1.3, 3), "me/diva-tiny"
GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def model(export):
    return diva.DivaForConditionalGeneration.from_pretrained(export, dtype="float32")


@pytest.fixture(scope="module")
def answer(model) -> str:
    return model.generate([CLIP], max_new_tokens=6)[0]


def same_adapter(a, b) -> bool:
    state = b.adapter.state_dict()
    return all(torch.equal(value, state[name]) for name, value in a.adapter.state_dict().items())


def test_an_export_names_the_frozen_parts_and_holds_the_adapter(export, model):
    state = load_file(export / "model.safetensors")
    assert state.keys() == model.adapter.state_dict().keys()
    config = json.loads((export / "config.json").read_text())
    assert config["adapter"]["num_query_tokens"] == 12
    assert set(config["llm"]) == {
        "name", "system_prompt", "attention", "prompt_layout", "template_kwargs", "lora",
    }  # fmt: skip
    again = diva.DivaForConditionalGeneration.from_pretrained(export.parent)  # the run's folder
    assert same_adapter(again, model)
    assert again.llm.dtype == torch.bfloat16
    assert len(again.generate([CLIP], max_new_tokens=2)) == 1  # the adapter stays in float32


def test_the_auto_classes_know_it(export, answer):
    assert type(AutoConfig.from_pretrained(export)) is diva.DivaConfig
    processor = AutoProcessor.from_pretrained(export)
    assert type(processor) is diva.DivaProcessor
    for auto in (AutoModel, AutoModelForCausalLM):
        model = auto.from_pretrained(export, dtype="float32")
        assert type(model) is diva.DivaForConditionalGeneration
        batch = processor.spoken_turns([CLIP], [None])
        ids = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
        assert processor.batch_decode(ids, skip_special_tokens=True) == [answer]


FOREIGN = """
import sys
for name in ("diva", "gguf", "lightning", "hydra"):
    sys.modules[name] = None  # whoever imports it fails
import numpy as np, torch
from transformers import AutoModel, AutoProcessor
folder, saved, pushed = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype="float32")
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
clip = (np.random.default_rng(3).standard_normal(int(1.3 * 16_000)) * 0.1).astype(np.float32)
chat = [{"role": "user", "content": [{"type": "audio", "audio": clip}]}]
batch = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
ids = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1]:]
model.save_pretrained(saved)
if pushed:
    model.push_to_hub(pushed)
print("ANSWER" + processor.batch_decode(ids, skip_special_tokens=True)[0] + "END")
"""


@pytest.mark.integration
def test_it_loads_where_diva_is_not_installed(export, answer, tmp_path, shared_cache):
    """From its folder; then what that process has pushed, from the hub by its name."""
    once, twice, pushed = (tmp_path / name for name in ("once", "twice", "pushed"))
    with upload_api(pushed) as url:
        variables = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"}
        assert foreign(tmp_path, shared_cache, export, once, NAME, **variables) == answer
    assert {file.name for file in pushed.iterdir()} == {file.name for file in export.iterdir()} | {
        "README.md"
    }
    put(tmp_path / "hub", NAME, pushed)
    variables = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    assert foreign(tmp_path, shared_cache, NAME, twice, "", **variables) == answer
    for file in export.glob("*.py"):
        assert (twice / file.name).read_text() == file.read_text()


def foreign(tmp_path, cache, *given, **more) -> str:
    """What FOREIGN answers in a process of its own."""
    variables = environment(cache) | {"HF_MODULES_CACHE": str(tmp_path / "modules")} | more
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, *map(str, given)],
        env=variables, capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Do you wish to run the custom code?" not in done.stdout  # permission was given once, for all
    return done.stdout.split("ANSWER")[1].split("END")[0]


def test_exported_code_is_that_of_the_package(export):
    package = Path(diva.__file__).parent
    for file in export.glob("*.py"):
        rooms = (package / "models", package / "audio", package)
        source = next(room / file.name for room in rooms if (room / file.name).is_file())
        lines = zip(source.read_text().splitlines(), file.read_text().splitlines(), strict=True)
        changed = [(ours, theirs) for ours, theirs in lines if ours != theirs]
        assert all(ours.startswith("from ..") and theirs.startswith("from .") for ours, theirs in changed)
        assert "from .." not in file.read_text().replace("`from ..", "")


@pytest.mark.parametrize("by", ["config", "auto"])
def test_a_config_alone_makes_a_model_of_random_weights(export, model, by):
    config = diva.DivaConfig.from_pretrained(export, dtype=None)
    config.frozen_dtype = "float32"
    made = diva.DivaForConditionalGeneration(config) if by == "config" else AutoModel.from_config(config)
    state, own = made.state_dict(), model.state_dict()
    assert {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in own.items()}
    assert not torch.equal(state["llm.model.embed_tokens.weight"], own["llm.model.embed_tokens.weight"])
    assert len(made.generate([CLIP], max_new_tokens=2)) == 1


def test_a_full_export_needs_nothing_else(model, answer, tmp_path, tiny_llm, tiny_whisper):
    model.save_pretrained(tmp_path / "full", full=True)
    text = (tmp_path / "full" / "config.json").read_text()
    assert str(tiny_llm) not in text
    assert str(tiny_whisper) not in text
    moved = (tmp_path / "full").rename(tmp_path / "moved")
    again = diva.DivaForConditionalGeneration.from_pretrained(moved)
    assert again.llm.config._name_or_path.startswith(str(moved))
    assert again.generate([CLIP], max_new_tokens=6) == [answer]


@pytest.mark.parity
@pytest.mark.parametrize("stored_as", ["in_out", "out_in"])
def test_the_released_layout_both_ways(model, tmp_path, stored_as):
    model.save_pretrained(tmp_path, layout="released")
    state = load_file(tmp_path / "model.safetensors")
    assert state["projection.weight"].shape == (16, 32)  # [in, out], as in the first releases
    assert {"query_tokens", "projection.bias", "connector.embed_tokens.weight"} <= state.keys()
    if stored_as == "out_in":
        state["projection.weight"] = state["projection.weight"].T.contiguous()
        save_file(state, tmp_path / "model.safetensors")
    released = diva.DivaForConditionalGeneration.from_pretrained(tmp_path)
    assert same_adapter(released, model)
    assert released.config.encoder.context == "full"
    assert released.config.llm.prompt_layout == "released"


def test_a_model_that_reads_in_proportion_to_the_clip_keeps_doing_so(tiny_whisper, tiny_llm, tmp_path):
    adapter = AdapterConfig(num_query_tokens=12, tokens_per_second=4.0)
    config = DivaConfig(EncoderConfig(str(tiny_whisper)), adapter, LLMConfig(str(tiny_llm)), "float32")
    model = build(config, load_tokenizer(str(tiny_llm)))
    model.save_pretrained(tmp_path)
    again = diva.DivaForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.adapter == adapter
    clips = [noise(0.4, 1), noise(2.5, 2), noise(1.4, 3)]
    batch = again.processor.spoken_turns(clips, [None] * 3)
    assert (batch["input_ids"] == again.processor.audio_token_id).sum(dim=1).tolist() == [6, 12, 10]
    assert (
        again.processor.tokens_per_second == AutoProcessor.from_pretrained(tmp_path).tokens_per_second == 4.0
    )
    # What begins the answer is what training compares, alone and in a batch.
    v, samples = model.virtual_tokens(batch["audio"], batch["audio_samples"]), batch["audio_samples"]
    states = model.student_states(v, samples, batch["audio"].shape[1])
    together = again(**batch).logits[:, -1]
    torch.testing.assert_close(together, model.logits(states), atol=1e-4, rtol=1e-4)
    assert again.generate(clips, max_new_tokens=6) == [
        again.generate([c], max_new_tokens=6)[0] for c in clips
    ]
    with pytest.raises(ValueError, match="let DivaProcessor make both"):
        again.generate(**model.processor.spoken_turns([clips[0]], [None]) | {"audio_samples": samples[1:2]})
    with pytest.raises(UserError, match="tokens_per_second=4"):
        again.save_pretrained(tmp_path, layout="released")


def test_what_is_no_model_is_said_in_one_line(export, model, tmp_path):
    load = diva.DivaForConditionalGeneration.from_pretrained
    with pytest.raises(UserError, match="neither a run that has ended"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is of a llama, not of a DiVA"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"reference_encoder": "x", "reference_decoder": "y"}')
    with pytest.raises(UserError, match="lacks 'query_tokens'"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="not a readable export"):
        load(tmp_path)
    with pytest.raises(TypeError, match="takes no 'quantization_config'"):
        load(export, quantization_config={})
    with pytest.raises(TypeError, match="takes full and layout"):
        model.save_pretrained(tmp_path, variant="fp16")
