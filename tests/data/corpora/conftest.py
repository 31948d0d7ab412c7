"""A cache folder for each test of a corpus."""

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
