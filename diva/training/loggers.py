"""TensorBoard, Weights & Biases and others beside metrics.csv: they cannot end a run."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch.loggers import Logger

from diva.terminal import say

_CALLED_BY_LIGHTNING = (
    "log_metrics",
    "log_hyperparams",
    "log_graph",
    "save",
    "finalize",
    "after_save_checkpoint",
)


def harmless(logger: Logger) -> Logger:
    """The same logger. Its first failure is said in one line, and from then on it is not called."""
    failed: list[Exception] = []
    for name in _CALLED_BY_LIGHTNING:
        setattr(logger, name, partial(_call, logger, getattr(logger, name), failed))
    return logger


def _call(logger: Logger, function: Callable, failed: list[Exception], *args: Any, **kwargs: Any) -> None:
    if failed:
        return
    try:
        function(*args, **kwargs)
    except Exception as error:
        failed.append(error)
        said = " ".join(str(error).split())[:200]
        say(
            f"{type(logger).__name__} failed and is not used from now on ({type(error).__name__}: {said});"
            " metrics.csv has all figures"
        )
