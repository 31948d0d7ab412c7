"""Exit codes and error messages of all commands.

Exit codes: 0 done; 2 the user's input is wrong (one line says what is wrong and how to correct it); 1 an error in diva.
"""

import argparse
import errno
import functools
import io
import logging
import math
import os
import pwd
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diva.errors import UserError

# Errors of the operating system that the user can correct, and how.
_REMEDIES = {
    errno.EACCES: "give this user the right to it, or name another place",
    errno.EPERM: "give this user the right to it, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.ENOTDIR: "a file stands where a folder is needed; name another place",
    errno.EEXIST: "a file stands where a folder is needed; name another place",
    errno.EISDIR: "a folder stands where a file is needed; name another place",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.ENOSPC: "make room; a training run goes on from its last checkpoint with resume=ITS_FOLDER",
    errno.EDQUOT: "make room; a training run goes on from its last checkpoint with resume=ITS_FOLDER",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def refusal(error: BaseException) -> str | None:
    """One line about an error of the operating system that the user can correct; None for any other error.

    Libraries written in Rust (safetensors) have the error number only in their message.
    """
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    if number not in _REMEDIES:
        return None
    place = getattr(error, "filename2", None) or getattr(error, "filename", None)
    what = f"{os.fsdecode(place)}: " if isinstance(place, str | bytes | os.PathLike) else ""
    return f"{what}{os.strerror(number)}; {_REMEDIES[number]}"


@contextmanager
def in_one_line() -> Iterator[None]:
    """Print an error that the user can correct in one line, and exit with code 2."""
    try:
        yield
    except UserError as error:
        fail(error)
    except Exception as error:
        if said := refusal(error):
            fail(said)
        raise


def exit_codes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a UserError into one line on stderr and exit code 2. Characters that the terminal lacks become escapes."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        name_user()
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # otherwise Hydra shortens errors of other code
        with in_one_line():
            return function(*args, **kwargs)

    return wrapped


def fail(error: UserError | str) -> None:
    """Print the error in one line and exit with code 2."""
    print(f"diva: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def name_user() -> None:
    """Set a user name and a home folder if the user id has none (`docker --user 12345`). Libraries need them."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", f"uid{os.getuid()}")
        if not os.environ.get("HOME"):
            home = os.path.join(tempfile.gettempdir(), os.environ["USER"])
            os.makedirs(home, mode=0o700, exist_ok=True)
            os.environ["HOME"] = home
            print(f"HOME is not set: caches go to {home}", file=sys.stderr)


def quieten() -> None:
    """Turn off messages of libraries that do not help the user of a command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers  # imported here: it takes a second, and a command that only prints an error does not need it

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
    """An option's type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the frozen parts of a model."""
    parser.add_argument(
        "--llm", help="the LLM it was trained with, where its files do not say or it lies elsewhere"
    )
    parser.add_argument("--encoder", help="the same of the speech encoder it was trained with")
    parser.add_argument(
        "--encoder-dtype", help="precision of the encoder alone; float32 is the published code's"
    )
