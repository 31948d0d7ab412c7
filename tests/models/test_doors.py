"""Every published layout answers at every door, and each of them refuses a silent clip in the same words."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile
import torch
from hub_cache import shard
from released_layouts import CLIP, LLAMA, QWEN, SMALL, WHISPER, answers, frozen_parts, torch_weights
from starlette.testclient import TestClient

from diva import generate
from diva.errors import AudioFault, UserError
from diva.evaluation.samples import Instruction, Sample
from diva.evaluation.systems.local import Diva
from diva.models.build import build
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig
from diva.models.load import load_model
from diva.models.parts import load_tokenizer
from diva.models.start import read_start, start_from
from diva.serving import demo
from diva.serving.app import ServerLimits, Service, create_app
from diva.serving.batching import BatchLimits
from diva.serving.listening import RequestLimits

SILENT = np.zeros(16_000, np.float32)
REFUSED = "never moves by more than 0.001 of full scale"


@dataclass
class Layout:
    """A checkpoint, the parts that have to be named for it, and what it answers to CLIP."""

    name: str
    parts: dict[str, str]
    answer: str
    brings_encoder: bool = False


@pytest.fixture(params=["one file", "shards with all parts", "shards without names", "fork"])
def layout(request, hub, authors, expected, tmp_path) -> Layout:
    if request.param == "one file":
        return Layout(str(authors), {}, *expected)
    if request.param == "shards with all parts":
        shard(authors, frozen_parts(*map(request.getfixturevalue, ("tiny_whisper", "tiny_llm"))))
        return Layout(str(authors), {}, *expected)
    if request.param == "shards without names":
        return Layout(request.getfixturevalue("nameless"), {"llm": LLAMA, "encoder": WHISPER}, *expected)
    model, folder = request.getfixturevalue("fork"), tmp_path / "fork"
    folder.mkdir()
    for weights, file in zip(torch_weights(model), ("qformer.pth", "whisper_encoder.pth"), strict=True):
        torch.save(weights, folder / file)
    return Layout(str(folder), {"llm": QWEN, "encoder": SMALL}, *answers(model), brings_encoder=True)


def wav(clip: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, clip, 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def in_python(name: str, parts: dict[str, str], clip: np.ndarray) -> str:
    return load_model(name, **parts).generate([clip], max_new_tokens=6)[0]


def in_evaluation(name: str, parts: dict[str, str], clip: np.ndarray) -> str:
    sample = Sample("0", 0, ("x",), "stop", waveform=clip)
    return Diva(name, **parts).answer([sample], Instruction(), 6)[0]


def over_http(name: str, parts: dict[str, str], clip: np.ndarray) -> str:
    limits = ServerLimits(), BatchLimits(4, 0.01), RequestLimits(30, 512)
    service = Service(load_model(name, **parts), "diva", None, *limits)
    audio = {"data": base64.b64encode(wav(clip)).decode(), "format": "wav"}
    content = [{"type": "input_audio", "input_audio": audio}]
    asked = {"model": "diva", "max_tokens": 6, "messages": [{"role": "user", "content": content}]}
    with TestClient(create_app(service)) as client:
        reply = client.post("/v1/chat/completions", json=asked).json()
    if "error" in reply:
        raise UserError(reply["error"]["message"])
    return reply["choices"][0]["message"]["content"]


@pytest.fixture
def in_demo(tmp_path, monkeypatch) -> Callable:
    def ask(name: str, parts: dict[str, str], clip: np.ndarray) -> str:
        (tmp_path / "clip.wav").write_bytes(wav(clip))
        monkeypatch.setattr(demo, "GREEDY", {"do_sample": False, "max_new_tokens": 6})
        monkeypatch.setattr(demo, "warn", raise_again)
        *_, (turns, *_) = demo.Demo(name, **parts).ask(name, str(tmp_path / "clip.wav"), "", "", [])
        return turns[-1].spoken

    return ask


def raise_again(error: Exception) -> None:
    raise error


@pytest.fixture
def on_the_command_line(tmp_path, monkeypatch, capsys) -> Callable:
    def ask(name: str, parts: dict[str, str], clip: np.ndarray) -> str:
        (tmp_path / "clip.wav").write_bytes(wav(clip))
        options = [word for part, value in parts.items() for word in (f"--{part}", value)]
        given = ["diva.generate", name, str(tmp_path / "clip.wav"), "--max-new-tokens=6", *options]
        monkeypatch.setattr("sys.argv", given)
        try:
            generate.main()
        except SystemExit as end:
            raise UserError(f"exit code {end.code}: {capsys.readouterr().err}") from end
        return capsys.readouterr().out

    return ask


DOORS = ["python", "evaluation", "http", "demo", "command line"]


@pytest.fixture(params=DOORS)
def door(request) -> Callable:
    plain = {
        "python": in_python,
        "evaluation": in_evaluation,
        "http": over_http,
    }
    fixtures = {"demo": "in_demo", "command line": "on_the_command_line"}
    return plain.get(request.param) or request.getfixturevalue(fixtures[request.param])


def test_a_published_layout_answers(door, layout):
    assert layout.answer.split()
    assert door(layout.name, layout.parts, CLIP).split() == layout.answer.split()


def test_a_silent_clip_is_refused_in_the_same_words(door, export):
    with pytest.raises((UserError, AudioFault), match=f"silence: .* {REFUSED}"):
        door(str(export), {}, SILENT)


def test_training_starts_from_a_published_layout(layout):
    llm, encoder = layout.parts.get("llm", LLAMA), layout.parts.get("encoder", WHISPER)
    model = load_model(layout.name, **layout.parts)
    adapter = AdapterConfig(model.config.adapter.num_query_tokens)
    config = DivaConfig(EncoderConfig(encoder), adapter, LLMConfig(llm), "float32", start_from=layout.name)
    start = read_start(config)
    fresh = build(config, load_tokenizer(llm))
    if layout.brings_encoder:
        with pytest.raises(UserError, match="brings the encoder"):
            start_from(fresh, start)
        return
    assert start_from(fresh, start) == f"the adapter starts from {layout.name}"
    state = fresh.adapter.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.adapter.state_dict().items())
