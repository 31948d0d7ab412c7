"""How training grows: with the corpus, with the virtual tokens, with processes.

`python -m benchmarks.growth [--data ROOT] [key=value ...]`. Each row is a run of diva.train of its own, on an empty
cache, with both losses; its memory is the most that its largest process held.
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
from benchmarks.measure import RESULTS, markdown, write_results
from diva.cli import exit_codes
from diva.errors import UserError
from diva.pretrained import cache_dir

SIZES = (1, 4, 16)
QUERIES = (32, 112, 448)
PROCESSES = (1, 2)
USUAL_QUERIES = 64


@dataclass(frozen=True)
class Row:
    """One run."""

    times: int = 1  # the corpus
    queries: int = USUAL_QUERIES
    processes: int = 1


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    rows = [Row(times=n) for n in SIZES]
    rows += [Row(queries=n) for n in QUERIES]
    rows += [Row(processes=n) for n in PROCESSES if n > 1]
    measured = [measure(row, arguments) for row in rows]
    text = report(measured)
    write_results("growth", {"rows": measured, "steps": arguments.steps}, text, arguments.into)
    print(text)


def measure(row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """Clips a second, seconds in all, and the peak of memory of one run; UserError where it fails."""
    corpus = joined_clips(arguments.data, arguments.clips * row.times)
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
        summary = json.loads((folder / "run" / "summary.json").read_text())
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return {
        "clips": summary["clips_in_corpus"]["train"],
        "queries": row.queries,
        "processes": row.processes,
        "clips_per_second": summary["clips_per_second"],
        "seconds": summary["seconds"],
        "megabytes": round(usage.ru_maxrss * kilobyte / 1e6),
    }


def overrides(row: Row, corpus: Path, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Of diva.train's config, for a short run. Transcripts that do not fit into few queries are left out."""
    return [
        "data=jsonl",
        f"data.root={corpus}",
        f"data.batch_size={arguments.batch}",
        f"data.query_tokens={row.queries}",
        "data.max_skipped_fraction=1",
        "objective=diva",
        f"hardware={'cpu' if row.processes == 1 else 'cpu_ddp'}",
        f"hardware.devices={row.processes}",
        f"max_steps={arguments.steps}",
        f"val_every={arguments.steps}",
        f"checkpoint_every={arguments.steps}",
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


def report(rows: list[dict[str, Any]]) -> str:
    """The table of growth.md."""
    columns = ("clips", "virtual tokens", "processes", "clips/s", "run, s", "peak, MB")
    return "# Growth\n\n" + markdown(columns, [tuple(row.values()) for row in rows])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the spoken corpus's data.root")
    parser.add_argument("--clips", type=int, default=32, help="of the smallest corpus")
    parser.add_argument("--batch", type=int, default=8, help="clips a step")
    parser.add_argument("--steps", type=int, default=4, help="of each run")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for growth.json and growth.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of diva.train's config")
    return parser.parse_args()


if __name__ == "__main__":
    main()
