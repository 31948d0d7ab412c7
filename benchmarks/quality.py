"""What a faster computation costs in quality: the mini recipe, shortened, as it is shipped and with one thing changed.

`python -m benchmarks.quality [--steps 240] [--seeds 1 2 3] [--folder runs/quality] [key=value ...]`. Each variant is a
multirun of diva.train, two runs at a time; the same command continues what was interrupted. All variants take as many
steps on as many clips, so a shortened run tells which variant learns faster, and what it would come to only in part.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measure import RESULTS, markdown, write_results
from diva.cli import exit_codes
from diva.errors import UserError
from diva.markdown import spread
from diva.sweep_folder import find_runs

SHIPPED = "as shipped: encoder on the bucket's length, 16 queries, aligned first"
FIGURES = ("val/alignment_accuracy", "val/first_token_agreement", "val/kl")


@dataclass(frozen=True)
class Variant:
    """Overrides of diva.train's config that change one thing."""

    key: str  # names its folder
    name: str
    overrides: tuple[str, ...] = ()


VARIANTS = (
    Variant("shipped", SHIPPED),
    Variant("both", "both losses from the first step", ("objective.distill_from_step=0",)),
    Variant("queries_32", "32 queries", ("data.query_tokens=32",)),
    Variant("full", "encoder on 30 s", ("model.encoder.context=full",)),
)


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    chosen = [variant for variant in VARIANTS if variant.key in arguments.variants]
    rows = []
    for variant in chosen:
        train(variant, arguments)
        rows.append(figures(variant, arguments.folder / variant.key))
    text = report(rows, arguments.steps, len(arguments.seeds))
    write_results("quality", {"steps": arguments.steps, "rows": rows}, text, arguments.into)
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def train(variant: Variant, arguments: argparse.Namespace) -> None:
    """The runs of a variant that are not finished yet; UserError where one fails."""
    steps = arguments.steps
    command = [
        sys.executable,
        "-m",
        "diva.train",
        "-m",
        "sweep=parallel",
        "experiment=mini",
        f"max_steps={steps}",
    ]
    command += [f"objective.distill_from_step={steps * 2 // 3}", f"val_every={steps}", "sample_responses=0"]
    command += [*arguments.overrides, *variant.overrides]
    command += [
        f"seed={','.join(map(str, arguments.seeds))}",
        f"hydra.sweep.dir={arguments.folder / variant.key}",
    ]
    if subprocess.run(_last_wins(command), check=False).returncode:
        raise UserError(
            f"the runs of {variant.key!r} have not all finished: see {arguments.folder / variant.key}"
        )


def _last_wins(command: list[str]) -> list[str]:
    """Hydra refuses a key that is given twice: a variant's goes before the recipe's."""
    keys = {argument.partition("=")[0]: argument for argument in command if "=" in argument}
    return [argument for argument in command if "=" not in argument] + list(keys.values())


def figures(variant: Variant, folder: Path) -> dict[str, Any]:
    """What the runs of a variant came to, a value for each seed."""
    finished = [run.figures for run in find_runs(folder)]
    return {"variant": variant.name, "minutes": [round(run["seconds"] / 60, 2) for run in finished]} | {
        name: [round(run[name], 4) for run in finished] for name in FIGURES
    }


def report(rows: list[dict[str, Any]], steps: int, seeds: int) -> str:
    """The table of quality.md."""
    header = ("", "alignment accuracy", "first-token agreement", "KL", "minutes")
    cells = [
        (row["variant"], *(spread(row[name], digits=3) for name in FIGURES), spread(row["minutes"], digits=1))
        for row in rows
    ]
    return (
        f"# What speed costs in quality\n\n{steps} steps of the mini recipe, {seeds} seeds, mean ± standard deviation"
        " on held-out sentences. Minutes are of two runs beside each other, loading and the frozen parts' tables"
        " included.\n\n" + markdown(header, cells)
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=(__doc__ or "").splitlines()[0])
    keys = [variant.key for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=keys, default=keys)
    parser.add_argument("--steps", type=int, default=240, help="the last third with both losses")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"), help="of the runs")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for quality.json and quality.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of diva.train's config")
    return parser.parse_args()


if __name__ == "__main__":
    main()
