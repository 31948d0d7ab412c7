"""What a faster computation costs in quality: the mini recipe, shortened, as it is shipped and with one thing changed.

`python -m benchmarks.quality [--steps 180] [--seeds 1 2 3] [--folder runs/quality] [key=value ...]`. Runs of
diva.train, two at a time; the same command continues what was interrupted. All variants take as many steps on as many
clips, so a shortened run tells which variant learns faster, and what it would come to only in part. With fewer queries
than the 12 tokens of the corpus's longest transcripts clips would have to be left out, and variants differ in more.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measure import RESULTS, markdown, write_results
from diva.command import exit_codes
from diva.config import check_overrides
from diva.errors import UserError
from diva.markdown import spread
from diva.sweeps.folder import SweepRun, place_runs
from diva.sweeps.local import LocalRuns
from diva.sweeps.sweep import Grid, carry_out

FIGURES = ("val/alignment_accuracy", "val/first_token_agreement", "val/kl")
AT_A_TIME = 2


@dataclass(frozen=True)
class Variant:
    """Overrides of diva.train's config that change one thing."""

    key: str  # names its folder
    name: str
    overrides: tuple[str, ...] = ()


VARIANTS = (
    Variant("shipped", "as shipped: encoder on the bucket's length, 16 queries, aligned first"),
    Variant("both", "both losses from the first step", ("objective.distill_from_step=0",)),
    Variant("queries_12", "12 queries", ("data.query_tokens=12",)),
    Variant("queries_32", "32 queries", ("data.query_tokens=32",)),
    Variant(
        "queries_in_proportion",
        "32 queries, 8 a second read",
        ("data.query_tokens=32", "model.adapter.tokens_per_second=8"),
    ),
    Variant("full", "encoder on 30 s", ("model.encoder.context=full",)),
)


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    chosen = [variant for variant in VARIANTS if variant.key in arguments.variants]
    runs = {variant.key: runs_of(variant, arguments) for variant in chosen}
    train([run for of_variant in runs.values() for run in of_variant])
    rows = [figures(variant, runs[variant.key]) for variant in chosen]
    trained_at = revisions([run for of_variant in runs.values() for run in of_variant])
    text = report(rows, arguments.steps, len(arguments.seeds), trained_at)
    result = {"steps": arguments.steps, "trained_at": trained_at, "rows": rows}
    write_results("quality", result, text, arguments.into)
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def runs_of(variant: Variant, arguments: argparse.Namespace) -> list[SweepRun]:
    """A run for each seed, where it is or is to be; one of other steps or overrides is another run."""
    steps = arguments.steps
    given = [
        "experiment=mini",
        f"max_steps={steps}",
        f"objective.distill_from_step={steps * 2 // 3}",
        f"val_every={steps}",
        "sample_responses=0",
        *arguments.overrides,
        *variant.overrides,
    ]
    # Hydra refuses a key that is given twice: a variant's goes before the recipe's.
    last = {override.partition("=")[0]: override for override in given}
    check_overrides("train", list(last.values()))
    wanted = [(*last.values(), f"seed={seed}") for seed in arguments.seeds]
    return place_runs(arguments.folder / variant.key, wanted)


def train(runs: list[SweepRun]) -> None:
    """Those that are not finished yet; UserError where one fails."""
    varied = {override.partition("=")[0] for variant in VARIANTS for override in variant.overrides}
    carry_out(Grid(runs), LocalRuns(AT_A_TIME, "cpu", 1), [], {"seed", *varied})
    failed = [run for run in runs if run.outcome.status != "finished"]
    if failed:
        first, reason = failed[0].folder, failed[0].outcome.reason
        raise UserError(f"{len(failed)} of {len(runs)} runs have not finished, {first} for one: {reason}")


def figures(variant: Variant, runs: list[SweepRun]) -> dict[str, Any]:
    """What the runs of a variant came to, a value for each seed."""
    found = [run.figures for run in runs]
    return {"variant": variant.name, "minutes": [round(run["seconds"] / 60, 2) for run in found]} | {
        name: [round(run[name], 4) for run in found] for name in FIGURES
    }


def revisions(runs: list[SweepRun]) -> list[str]:
    """Of the code that trained them: runs that were finished before are not made again."""
    return sorted({json.loads((run.folder / "summary.json").read_text())["revision"] for run in runs})


def report(rows: list[dict[str, Any]], steps: int, seeds: int, trained_at: list[str]) -> str:
    """The table of quality.md."""
    header = ("", "alignment accuracy", "first-token agreement", "KL", "minutes")
    cells = [
        (row["variant"], *(spread(row[name], digits=3) for name in FIGURES), spread(row["minutes"], digits=1))
        for row in rows
    ]
    return (
        f"# What speed costs in quality\n\n{steps} steps of the mini recipe, {seeds} seeds, mean ± standard deviation"
        " on held-out sentences. Minutes are of two runs beside each other, loading and what of the frozen parts'"
        f" tables was not there yet included. Trained at revision {', '.join(trained_at)}.\n\n"
        + markdown(header, cells)
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=(__doc__ or "").splitlines()[0])
    keys = [variant.key for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=keys, default=keys)
    parser.add_argument("--steps", type=int, default=180, help="the last third with both losses")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"), help="of the runs")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for quality.json and quality.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of diva.train's config")
    return parser.parse_args()


if __name__ == "__main__":
    main()
