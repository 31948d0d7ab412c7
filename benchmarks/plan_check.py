"""How near diva.plan comes: a short real run in a process of its own, beside what the plan says of it.

`python -m benchmarks.plan_check [--steps 12] [--into FILE] [key=value ...]` trains a few steps of both phases of
experiment=mini, or of what the overrides say, and compares the seconds of a step and the most memory it ever had.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from diva.cli import exit_codes, quieten
from diva.errors import UserError
from diva.plan import Plan, compose, make_plan
from diva.records import environment

_WARM_UP = 3  # steps of each phase


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    quieten()
    clips = compose(arguments.overrides).data.batch_size * arguments.steps
    overrides = [*arguments.overrides, *short(arguments.steps, clips)]
    plan = make_plan(compose(overrides))
    rows = compare(plan, measure(overrides, arguments.steps))
    report(rows)
    if arguments.into:
        result = {"rows": rows, "load": os.getloadavg(), "rests_on": plan.rests_on, **environment()}
        arguments.into.write_text(json.dumps(result, indent=2) + "\n")


def short(steps: int, clips: int) -> list[str]:
    """Overrides that leave a run so many steps of each phase, and its validation."""
    return [
        # Tables are mapped files: what a run has not looked at yet is in no memory, so it looks at all there is.
        f"data.max_train_clips={clips}",
        f"max_steps={2 * steps}",
        f"objective.distill_from_step={steps}",
        f"val_every={2 * steps}",
        f"checkpoint_every={2 * steps}",
        "log_every=1",
        "sample_responses=0",
        "logger=csv",
    ]


@dataclass(frozen=True)
class Measured:
    """What a run took: seconds of a step by phase, and the most bytes that its process ever had."""

    alignment: float
    distillation: float
    peak: int


def measure(overrides: list[str], steps: int) -> Measured:
    """Run it in a fresh process. Raises UserError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "diva.train", *overrides, f"hydra.run.dir={folder}/run"]
        with open(f"{folder}/log", "w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            if status != 0:
                log.seek(0)
                raise UserError(f"the run failed: {log.read()[-500:]}")
        with open(f"{folder}/run/metrics.csv") as file:
            rows = [row for row in csv.DictReader(file) if row["train/clips_per_second"]]
    # Of a clip: batches may have empty rows.
    seconds = [1 / float(row["train/clips_per_second"]) for row in rows]
    halves = seconds[_WARM_UP:steps], seconds[steps + _WARM_UP :]
    scale = 1 if sys.platform == "darwin" else 1024
    return Measured(*map(statistics.median, halves), usage.ru_maxrss * scale)


def compare(plan: Plan, measured: Measured) -> list[dict[str, float | str]]:
    """Rows of predicted and measured figures."""
    clips = {phase.name: phase.clips / phase.steps for phase in plan.phases if phase.steps}
    predicted = {phase.name: phase.seconds / phase.steps for phase in plan.phases if phase.steps}
    pairs = {
        f"{name}, seconds a step": (predicted[name], getattr(measured, name) * clips[name])
        for name in predicted
    }
    pairs["memory, GB"] = plan.memory_total / 1e9, measured.peak / 1e9
    return [
        {"figure": name, "predicted": round(p, 4), "measured": round(m, 4), "ratio": round(p / m, 3)}
        for name, (p, m) in pairs.items()
    ]


def report(rows: list[dict[str, float | str]]) -> None:
    table = Table("figure", "predicted", "measured", "ratio")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.plan_check", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--steps", type=int, default=12, help="of each phase")
    parser.add_argument("--into", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("overrides", nargs="*", help="as diva.train takes them")
    return parser.parse_args()


if __name__ == "__main__":
    main()
