"""The load script: it sees each request's end, and what is lost."""

import psutil
import pytest

from benchmarks.serving_load import arrivals, load
from diva.serving.app import ServerLimits
from diva.serving.rows import RowText


@pytest.mark.integration
def test_the_load_script_counts_every_request(slow_server, monkeypatch):
    url = str(slow_server(ServerLimits(), audio_seconds=60).base_url).rstrip("/")
    found = load(url, psutil.Process(), streams=8, total=16)
    assert sum(found["ends"].values()) == 16
    assert set(found["ends"]) <= {"whole answer", "went away"}
    assert (found["lost"], found["questions_with_two_answers"]) == (0, 0)
    assert len(found["megabytes"]) == 4
    monkeypatch.setattr(RowText, "push", lambda *_: 1 / 0)
    assert load(url, psutil.Process(), streams=2, total=4)["lost"] == 4
    assert arrivals(url, rate=100.0, total=2)["lost"] == 2
