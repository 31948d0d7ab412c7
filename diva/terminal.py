"""Terminal output of commands besides their results: lines, tables and progress bars, with rich.

The user's text is never read as markup. A closed terminal (a closed pipe, a full disk behind `2>`) does not end a
command.
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
    """A stream that may be closed. Text that cannot be written is dropped."""

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
    """For messages that are not results."""
    return Console(file=_Stream(sys.stderr), markup=False, emoji=False, highlight=False)  # type: ignore[arg-type]


def stdout_console() -> Console:
    """For a result that is a table."""
    return Console(markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """One line on stderr."""
    stderr_console().print(text, soft_wrap=True)


@contextmanager
def decorating(what: str) -> Iterator[None]:
    """Print any error inside as a one-line warning and continue. Use it after the results are written."""
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
    """A progress bar with description, bar, items done and total, further columns (`figures`), and remaining time."""
    columns = label(), BarColumn(), MofNCompleteColumn(), *figures, TimeRemainingColumn()
    return progress(*columns, transient=transient)


def track(
    items: Iterable[T], description: str, total: int | None = None, done: int = 0, transient: bool = False
) -> Iterator[T]:
    """`items`, with a progress bar during the iteration. `done` of `total` items are already done."""
    with progress_bar(transient=transient) as bar:
        yield from bar.track(items, total=total, completed=done, description=description)


@contextmanager
def progress_open(path: Path, what: str) -> Iterator[BinaryIO]:
    """The file, opened for reading, with a progress bar. `what` describes the work."""
    with (
        progress(label(), BarColumn(), TimeRemainingColumn()) as bar,
        bar.open(path, "rb", description=f"{what} {path.name}") as file,
    ):
        yield file
