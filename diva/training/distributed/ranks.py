"""Processes that end when the process that started them has ended."""

import os
import signal
import threading
import time
from collections.abc import Mapping

_GRACE_SECONDS = 30.0


def end_with_first_rank(
    environ: Mapping[str, str] = os.environ, grace_seconds: float = _GRACE_SECONDS
) -> None:
    """In a process that Lightning started as another rank: end soon after its parent, the first rank, has ended.

    Ranks that are training notice by themselves. One that is still waiting for the others to come would wait for ever.
    Does nothing in the first rank, and under torchrun, which ends its processes itself.
    """
    if environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in environ:
        end_with(os.getppid(), signal.SIGKILL, grace_seconds)


def end_with(parent: int, sent: signal.Signals, grace_seconds: float = 0.0) -> None:
    """Send this process a signal `grace_seconds` after its parent has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        time.sleep(grace_seconds)
        os.kill(os.getpid(), sent)

    threading.Thread(target=watch, daemon=True).start()
