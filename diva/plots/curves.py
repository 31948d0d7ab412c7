"""A run's curves as a picture, and its results as a block of a README."""

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diva import markdown
from diva.errors import UserError
from diva.plots import style
from diva.training.measures import ANSWER_MEASURES, MEASURES, SHARED_MEASURES

_LOSSES = ("train/align", "train/distill")
_MEASURES = MEASURES + ANSWER_MEASURES + SHARED_MEASURES
_LOGARITHMIC, _COUNTS = ("kl", "answer_kl"), ("shared_tokens",)
_COLUMNS, _INCHES_PER_ROW = 3, 2.2


def newest_run(folder: Path) -> Path:
    """The run below `folder` that ended last. Raises UserError if there is none."""
    ended = finished_runs(folder)
    if not ended:
        raise UserError(f"there is no finished run below {folder}/; train one with: make train")
    return ended[0]


def finished_runs(folder: Path) -> list[Path]:
    """The runs below `folder` that have ended, the newest first."""
    ended = sorted(folder.glob("**/summary.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent for file in ended]


def draw(run: Path) -> Path:
    """Write RUN/curves.png. Raises UserError for a folder that is not a run."""
    if not (run / "metrics.csv").is_file():
        raise UserError(f"{run} is not a run: it has no metrics.csv")
    path = run / "curves.png"
    path.write_bytes(style.png(curves(pa.csv.read_csv(run / "metrics.csv"))))
    return path


@style.applied()
def curves(table: pa.Table) -> Figure:
    """One panel for each loss and each metric of validation, over optimizer steps; the legend has its own place."""
    sets = validation_sets(table.column_names)
    losses = [column for column in _LOSSES if series(table, column)[0]]
    measures = [name for name in _MEASURES if any(f"{of}/{name}" in table.column_names for of in sets)]
    steps = max(table["step"].to_pylist(), default=0) + 1
    rows = -(-(len(losses) + len(measures) + 1) // _COLUMNS)
    figure = Figure(figsize=(style.WIDTH, _INCHES_PER_ROW * rows))
    cells = iter(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for column in losses:
        axes = next(cells)
        axes.plot(*series(table, column), color=style.GREYS[0], linewidth=1)
        _label(axes, column, steps)
        axes.set_ylim(bottom=0)
    for name in measures:
        _validation(axes := next(cells), table, name, sets)
        _label(axes, name, steps)
    _legend(next(cells), figure)
    for axes in cells:
        axes.set_axis_off()
    return figure


def _label(axes: Axes, key: str, steps: int) -> None:
    axes.set_title(textwrap.fill(style.named(key), 27))
    axes.set(xlabel="optimizer step", xlim=(0, 1.02 * steps))


def _validation(axes: Axes, table: pa.Table, name: str, sets: list[str]) -> None:
    """One metric, with one line for each set of clips."""
    for of, color, line in zip(sets, style.COLOURS[::3], style.LINES, strict=False):
        steps, values = series(table, f"{of}/{name}")
        axes.plot(steps, values, line, color=color, marker=style.marker(steps), label=style.named(of))
    if name in _LOGARITHMIC:
        style.logarithmic(axes)
    elif name in _COUNTS:
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(0, 1)


def _legend(axes: Axes, figure: Figure) -> None:
    """Fill the axes with the names of all named lines."""
    found = {
        label: handle
        for of in figure.axes
        for handle, label in zip(*of.get_legend_handles_labels(), strict=True)
    }
    axes.set_axis_off()
    if found:
        axes.legend(
            list(found.values()), list(found), loc="center left", title="validation", alignment="left"
        )


def validation_sets(columns: Iterable[str]) -> list[str]:
    """The sets of clips that validation measured, from the names of the logged columns; the first is `val`."""
    return sorted({column.split("/")[0] for column in columns if column.endswith("/kl")})


def series(table: pa.Table, column: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows in which `column` was logged."""
    if column not in table.column_names:
        return [], []
    pairs = zip(table["step"].to_pylist(), table[column].to_pylist(), strict=True)
    logged = [(step, value) for step, value in pairs if value is not None]
    return [step for step, _ in logged], [value for _, value in logged]


def results(summary: dict[str, Any]) -> str:
    """The final metrics of a run, their number of clips and the time of the run, as markdown."""
    names = validation_sets(summary)
    there = [key for key in _MEASURES if f"{names[0]}/{key}" in summary]
    rows = [[style.named(key), *(f"{summary[f'{name}/{key}']:.3f}" for name in names)] for key in there]
    rows.append(["clips", *(f"{summary['clips_in_corpus'][name]:,}" for name in names)])
    corpus = summary.get("seconds_of_data", 0) / 60  # not in summaries of older runs
    of_them = f" ({corpus:.1f} of them for the corpus)" if corpus >= 0.1 else ""
    return "\n".join(
        [
            *markdown.table(["", *map(style.named, names)], rows),
            "",
            f"This run took {summary['seconds'] / 60:.1f} minutes{of_them} on {summary['machine']['cpu_threads']} CPU"
            f" threads, {summary['clips_per_second']:.1f} clips a second, at revision `{summary['revision']}`.",
        ]
    )


def answers(summary: dict[str, Any]) -> str:
    """A run's sample responses as markdown."""
    rows = [[row[name] for name in ("question", "teacher", "student")] for row in summary["responses"]]
    return "\n".join(
        markdown.table(["question", "teacher (reads the text)", "student (gets the speech)"], rows)
    )


_BLOCKS = {"results": results, "answers": answers}


def write_between_marks(file: Path, summary: dict[str, Any]) -> None:
    """Fill the marked blocks of `file`. Raises UserError if it has no marks, or a mark without its end."""
    text = file.read_text(encoding="utf-8")
    for name, block in _BLOCKS.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        if found:
            _, ended, after = rest.partition(end)
            if not ended:
                raise UserError(f"{file} has '{begin}' and no '{end}' after it; add it where the {name} end")
            text = f"{before}{begin}\n{block(summary)}\n{end}{after}"
    if not any(f"<!-- {name} -->" in text for name in _BLOCKS):
        marks = " or ".join(f"'<!-- {name} -->'" for name in _BLOCKS)
        raise UserError(f"{file} has no mark to write the results behind: add {marks}, and its end")
    file.write_text(text, encoding="utf-8")
