"""Report on a sweep: `python -m diva.sweep_report DIR [--into FOLDER]`.

Prints the results, and writes sweep.md and sweep.png into FOLDER (DIR unless given). The sweep may still be running.
"""

import argparse
from pathlib import Path

from diva.command import exit_codes
from diva.errors import UserError
from diva.sweeps.folder import find_runs
from diva.sweeps.picture import draw
from diva.sweeps.table import gather, markdown, print_tables


@exit_codes
def main() -> None:
    parser = argparse.ArgumentParser(prog="diva.sweep_report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="a sweep's folder: hydra.sweep.dir of its command")
    parser.add_argument(
        "--into", type=Path, help="where sweep.md and sweep.png go; the sweep's folder unless given"
    )
    arguments = parser.parse_args()
    for file in report(arguments.sweep, arguments.into or arguments.sweep):
        print(file)


def report(sweep: Path, into: Path) -> list[Path]:
    """Print the tables of the sweep in folder `sweep`, write sweep.md and sweep.png into `into`; returns the two.

    Raises UserError if `sweep` has no run.
    """
    runs = find_runs(sweep)
    if not runs:
        raise UserError(f"{sweep} holds no run of a sweep; give the hydra.sweep.dir of a -m command")
    results = gather(runs)
    print_tables(results, str(sweep))
    into.mkdir(parents=True, exist_ok=True)
    table, picture = into / "sweep.md", into / "sweep.png"
    table.write_text(markdown(results), encoding="utf-8")
    draw(results, picture)
    return [table, picture]
