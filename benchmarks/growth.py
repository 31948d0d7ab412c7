"""Speed and memory of training with a larger corpus, with more virtual tokens, and with more processes.

`python -m benchmarks.growth [--data ROOT] [key=value ...]`. Each row is a run of diva.train of its own, on an empty
cache, with both losses, and differs from the first in one thing; its first steps do not count, and its memory is the
most that its largest process held. Clips are two sentences long at most: no transcript has more than 32 tokens, so
with any number of virtual tokens the same ones are trained on.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench import joined_clips
from benchmarks.measure import RESULTS, markdown, seconds_a_clip, summary, write_results
from diva.command import exit_codes
from diva.errors import UserError
from diva.models.pretrained import cache_dir

SIZES = (1, 4, 16)
QUERIES = (32, 112, 448)
PROCESSES = (1, 2)
SENTENCES = 2
WARM_UP = 3  # steps


@dataclass(frozen=True)
class Row:
    """One run."""

    times: int = SIZES[0]  # the corpus
    queries: int = QUERIES[0]
    processes: int = PROCESSES[0]


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    rows = [Row(times=n) for n in SIZES]
    rows += [Row(queries=n) for n in QUERIES[1:]]
    rows += [Row(processes=n) for n in PROCESSES[1:]]
    measured = [measure(row, arguments) for row in rows]
    text = report(measured, arguments)
    write_results("growth", {"batch": arguments.batch, "rows": measured}, text, arguments.into)
    print(text)


def measure(row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """Clips a second, seconds in all, and the peak of memory of one run; UserError where it fails."""
    corpus = joined_clips(arguments.data, arguments.clips * row.times, SENTENCES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "diva.train", *overrides(row, corpus, folder / "run", arguments)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {"DIVA_CACHE": str(_cache(folder))}
            )
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            end = (folder / "log").read_text().strip().splitlines()[-1:]
            raise UserError(f"the run {' '.join(command[2:])} failed: {' '.join(end)}")
        found = json.loads((folder / "run" / "summary.json").read_text())
        step = summary([value * arguments.batch for value in seconds_a_clip(folder / "run")[WARM_UP:]])
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return {
        "clips": found["clips_in_corpus"]["train"],
        "left_out": sum(found["clips_skipped"]["train"].values()),
        "queries": row.queries,
        "processes": row.processes,
        "step_seconds": step,
        "clips_per_second": round(arguments.batch / step["median"], 3),
        "seconds": found["seconds"],
        "megabytes": round(usage.ru_maxrss * kilobyte / 1e6),
    }


def overrides(row: Row, corpus: Path, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Of diva.train's config, for a run of one pass over the corpus at least: for less no table would be kept."""
    steps = max(WARM_UP + arguments.steps, -(-arguments.clips * row.times // arguments.batch))
    return [
        "data=jsonl",
        f"data.root={corpus}",
        f"data.batch_size={arguments.batch}",
        f"data.query_tokens={row.queries}",
        "data.max_skipped_fraction=1",
        "objective=diva",
        f"hardware={'cpu' if row.processes == 1 else 'cpu_ddp'}",
        f"hardware.devices={row.processes}",
        f"max_steps={steps}",
        f"val_every={steps}",
        f"checkpoint_every={steps}",
        "log_every=1",
        "sample_responses=0",
        f"hydra.run.dir={folder}",
        *arguments.overrides,
    ]


def _cache(folder: Path) -> Path:
    """An empty cache, but for the frozen models."""
    cache = folder / "cache"
    cache.mkdir()
    if (cache_dir() / "models").is_dir():
        (cache / "models").symlink_to((cache_dir() / "models").resolve())
    return cache


def report(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """The table of growth.md."""
    columns = ("clips", "left out", "virtual tokens", "processes", "step, s", "least", "most", "clips/s", "run, s",
               "peak, MB")  # fmt: skip
    cells = []
    for row in rows:
        step = row["step_seconds"]
        before = (row["clips"], row["left_out"], row["queries"], row["processes"])
        after = (row["clips_per_second"], row["seconds"], row["megabytes"])
        cells.append((*before, step["median"], step["least"], step["most"], *after))
    return (
        f"# Growth\n\nSteps of {arguments.batch} clips with both losses: the median of those after the first"
        f" {WARM_UP}, {arguments.steps} at least and one pass over the corpus; whole runs with loading and the frozen"
        " parts' tables.\n\n"
    ) + markdown(columns, cells)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the spoken corpus's data.root")
    parser.add_argument("--clips", type=int, default=32, help="of the smallest corpus")
    parser.add_argument("--batch", type=int, default=8, help="clips a step")
    parser.add_argument("--steps", type=int, default=12, help="of each run, that count, at least")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for growth.json and growth.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of diva.train's config")
    return parser.parse_args()


if __name__ == "__main__":
    main()
