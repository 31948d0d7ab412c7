"""Accuracy of diva.plan: compares its predictions with a short real run in a process of its own.

`python -m benchmarks.plan_check [--steps 12] [--into FOLDER] [key=value ...]` trains a few steps of both phases of
experiment=mini, or of what the overrides say, and compares the seconds of a step and the most memory it ever had.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.measure import RESULTS, markdown, seconds_a_clip, write_results
from diva.command import exit_codes, quieten
from diva.errors import UserError
from diva.plan import Plan, compose, make_plan

_WARM_UP = 3  # steps of each phase


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    quieten()
    clips = compose(arguments.overrides).data.batch_size * arguments.steps
    overrides = [*arguments.overrides, *short(arguments.steps, clips)]
    plan = make_plan(compose(overrides))
    load = os.getloadavg()
    rows = compare(plan, measure(overrides, arguments.steps))
    text = report(rows, arguments.steps)
    figures = {"steps": arguments.steps, "rows": rows, "load": load, "rests_on": plan.rests_on}
    write_results("plan", figures, text, arguments.into)
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def short(steps: int, clips: int) -> list[str]:
    """Overrides that leave a run so many steps of each phase, and its validation."""
    return [
        # Tables are memory-mapped files. Only parts that were read are in memory, so the run has to read all of them.
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
        seconds = seconds_a_clip(Path(folder) / "run")
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


def report(rows: list[dict[str, float | str]], steps: int) -> str:
    """The table of plan.md."""
    cells = [(r["figure"], f"{r['predicted']:.3f}", f"{r['measured']:.3f}", r["ratio"]) for r in rows]
    return (
        f"# The plan and a run\n\nWhat `diva.plan` predicts, and the median of {steps - _WARM_UP} steps of each phase"
        " of a real run, the first ones left out; the most memory that its process ever had.\n\n"
    ) + markdown(("", "predicted", "measured", "ratio"), cells)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.plan_check", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--steps", type=int, default=12, help="of each phase")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for plan.json and plan.md")
    parser.add_argument("overrides", nargs="*", help="as diva.train takes them")
    return parser.parse_args()


if __name__ == "__main__":
    main()
