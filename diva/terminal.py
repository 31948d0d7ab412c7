"""What commands show beside their results: lines, tables and progress bars, by rich.

Text of the user is never markup, and a terminal that has gone (a closed pipe, a full disk behind `2>`) ends nothing.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


class _Stream:
    """A stream whose reader may have gone: what cannot be written is lost."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stderr_console() -> Console:
    """For what is said beside a result."""
    return Console(file=_Stream(sys.stderr), markup=False, emoji=False, highlight=False)  # type: ignore[arg-type]


def stdout_console() -> Console:
    """For a result that is a table."""
    return Console(markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """One line on stderr."""
    stderr_console().print(text, soft_wrap=True)


@contextmanager
def decorating(what: str) -> Iterator[None]:
    """Whatever fails within is said in one line and ends nothing: the results are written by then."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"warning: no {what} ({reason[:300]}); everything else is written")


def label(text: str = "{task.description}", style: str = "none") -> TextColumn:
    """A column of a progress bar."""
    return TextColumn(text, style=style, markup=False)


def progress(*columns: ProgressColumn, transient: bool = False) -> Progress:
    """A progress bar of these columns, on stderr."""
    return Progress(*columns, console=stderr_console(), transient=transient)


def progress_bar(*figures: ProgressColumn, transient: bool = False) -> Progress:
    """Description, bar, how many of how many are done, any further `figures`, and the time that is left."""
    columns = label(), BarColumn(), MofNCompleteColumn(), *figures, TimeRemainingColumn()
    return progress(*columns, transient=transient)


def track(
    items: Iterable[T], description: str, total: int | None = None, done: int = 0, transient: bool = False
) -> Iterator[T]:
    """`items`, with a progress bar while they are taken; `done` of `total` are done before."""
    with progress_bar(transient=transient) as bar:
        yield from bar.track(items, total=total, completed=done, description=description)


@contextmanager
def progress_open(path: Path, what: str) -> Iterator[BinaryIO]:
    """The file, opened to be read, with a progress bar that says `what` is done to it."""
    with (
        progress(label(), BarColumn(), TimeRemainingColumn()) as bar,
        bar.open(path, "rb", description=f"{what} {path.name}") as file,
    ):
        yield file
