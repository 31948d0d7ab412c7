"""How much work Python does, in calls: the same on every machine, unlike seconds."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import diva

_PACKAGE = str(Path(diva.__file__).parent)


def calls_of_diva(work: Callable[[], Any]) -> int:
    """Calls to functions of the package, and from them to functions in C, while `work` runs."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call") and frame.f_code.co_filename.startswith(_PACKAGE)

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls
