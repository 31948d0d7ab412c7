"""Draw a run's curves: `python -m diva.curves [RUN_DIR] [--into FOLDER]` (the newest run unless named).

Writes curves.png into the run's folder. --into also copies there what a README rests on (curves.png,
summary.json, responses.tsv), and --readme writes the results of summary.json between that file's marks.
"""

import argparse
import json
import shutil
from pathlib import Path

from diva.command import exit_codes
from diva.errors import UserError


@exit_codes
def main() -> None:
    parser = argparse.ArgumentParser(prog="diva.curves", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "run", type=Path, nargs="?", help="a run directory; the newest below runs/ unless given"
    )
    parser.add_argument("--into", type=Path, help="also copy picture, summary and responses here")
    parser.add_argument(
        "--readme",
        type=Path,
        help="write the results between <!-- results --> and <!-- /results --> of this file",
    )
    arguments = parser.parse_args()
    from diva.plots.curves import draw, newest_run, results, write_between_marks  # after --help: matplotlib

    run = arguments.run or newest_run(Path("runs"))
    picture = draw(run)
    print(picture)
    if (arguments.into or arguments.readme) and not (run / "summary.json").is_file():
        raise UserError(
            f"{run} has not ended: it has no summary.json, from which --into and --readme take the figures"
        )
    if arguments.into:
        arguments.into.mkdir(parents=True, exist_ok=True)
        for file in (picture, run / "summary.json", run / "responses.tsv"):
            shutil.copy(file, arguments.into)
    if arguments.readme:
        summary = json.loads((run / "summary.json").read_text())
        write_between_marks(arguments.readme, results(summary))


if __name__ == "__main__":
    main()
