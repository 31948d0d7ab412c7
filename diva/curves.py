"""Draw a run's curves: `python -m diva.curves [RUN_DIR] [--into FOLDER]` (the newest run unless named).

Writes curves.png into the run's folder. --into copies curves.png, summary.json and responses.tsv to a folder.
--pages writes the results of summary.json into Markdown files, between these marks:
`<!-- results -->` ... `<!-- /results -->` for the final metrics, `<!-- answers -->` ... `<!-- /answers -->` for the
answers to held-out questions.
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
        "--pages", type=Path, nargs="+", default=[], help="write the results between the marks of these files"
    )
    arguments = parser.parse_args()
    from diva.plots.curves import draw, newest_run, write_between_marks  # after --help: matplotlib

    run = arguments.run or newest_run(Path("runs"))
    picture = draw(run)
    print(picture)
    if (arguments.into or arguments.pages) and not (run / "summary.json").is_file():
        raise UserError(
            f"{run} has not ended: it has no summary.json, from which --into and --pages take the results"
        )
    if arguments.into:
        arguments.into.mkdir(parents=True, exist_ok=True)
        for file in (picture, run / "summary.json", run / "responses.tsv"):
            shutil.copy(file, arguments.into)
    for page in arguments.pages:
        write_between_marks(page, json.loads((run / "summary.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
