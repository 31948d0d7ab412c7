"""A run's curves as a picture, and its results as a block of a README."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyarrow as pa
import pyarrow.csv

from diva import markdown
from diva.errors import UserError

_LOSSES = {"train/align": "alignment, per token", "train/distill": "distillation, per clip"}
_FIGURES = {
    "alignment_accuracy": "alignment accuracy",
    "first_token_agreement": "first-token agreement with the text teacher",
    "kl": "KL to the text teacher, nats",
}


def newest_run(folder: Path) -> Path:
    """The run below `folder` that ended last. Raises UserError where there is none."""
    ended = finished_runs(folder)
    if not ended:
        raise UserError(f"there is no finished run below {folder}/; train one with: make train")
    return ended[0]


def finished_runs(folder: Path) -> list[Path]:
    """The runs below `folder` that have ended, the newest first."""
    ended = sorted(folder.glob("**/summary.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent for file in ended]


def draw(run: Path) -> Path:
    """Losses on the left, what validation measures on the right, over optimizer steps."""
    if not (run / "metrics.csv").is_file():
        raise UserError(f"{run} is not a run: it has no metrics.csv")
    table = pa.csv.read_csv(run / "metrics.csv")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for column, label in _LOSSES.items():
        left.plot(*series(table, column), label=label, linewidth=1)
    left.set(xlabel="optimizer step", ylabel="mean L2 distance", title="training losses", ylim=(0, None))
    names = sorted({column.split("/")[0] for column in table.column_names if column.endswith("/kl")})
    for name, style in zip(names, ("-", "--", ":", "-."), strict=False):
        for (figure_name, label), color in zip(_FIGURES.items(), ("C0", "C1", "C2"), strict=True):
            shown = label if name == "val" else f"{label}, {name.removeprefix('val_').replace('_', ' ')}"
            right.plot(*series(table, f"{name}/{figure_name}"), style, color=color, label=shown, marker=".")
    right.set(xlabel="optimizer step", title="held-out speech", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    path = run / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def series(table: pa.Table, column: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows in which `column` was logged."""
    if column not in table.column_names:
        return [], []
    pairs = zip(table["step"].to_pylist(), table[column].to_pylist(), strict=True)
    logged = [(step, value) for step, value in pairs if value is not None]
    return [step for step, _ in logged], [value for _, value in logged]


def results(summary: dict[str, Any]) -> str:
    """The final metrics of a run, how many clips they were measured on and how long it took, as markdown."""
    names = sorted({key.split("/")[0] for key in summary if key.endswith("/kl")})
    header = [
        "held-out sentences" if name == "val" else name.removeprefix("val_").replace("_", " ")
        for name in names
    ]
    rows = [
        [label, *(f"{summary[f'{name}/{key}']:.3f}" for name in names)] for key, label in _FIGURES.items()
    ]
    rows.append(["clips", *(f"{summary['clips_in_corpus'][name]:,}" for name in names)])
    corpus = summary.get("seconds_of_data", 0) / 60  # not in summaries of older runs
    of_them = f" ({corpus:.1f} of them for the corpus)" if corpus >= 0.1 else ""
    return "\n".join(
        [
            *markdown.table(["", *header], rows),
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
    """Fill the blocks whose marks `file` has. Raises UserError where it has none, or a mark without its end."""
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
