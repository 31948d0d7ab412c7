"""A rank whose first rank is gone does not wait for ever."""

import os
import signal
import subprocess
import sys
import time

import pytest

CHILD = """
import os, time
from diva.training.distributed.ranks import end_with_first_rank
end_with_first_rank(grace_seconds=0.2)
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def is_alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("variables", "ends"),
    [
        ({"LOCAL_RANK": "1"}, True),
        ({"LOCAL_RANK": "0"}, False),
        ({}, False),
        ({"LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x"}, False),
    ],
)
def test_a_rank_ends_after_the_first(variables, ends):
    given = {key: value for key, value in os.environ.items() if key != "LOCAL_RANK"} | variables
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=given, stdout=subprocess.PIPE, text=True)
    rank = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.time() + (10 if ends else 2)
    while is_alive(rank) and time.time() < deadline:
        time.sleep(0.05)
    alive = is_alive(rank)
    if alive:
        os.kill(rank, signal.SIGKILL)
    assert alive is not ends
