"""Runs of a sweep with a few lines of Python in place of training."""

import multiprocessing
import sys
import time
from collections.abc import Callable

import pytest

from diva.sweeps.local import RunProcess

FORK = multiprocessing.get_context("fork")  # another sweep, without importing everything again
FINISHES = "import sys; open(sys.argv[1] + '/summary.json', 'w').write('{\"val/kl\": 1.0}')"
SLEEPS = "import sys, time; open(sys.argv[1] + '/here', 'w'); time.sleep(60)"


def stand_in(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have runs execute `script` instead of diva.train; its argument is the run's folder."""
    monkeypatch.setattr(
        RunProcess, "_command", lambda self: [sys.executable, "-c", script, str(self.run.folder)]
    )


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Look again and again; an AssertionError where `condition` does not come true in time."""
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.02)
