"""Real subprocesses of diva's commands, on one thread each."""

import csv
import os
import subprocess
import sys
from pathlib import Path


def environment(cache: Path) -> dict[str, str]:
    # One thread: sums in a fixed order, and no fight over two cores.
    return os.environ | {
        "DIVA_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(
    module: str, *arguments: str, cache: Path, cwd: Path, timeout: float = 200
) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(module, *arguments),
        cwd=cwd,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def metrics(run_folder: Path) -> list[dict[str, str]]:
    with open(run_folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def losses(run_folder: Path) -> dict[int, tuple[str, ...]]:
    """step -> (loss, align, distill) as written, digit for digit."""
    names = ("train/loss", "train/align", "train/distill")
    rows = (row for row in metrics(run_folder) if row["train/loss"])
    return {int(row["step"]): tuple(row.get(name, "") for name in names) for row in rows}
