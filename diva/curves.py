"""Draw a run's curves: `python -m diva.curves [RUN_DIR] [--into FOLDER]` (the newest run unless named).

Writes curves.png into the run's folder; with --into also copies the figures that a README rests on there:
summary.json, responses.tsv and results.md, a table to paste.
"""

import argparse
import json
import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyarrow as pa
import pyarrow.csv

from diva.cli import exit_codes
from diva.errors import UserError

_LOSSES = {"train/align": "alignment, per token", "train/distill": "distillation, per clip"}
_FIGURES = {
    "alignment_accuracy": "alignment accuracy",
    "first_token_agreement": "first-token agreement with the text teacher",
    "kl": "KL to the text teacher, nats",
}


@exit_codes
def main() -> None:
    parser = argparse.ArgumentParser(prog="diva.curves", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "run", type=Path, nargs="?", help="a run directory; the newest below runs/ unless given"
    )
    parser.add_argument("--into", type=Path, help="also copy picture, summary and responses here")
    arguments = parser.parse_args()
    run = arguments.run or newest_run(Path("runs"))
    picture = draw(run)
    print(picture)
    if arguments.into:
        arguments.into.mkdir(parents=True, exist_ok=True)
        for file in (picture, run / "summary.json", run / "responses.tsv"):
            shutil.copy(file, arguments.into)
        (arguments.into / "results.md").write_text(results_table(run / "summary.json"))


def newest_run(folder: Path) -> Path:
    """The run below `folder` that ended last. Raises UserError where there is none."""
    ended = sorted(folder.glob("**/summary.json"), key=lambda file: file.stat().st_mtime)
    if not ended:
        raise UserError(f"there is no finished run below {folder}/; train one with: make train")
    return ended[-1].parent


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


def results_table(summary_file: Path) -> str:
    """The final figures as a markdown table, one column for each validation set."""
    summary = json.loads(summary_file.read_text())
    names = sorted({key.split("/")[0] for key in summary if key.endswith("/kl")})
    header = [
        "",
        *(name.replace("val_", "").replace("_", " ").replace("val", "held-out sentences") for name in names),
    ]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for key, label in _FIGURES.items():
        values = (f"{summary[f'{name}/{key}']:.3f}" for name in names)
        lines.append(f"| {label} | " + " | ".join(values) + " |")
    speed = f"{summary['clips_per_second']:.1f} clips/s, {summary['seconds'] / 60:.1f} min"
    return "\n".join(lines) + f"\n\n{speed}, revision {summary['revision']}.\n"


if __name__ == "__main__":
    main()
