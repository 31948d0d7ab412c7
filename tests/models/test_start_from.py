"""Runs that start from another's adapter: what is taken of it, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_cache import put
from huggingface_hub import constants
from safetensors.torch import save_file
from tiny import make_llm, make_tokenizer, make_whisper

from diva import DivaForConditionalGeneration
from diva.errors import UserError
from diva.models.build import build
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig
from diva.models.parts import load_tokenizer
from diva.models.start import read_start, start_from


@pytest.fixture
def config(tiny_whisper, tiny_llm, export) -> DivaConfig:
    parts = EncoderConfig(str(tiny_whisper)), AdapterConfig(num_query_tokens=12), LLMConfig(str(tiny_llm))
    return DivaConfig(*parts, "float32", start_from=str(export))


def started(config: DivaConfig) -> tuple[DivaForConditionalGeneration, str]:
    """The model as a run starts it, and the line that the run prints."""
    start = read_start(config)
    assert start is not None
    torch.manual_seed(7)
    model = build(config, load_tokenizer(config.llm.name))
    return model, start_from(model, start)


def adapter_of(source) -> dict[str, torch.Tensor]:
    return DivaForConditionalGeneration.from_pretrained(source).adapter.state_dict()


def equal(state: dict, other: dict) -> set[str]:
    assert state.keys() == other.keys()
    return {name for name, value in state.items() if torch.equal(value, other[name])}


def test_all_weights_are_taken_from_a_run_an_export_and_the_hub(config, export, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    put(tmp_path, "me/tiny", export)
    expected = adapter_of(export)
    for source in (str(export), str(export.parent), "me/tiny"):
        config.start_from = source
        model, line = started(config)
        assert len(equal(model.adapter.state_dict(), expected)) == len(expected)
        assert line == f"the adapter starts from {source}"
    model.save_pretrained(tmp_path / "again")
    assert "start_from" not in (tmp_path / "again" / "config.json").read_text()


def test_a_published_layout_is_taken_whether_it_names_its_parts_or_not(config, export, tmp_path):
    model = DivaForConditionalGeneration.from_pretrained(export)
    model.save_pretrained(tmp_path, layout="released")
    config.start_from = str(tmp_path)
    for text in ((tmp_path / "config.json").read_text(), '{"model_type": "diva"}'):
        (tmp_path / "config.json").write_text(text)
        found, line = started(config)
        assert len(equal(found.adapter.state_dict(), adapter_of(export))) == len(adapter_of(export))
        assert "trained with" not in line


def test_of_an_adapter_for_an_llm_of_another_width_all_but_the_projection_is_taken(config, export, tmp_path):
    narrow = tmp_path / "narrow"
    make_llm(narrow, make_tokenizer(), hidden_size=24)
    config.llm = LLMConfig(str(narrow))
    model, line = started(config)
    torch.manual_seed(7)
    fresh = build(config, load_tokenizer(str(narrow))).adapter.state_dict()
    projection = {"projection.weight", "projection.bias"}
    assert equal(model.adapter.state_dict(), adapter_of(export) | {n: fresh[n] for n in projection}) == set(
        fresh
    )
    assert f"all but its projection: that one is for an LLM of width 32, and {narrow} has 24" in line
    assert "\n" not in line


def test_another_llm_of_the_same_width_is_named(config, tiny_llm, tmp_path):
    make_llm(tmp_path / "other", make_tokenizer())
    config.llm = LLMConfig(str(tmp_path / "other"))
    assert started(config)[1].endswith(f", which was trained with {tiny_llm}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "mlp"}, r"model\.adapter\.kind=qformer, this run has mlp: give"),
        ({"num_query_tokens": 24}, r"has model\.adapter\.num_query_tokens=12, this run has 24"),
        ({"stack": 4}, r"model\.adapter\.stack=1, this run has 4"),
    ],
)
def test_another_architecture_is_refused_before_anything_is_loaded(config, change, said):
    config.adapter = replace(config.adapter, **change)
    with pytest.raises(UserError, match=said) as error:
        read_start(config)
    assert "\n" not in str(error.value)


def test_weights_of_another_depth_are_refused_by_name(config, tmp_path):
    config.encoder = EncoderConfig(str(make_whisper(tmp_path / "deep", decoder_layers=3)))
    with pytest.raises(UserError, match=r"its layers\.2\.\S+ is no such weight, here it is \(.*more differ"):
        started(config)


def test_an_adapter_with_an_encoder_of_its_own_is_refused(config, export, tmp_path):
    model = DivaForConditionalGeneration.from_pretrained(export, dtype="float32")
    model.save_pretrained(tmp_path / "released", layout="released")
    folder = with_encoder(tmp_path / "released", model)
    config.start_from = str(folder)
    assert "starts from" in started(config)[1]  # it is the named one
    torch.nn.init.normal_(model.encoder.body.conv1.weight)
    with_encoder(folder, model)
    with pytest.raises(UserError, match=r"brings the encoder .* full=True"):
        started(config)


def with_encoder(folder: Path, model: DivaForConditionalGeneration) -> Path:
    """Write a model as the published class saves itself: adapter and encoder, as torch names them."""
    adapter, decoder = model.adapter.state_dict(), {}
    for name, value in adapter.items():
        if name.startswith(("layers.", "norm.")):
            decoder[
                f"qformer.decoder.{name.replace('norm.', 'layer_norm.', 1) if name[0] == 'n' else name}"
            ] = value
    whisper = torch.zeros(64, adapter["positions"].shape[1])
    whisper[: len(adapter["positions"])] = adapter["positions"]
    state = decoder | {"qformer.decoder.embed_positions.weight": whisper}
    state |= {
        f"qformer.{name}": adapter[name] for name in ("query_tokens", "projection.weight", "projection.bias")
    }
    state |= {f"whisper_encoder.{name}": value for name, value in model.encoder.body.state_dict().items()}
    save_file(
        {name: value.contiguous().clone() for name, value in state.items()}, folder / "model.safetensors"
    )
    return folder


def test_what_is_no_model_is_refused(config, tmp_path):
    config.start_from = str(tmp_path)
    with pytest.raises(UserError, match="neither a run that has ended"):
        read_start(config)
    config.start_from = None
    assert read_start(config) is None
