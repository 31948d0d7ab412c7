"""A short run of `python -m tests.fuzz`."""

import pytest
from fuzz import CHECKS, fuzz

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def own_cache(monkeypatch):
    monkeypatch.setenv("DIVA_CACHE", "")  # put back afterwards


@pytest.mark.parametrize("name", CHECKS)
def test_damaged_files_are_read_whole_or_refused(name):
    assert list(fuzz([name], range(25))) == []
