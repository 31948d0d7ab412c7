"""Published checkpoints as they lie on the hub: tokenizer files, shards and all, with tiny weights inside."""

import json
import shutil
import subprocess
from typing import ClassVar

import pytest
import soundfile
import torch
from command_line import command, environment, run
from hub_cache import put, shard, write_config
from huggingface_hub import constants
from released_layouts import (
    CLIP,
    DIVA,
    LLAMA,
    QWEN,
    REFERENCES,
    SMALL,
    WHISPER,
    answers,
    frozen_parts,
    torch_weights,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, WhisperModel

from diva.config import check_overrides, make
from diva.errors import UserError
from diva.evaluation.samples import Instruction, Sample
from diva.evaluation.systems.local import Diva
from diva.models import pretrained
from diva.models.load import load_model
from diva.models.pretrained import ADAPTER_WEIGHTS, adapter_files, resolve
from diva.serving.demo import Demo

# ---- one file


def test_a_release_with_tokenizer_files_answers_by_name(hub, authors, expected):
    put(hub, DIVA, authors)
    assert answers(load_model(DIVA)) == expected
    assert answers(AutoModel.from_pretrained(DIVA, dtype="float32")) == expected


def generate(hub, folder, *arguments) -> subprocess.CompletedProcess:
    """`diva.generate` in a process that has this cache from its first line on."""
    soundfile.write(folder / "clip.wav", CLIP, 16_000, subtype="FLOAT")
    given = command("diva.generate", arguments[0], "clip.wav", "--max-new-tokens=6", *arguments[1:])
    variables = environment(folder) | {"HF_HUB_CACHE": str(hub)}
    return subprocess.run(given, env=variables, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.integration
def test_a_release_with_tokenizer_files_answers_on_the_command_line(hub, authors, expected, tmp_path):
    put(hub, DIVA, authors)
    done = generate(hub, tmp_path, DIVA)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected[0].split()


@pytest.mark.parametrize("model_type", ["diva", ""])
def test_an_empty_model_type_is_no_hindrance(hub, authors, expected, model_type):
    write_config(authors, model_type, **REFERENCES)
    put(hub, "WillHeld/DiVA-llama-3.2-1b", authors)
    assert answers(load_model("WillHeld/DiVA-llama-3.2-1b")) == expected


# ---- shards


class Spy:
    """safetensors' `safe_open`, which keeps the names of the weights that are read."""

    asked: ClassVar[list[str]] = []

    def __init__(self, file, framework):
        self.file = safe_open(file, framework)

    def __enter__(self):
        self.tensors = self.file.__enter__()
        return self

    def __exit__(self, *error):
        self.file.__exit__(*error)

    def keys(self):
        return self.tensors.keys()

    def get_tensor(self, name):
        self.asked.append(name)
        return self.tensors.get_tensor(name)


def test_of_shards_only_the_adapter_is_read(hub, authors, expected, tiny_whisper, tiny_llm, monkeypatch):
    shard(authors, frozen_parts(tiny_whisper, tiny_llm))
    put(hub, DIVA, authors)
    monkeypatch.setattr("diva.models.folders.safe_open", Spy)
    assert answers(load_model(DIVA)) == expected
    assert len(adapter_files(authors)) == 4
    assert Spy.asked
    assert all(name.startswith(ADAPTER_WEIGHTS) for name in Spy.asked)


def test_shards_without_the_adapter_need_not_be_there(hub, authors, expected):
    # Sorted names, as the authors' shards are: the adapter in the first, the rest of the LLM in the others.
    llm = {f"decoder.model.layers.{number}.weight": torch.zeros(2) for number in range(3)}
    shard(authors, {})
    index = json.loads((authors / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(llm, "model-00009-of-00009.safetensors")
    (authors / "model.safetensors.index.json").write_text(json.dumps(index))
    put(hub, DIVA, authors)
    assert answers(load_model(DIVA)) == expected


def test_an_index_without_its_shards_is_no_hindrance_to_the_one_file(hub, authors, expected):
    whole = shutil.copy(authors / "model.safetensors", authors.parent / "whole")
    shard(authors, {})
    for file in adapter_files(authors):
        (authors / file).unlink()
    shutil.move(whole, authors / "model.safetensors")
    put(hub, DIVA, authors)
    assert answers(load_model(DIVA)) == expected


def test_only_shards_with_the_adapter_are_downloaded(authors, monkeypatch, tmp_path):
    shard(authors, {"decoder.model.norm.weight": torch.zeros(2)}, shards=2)
    index = json.loads((authors / "model.safetensors.index.json").read_text())
    index["weight_map"]["decoder.lm_head.weight"] = "model-00003-of-00003.safetensors"
    (authors / "model.safetensors.index.json").write_text(json.dumps(index))
    asked = []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(pretrained.HfApi, "model_info", lambda *args, **options: None)
    monkeypatch.setattr(
        pretrained,
        "snapshot_download",
        lambda name, allow_patterns, **options: asked.extend(allow_patterns) or str(authors),
    )
    assert resolve(DIVA, diva=True) == authors
    assert {name for name in asked if name.startswith("model-")} == set(adapter_files(authors))
    assert "*.safetensors" not in asked
    assert "model-00003-of-00003.safetensors" not in asked


# ---- no word about what it was made of


def test_a_checkpoint_that_names_no_parts_asks_for_them_in_one_line(nameless):
    for load in (load_model, AutoModel.from_pretrained):
        with pytest.raises(UserError, match="llm of width 32 and an encoder of width 16") as error:
            load(nameless)
        assert "--llm NAME --encoder NAME" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"an encoder of width 16; .*: --encoder NAME on"):
        load_model(nameless, llm=LLAMA)


def test_a_known_width_names_what_it_may_be(nameless, monkeypatch):
    monkeypatch.setattr("diva.models.released._LLMS", {32: LLAMA})
    with pytest.raises(UserError, match=f"llm of width 32, as {LLAMA} is"):
        load_model(nameless)


def test_given_parts_answer_at_every_door(nameless, expected):
    assert answers(load_model(nameless, llm=LLAMA, encoder=WHISPER)) == expected
    model = AutoModel.from_pretrained(nameless, dtype="float32", llm=LLAMA, encoder=WHISPER)
    assert answers(model) == expected
    demo = Demo(nameless, llm=LLAMA, encoder=WHISPER)
    assert answers(demo.load(nameless)) == expected
    system = Diva(nameless, llm=LLAMA, encoder=WHISPER)
    sample = Sample("0", 0, ("x",), "stop", waveform=CLIP)
    assert system.answer([sample], Instruction(), 6) == [text.strip() for text in expected]
    assert len(system.identity["weights"]) == 12


def test_given_parts_are_for_the_named_model_alone(nameless, export):
    demo = Demo(nameless, llm="no/such", encoder="no/such")
    assert demo.load(str(export)).config.llm.name != "no/such"


def test_given_parts_stand_for_those_that_the_files_name(export, tiny_llm, tiny_whisper, tmp_path):
    moved = shutil.copytree(tiny_llm, tmp_path / "moved")
    assert load_model(str(export), llm=str(moved)).config.llm.name == str(moved)
    assert load_model(str(export), llm=str(moved)).config.encoder.name == str(tiny_whisper)


@pytest.mark.integration
def test_given_parts_answer_on_the_command_line(hub, nameless, expected, tmp_path):
    done = generate(hub, tmp_path, nameless)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = generate(hub, tmp_path, nameless, "--llm", LLAMA, "--encoder", WHISPER)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected[0].split()


# ---- the Cantonese fork: another Whisper, a Qwen, and the encoder trained too


@pytest.mark.parametrize("form", ["pth", "qformer.", "connector."])
def test_the_fork_answers_with_the_encoder_that_it_trained(hub, fork, tmp_path, form):
    qformer, encoder = torch_weights(fork)
    folder = tmp_path / "fork"
    folder.mkdir()
    if form == "pth":
        torch.save(qformer, folder / "qformer.pth")
        torch.save(encoder, folder / "whisper_encoder.pth")
        name = str(folder)
    else:
        state = {f"{form}{key}": value for key, value in qformer.items()}
        state |= {f"whisper_encoder.{key}": value for key, value in encoder.items()}
        save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
        write_config(folder)
        put(hub, name := "fork/canto-diva", folder)
    with pytest.raises(UserError, match="llm of width 24"):
        load_model(name)
    model = load_model(name, llm=QWEN, encoder=SMALL)
    assert answers(model) == answers(fork)
    with pytest.raises(UserError, match="full=True"):
        model.save_pretrained(tmp_path / "small-export")
    model.save_pretrained(tmp_path / "full", full=True)
    assert answers(load_model(str(tmp_path / "full"))) == answers(fork)


def test_an_encoder_that_is_the_named_one_stays_named(hub, fork, tmp_path):
    fork.encoder.body.load_state_dict(WhisperModel.from_pretrained(resolve(SMALL)).encoder.state_dict())
    qformer, encoder = torch_weights(fork)
    torch.save(qformer, tmp_path / "qformer.pth")
    torch.save(encoder, tmp_path / "whisper_encoder.pth")
    model = load_model(str(tmp_path), llm=QWEN, encoder=SMALL)
    model.save_pretrained(tmp_path / "export")
    assert json.loads((tmp_path / "export" / "config.json").read_text())["encoder"]["name"] == SMALL


# ---- what does not fit


def test_a_checkpoint_of_another_llm_is_refused_in_one_line(hub, authors, fork):
    with pytest.raises(UserError, match=f"width 32, and the LLM {QWEN} reads a width of 24") as error:
        load_model(str(authors), llm=QWEN)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name: name.startswith("connector.layers.1"), r"layers\.1\..* is no such weight"),
        (lambda name: name == "query_tokens", "lacks 'query_tokens'"),
    ],
)
def test_a_checkpoint_of_another_depth_is_refused_in_one_line(hub, authors, change, said):
    state = load_file(authors / "model.safetensors")
    kept = {name: value for name, value in state.items() if not change(name)}
    save_file(kept, authors / "model.safetensors")
    with pytest.raises(UserError, match=said) as error:
        load_model(str(authors))
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_whisper_width_is_refused_in_one_line(hub, authors):
    state = load_file(authors / "model.safetensors")
    wide = {
        name: torch.cat([value, value], dim=-1) if value.shape[-1] == 16 else value
        for name, value in state.items()
    }
    wide["projection.weight"] = torch.zeros(32, 32)
    save_file(wide, authors / "model.safetensors")
    with pytest.raises(UserError, match=f"does not fit the encoder {WHISPER}.*--encoder NAME") as error:
        load_model(str(authors))
    assert "\n" not in str(error.value)


# ---- the options reach the model


@pytest.mark.integration
@pytest.mark.parametrize("door", [("diva.serve",), ("diva.demo", "--model")])
def test_commands_hand_on_the_named_parts(export, shared_cache, tmp_path, door):
    module, *option = door
    given = [*option, str(export), "--port", "0", "--llm", "no/such"]
    done = run(module, *given, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 2
    assert "no model 'no/such'" in done.stderr


def test_an_evaluated_system_takes_the_named_parts(export):
    overrides = [f"system.model={export}", "system.llm=no/such", "task=spoken_mini_qa"]
    config = check_overrides("evaluate", ["system=diva", *overrides])
    with pytest.raises(UserError, match="no model 'no/such'"):
        make(config.system)
