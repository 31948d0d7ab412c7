import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from difflib import SequenceMatcher
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

import diva
from diva.audio.decoding import decode
from diva.errors import UserError
from diva.models import pretrained
from diva.models.pretrained import Wheel, resolve

WHISPER, LLM = "openai/whisper-tiny.en", "HuggingFaceTB/SmolLM2-135M-Instruct"
NAME = "owner/model"
SPOKEN = {
    "slt": "The quick brown fox jumps over the lazy dog.",
    "rms": "Please tell me the capital of France.",
    "awb": "What is the weather going to be like in Paris tomorrow morning?",
}


# --- The real weights ---


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, converted by the code under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIVA_CACHE", str(tmp_path_factory.mktemp("converted")))
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        return {name: resolve(name) for name in (WHISPER, LLM)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sentence -> clip of a voice that says it."""
    folder = tmp_path_factory.mktemp("clips")
    for voice, sentence in SPOKEN.items():
        subprocess.run(["flite", "-voice", voice, "-t", sentence, "-o", folder / f"{voice}.wav"], check=True)
    return {sentence: folder / f"{voice}.wav" for voice, sentence in SPOKEN.items()}


def letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum() or character == " ").strip()


def test_converted_whisper_transcribes(converted: dict[str, Path], clips: dict[str, Path]) -> None:
    processor = WhisperProcessor.from_pretrained(converted[WHISPER])
    model = WhisperForConditionalGeneration.from_pretrained(converted[WHISPER]).eval()
    audio = [decode(clip) for clip in clips.values()]
    features = processor(audio, sampling_rate=16_000, return_tensors="pt").input_features
    heard = processor.batch_decode(model.generate(features), skip_special_tokens=True)
    for sentence, text in zip(clips, heard, strict=True):
        assert SequenceMatcher(None, letters(sentence), letters(text)).ratio() > 0.9, text


def test_converted_whisper_is_laid_out_as_on_the_hub(converted: dict[str, Path]) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(converted[WHISPER])
    config = model.config
    assert (config.num_mel_bins, config.d_model, config.vocab_size) == (80, 384, 51864)
    assert (config.encoder_layers, config.decoder_layers, config.decoder_attention_heads) == (4, 4, 6)
    assert model.dtype == torch.float32
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    generation = model.generation_config.to_dict()
    assert generation["begin_suppress_tokens"] == [220, 50256]
    assert generation["alignment_heads"][0] == [1, 0]


def test_converted_llm_answers(converted: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted[LLM])
    model = AutoModelForCausalLM.from_pretrained(converted[LLM]).eval()
    assert model.dtype == torch.bfloat16
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert isinstance(inputs, BatchEncoding)
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    # It stops by itself, at the end of its turn.
    assert tokenizer.decode(answer[-1]) == "<|im_end|>"


def test_converted_tokenizer_splits_digits_and_keeps_text(converted: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted[LLM])
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|im_end|>", 2, 2)
    assert len(tokenizer) == 49152
    # Digits stand alone and take no space with them, as in the tokenizer that the model learned with.
    assert tokenizer.tokenize("is\n  17?") == ["is", "ĊĠĠ", "1", "7", "?"]
    text = "It's naïve – <|im_start|>"
    ids = tokenizer(text).input_ids
    assert (ids[-1], tokenizer.decode(ids)) == (1, text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "It's naïve – "


# --- Where a model is looked for ---


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches, and a hub that refuses to be called."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / file).write_text("{}")
    return folder


def write_snapshot(hub: Path) -> Path:
    (hub / "models--owner--model" / "refs").mkdir(parents=True)
    (hub / "models--owner--model" / "refs" / "main").write_text("abc")
    return write_model(hub / "models--owner--model" / "snapshots" / "abc")


@pytest.fixture
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A wheel that holds `owner/model`, a converter that takes no time, and a list of what it was asked for."""
    calls: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        calls.append(source)
        write_model(target)

    converters = ModuleType("diva.models.converters")
    converters.convert = convert  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "diva.models.converters", converters)
    monkeypatch.setattr(pretrained, "WHEELS", {NAME: Wheel("a-wheel", "1.0", "weights.bin")})
    (tmp_path / "weights.bin").touch()
    monkeypatch.setattr(
        pretrained.metadata, "distribution", lambda name: SimpleNamespace(locate_file=tmp_path.joinpath)
    )
    return calls


def test_local_folder_comes_before_snapshot_wheel_and_hub(
    tmp_path: Path, no_network: None, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = write_model(tmp_path / "downloaded")
    monkeypatch.setattr(pretrained, "HfApi", lambda: SimpleNamespace(model_info=lambda name, timeout: None))
    monkeypatch.setattr(pretrained, "snapshot_download", lambda name, **patterns: str(downloaded))
    local = write_model(tmp_path / NAME)
    snapshot = write_snapshot(tmp_path / "hub")

    assert resolve(NAME).resolve() == local
    assert resolve(str(local)) == local
    shutil.rmtree(local)
    assert resolve(NAME) == snapshot
    shutil.rmtree(tmp_path / "hub")
    assert not conversions
    made = resolve(NAME)
    assert made == tmp_path / "cache" / "models" / "owner--model"
    assert resolve(NAME) == made
    assert conversions == [tmp_path / "weights.bin"]  # once
    monkeypatch.setattr(pretrained, "WHEELS", {})
    assert resolve(NAME) == downloaded


def test_a_conversion_outlives_its_wheel(
    no_network: None, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = resolve(NAME)

    def missing(name: str) -> None:
        raise pretrained.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(pretrained.metadata, "distribution", missing)
    assert resolve(NAME) == made
    shutil.rmtree(made)
    with pytest.raises(UserError, match=r"pip install --no-deps a-wheel==1\.0"):
        resolve(NAME)


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_incomplete_snapshot_is_passed_over(
    missing: str, tmp_path: Path, no_network: None, conversions: list[Path]
) -> None:
    (write_snapshot(tmp_path / "hub") / missing).unlink()
    assert resolve(NAME).name == "owner--model"


def test_a_speech_encoder_in_the_cache_needs_no_tokenizer(tmp_path: Path, no_network: None) -> None:
    snapshot = write_snapshot(tmp_path / "hub")
    (snapshot / "tokenizer.json").rename(snapshot / "preprocessor_config.json")
    with pytest.raises(UserError, match=r"no tokenizer\.json in the hub's cache"):
        resolve(NAME)
    (snapshot / "config.json").write_text('{"model_type": "wavlm"}')
    assert resolve(NAME) == snapshot
    (snapshot / "preprocessor_config.json").unlink()  # an interrupted download
    with pytest.raises(UserError, match=r"no preprocessor_config\.json in the hub's cache"):
        resolve(NAME)


@pytest.mark.parametrize("also_safe", [False, True])
def test_weights_in_torchs_format_are_downloaded_if_there_are_no_others(
    also_safe: bool, tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for facebook/hubert-large-ll60k and microsoft/wavlm-large."""
    files = ["config.json", "pytorch_model.bin", *(["model.safetensors"] if also_safe else [])]
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])
    monkeypatch.setattr(pretrained, "HfApi", lambda: SimpleNamespace(model_info=lambda name, timeout: info))
    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()

    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        for file in files:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (downloaded / file).write_text("{}")
        return str(downloaded)

    monkeypatch.setattr(pretrained, "snapshot_download", download)
    assert resolve(NAME) == downloaded
    assert {path.name for path in downloaded.iterdir()} == {"config.json", files[-1]}
    assert resolve(str(downloaded)) == downloaded


def test_every_shard_is_needed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "sharded")
    shards = {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "model-1.safetensors").touch()
    assert resolve(str(folder)) == folder  # all weights are in model.safetensors, which transformers prefers
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no model-2\.safetensors"):
        resolve(str(folder))
    (folder / "model-2.safetensors").touch()
    assert resolve(str(folder)) == folder


# --- Conversion is all or nothing ---

CHILD = """
import os, pathlib, signal, sys, time, types
import diva
from diva.models import pretrained

def convert(source, target):
    target.mkdir()
    (target / "config.json").write_text(sys.argv[1])
    if sys.argv[1] == "die":
        (target / "model.safetensors").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    meeting = pathlib.Path(os.environ["DIVA_CACHE"]).parent / "meeting"
    meeting.mkdir(exist_ok=True)
    (meeting / sys.argv[1]).touch()
    give_up = time.monotonic() + 20
    while len(list(meeting.iterdir())) < 2 and time.monotonic() < give_up:
        time.sleep(0.01)
    (target / "model.safetensors").write_text(sys.argv[1])

sys.modules["diva.models.converters"] = types.SimpleNamespace(convert=convert)
pretrained.main(["openai/whisper-tiny.en"])
"""


def start(role: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(diva.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, role],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "HF_HUB_CACHE": os.environ["DIVA_CACHE"]},
    )


def test_two_processes_convert_at_once(tmp_path: Path, no_network: None) -> None:
    children = [start(role) for role in ("one", "two")]
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    models = tmp_path / "cache" / "models"
    target = models / "openai--whisper-tiny.en"
    assert [printed for printed, _ in outputs] == [f"{target}\n"] * 2
    assert all("Converting openai/whisper-tiny.en" in said for _, said in outputs)
    # One of them, unmixed, and nothing of the other.
    assert (target / "config.json").read_text() == (target / "model.safetensors").read_text()
    assert list(models.iterdir()) == [target]


def test_a_killed_conversion_leaves_nothing_to_be_found(
    tmp_path: Path, no_network: None, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start("die").wait(timeout=60) == -signal.SIGKILL
    models = tmp_path / "cache" / "models"
    assert [path.name[:12] for path in models.iterdir()] == [".converting-"]
    monkeypatch.setattr(pretrained, "WHEELS", {WHISPER: Wheel("a-wheel", "1.0", "weights.bin")})
    assert (resolve(WHISPER) / "config.json").read_text() == "{}"
    assert len(conversions) == 1


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, no_network: None, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        write_model(target)
        raise RuntimeError("in the middle")

    monkeypatch.setattr(sys.modules["diva.models.converters"], "convert", fail)
    with pytest.raises(RuntimeError):
        resolve(NAME)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, no_network: None, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set DIVA_CACHE"):
        resolve(NAME)


# --- What is not found ---


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("openai/whisper-tinyen", WHISPER),
        ("SmolLM2-135M-instruct", LLM),
        ("meta-llama/llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct"),
        ("owner/modell", NAME),
        ("OPENAI/WHISPER-TINY.EN", WHISPER),
    ],
)
def test_a_misspelt_model_name_gets_the_nearest_right_one(
    misspelt: str, meant: str, tmp_path: Path, no_network: None
) -> None:
    write_snapshot(tmp_path / "hub")
    with pytest.raises(UserError, match=f"did you mean '{meant}'") as error:
        resolve(misspelt)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["runs/mini/export", "../model", "~/models/whisper", ""])
def test_folder_that_is_not_there(name: str, no_network: None) -> None:
    with pytest.raises(UserError, match="neither a folder nor a name"):
        resolve(name)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        resolve(str(tmp_path))


def test_offline_asks_no_hub(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
            resolve(NAME)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_hub_that_never_answers(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretrained._HUB_TIMEOUT_SECONDS < 8
    monkeypatch.setattr(pretrained, "_HUB_TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(UserError, match="the hub does not give it"):
            resolve(NAME)
    assert time.monotonic() - start < 8, "huggingface_hub's own timeout is 10 s"


@pytest.fixture
def refusing_hub(
    request: pytest.FixtureRequest, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A hub that answers every request with the status and error code of the test's parameter."""
    status, code = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


@pytest.mark.parametrize(
    ("refusing_hub", "said"),
    [
        ((403, "GatedRepo"), "accept its licence at .*/owner/model and set HF_TOKEN"),
        ((401, "RepoNotFound"), "not on the hub"),
        ((500, ""), "the hub does not give it"),
    ],
    indirect=["refusing_hub"],
)
def test_hub_that_refuses(refusing_hub: None, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        resolve(NAME)
    assert "\n" not in str(error.value)


def test_pretrained_command_prints_folders_and_one_line_of_error(tmp_path: Path, no_network: None) -> None:
    folder = write_model(tmp_path / "model")
    command = [sys.executable, "-m", "diva.pretrained", str(folder), "nothing/here/at/all"]
    environment = {**os.environ, "PYTHONPATH": str(Path(diva.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, f"{folder}\n")
    assert done.stderr.count("\n") == 1
    assert "'nothing/here/at/all'" in done.stderr
