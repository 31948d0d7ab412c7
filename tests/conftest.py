"""Fixtures of the tiny models and the tiny corpus (`tiny`)."""

import os
from pathlib import Path

import pytest
import torch
from tiny import make_llm, make_model, make_tokenizer, make_whisper, write_release

from diva.models.modeling import DivaForConditionalGeneration

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with whole runs go first, so that no core waits at the end for one that has just begun its longest file."""
    slow = {item.path for item in items if item.get_closest_marker("integration")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return make_llm(tmp_path_factory.mktemp("models") / "llm", make_tokenizer())


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return make_whisper(tmp_path_factory.mktemp("models") / "whisper")


@pytest.fixture
def tiny_model(tiny_whisper: Path, tiny_llm: Path) -> DivaForConditionalGeneration:
    """A model of its own for each test, in float32."""
    return make_model(tiny_whisper, tiny_llm)


@pytest.fixture(scope="session")
def tiny_overrides(tiny_llm: Path, tiny_whisper: Path) -> list[str]:
    """Command-line overrides that put the tiny random models in place of real ones."""
    return [
        f"model.llm.name={tiny_llm}",
        f"model.encoder.name={tiny_whisper}",
        "model.adapter.num_query_tokens=48",
    ]


@pytest.fixture(scope="session")
def tiny_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("corpora") / "cv-corpus-tiny", {"train": 22, "dev": 6})


@pytest.fixture(scope="session")
def tiny_run(tiny_overrides: list[str], tiny_release: Path) -> list[str]:
    """Command-line overrides of a run on the tiny corpus, which logs every step."""
    corpus = ["data=common_voice", f"data.root={tiny_release}", "data.batch_size=4"]
    return [*tiny_overrides, *corpus, "log_every=1"]


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for tests that only need one to exist."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def export(tiny_whisper: Path, tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a model whose adapter is not what `build` would start from."""
    folder = tmp_path_factory.mktemp("run") / "export"
    model = make_model(tiny_whisper, tiny_llm, 5, "bfloat16")
    torch.nn.init.normal_(model.adapter.projection.weight)
    model.save_pretrained(folder)
    return folder
