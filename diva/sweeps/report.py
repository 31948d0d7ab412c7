"""Report on a sweep: `python -m diva.sweep_report DIR [--into FOLDER] [--metric NAME]`.

Prints the results, and writes sweep.md and sweep.png into FOLDER (DIR unless given). The sweep may still be running.
"""

import argparse
from pathlib import Path

from diva.command import exit_codes
from diva.errors import UserError
from diva.sweeps.folder import find_runs
from diva.sweeps.picture import METRIC, draw
from diva.sweeps.table import gather, markdown, print_tables


@exit_codes
def main() -> None:
    parser = argparse.ArgumentParser(prog="diva.sweep_report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="a sweep's folder: hydra.sweep.dir of its command")
    parser.add_argument(
        "--into", type=Path, help="where sweep.md and sweep.png go; the sweep's folder unless given"
    )
    parser.add_argument("--metric", default=METRIC, metavar="NAME", help="of validation, in the picture")
    arguments = parser.parse_args()
    for file in report(arguments.sweep, arguments.into or arguments.sweep, arguments.metric):
        print(file)


def report(sweep: Path, into: Path, metric: str = METRIC) -> list[Path]:
    """Print the tables of the sweep in folder `sweep`, write sweep.md and sweep.png into `into`; returns the two.

    Raises UserError if `sweep` has no run, or if its runs do not have the metric.
    """
    runs = find_runs(sweep)
    if not runs:
        raise UserError(f"{sweep} holds no run of a sweep; give the hydra.sweep.dir of a -m command")
    results = gather(runs)
    if metric != METRIC and metric not in results.figures:
        known = ", ".join(results.figures) or "none yet"
        raise UserError(f"--metric {metric}: no finished run in {sweep} has this metric; there are: {known}")
    print_tables(results, str(sweep))
    into.mkdir(parents=True, exist_ok=True)
    table, picture = into / "sweep.md", into / "sweep.png"
    table.write_text(markdown(results), encoding="utf-8")
    draw(results, picture, metric)
    return [table, picture]
