"""Markdown tables, and the numbers in their cells."""

import statistics
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]], numbers: bool = False) -> list[str]:
    """The lines of a table. With `numbers`, all columns except the first are right-aligned."""
    rule = ["---", *(["---:" if numbers else "---"] * (len(header) - 1))]
    lines = [_line(header), f"|{'|'.join(rule)}|"]
    return lines + [_line(row) for row in rows]


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean ± sample standard deviation. A single value is printed alone; no values give an empty text."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
