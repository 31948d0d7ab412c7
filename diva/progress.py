"""The progress bar of a long piece of work, on stderr."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


def progress_bar(*figures: ProgressColumn) -> Progress:
    """Description, bar, how many of how many are done, any further `figures`, and the time that is left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *figures,
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
