"""How every command of diva speaks.

Exit codes: 0 done, 2 the user's input is wrong (one line says what and how to mend it), 1 our fault.
"""

import argparse
import functools
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from diva.errors import UserError


def exit_codes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a UserError into one line on stderr and exit code 2."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            fail(error)

    return wrapped


def fail(error: UserError | str) -> None:
    """Say what is wrong in one line and leave with exit code 2."""
    print(f"diva: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def quieten() -> None:
    """Libraries' notes that say nothing to the user of a command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers  # takes a second, which a command that only says what is wrong does not need

    warnings.filterwarnings("ignore", module=r"(lightning|torch|transformers)\b")
    transformers.utils.logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def positive(text: str) -> float:
    """An option's type: a number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def count(text: str) -> int:
    """An option's type: a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def add_parts(parser: argparse.ArgumentParser) -> None:
    """The options of a command line that say of what a model was made."""
    parser.add_argument(
        "--llm", help="the LLM it was trained with, where its files do not say or it lies elsewhere"
    )
    parser.add_argument("--encoder", help="the same of the Whisper it was trained with")
