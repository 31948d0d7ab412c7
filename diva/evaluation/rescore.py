"""Compute metrics again from stored answers, without model or data: `python -m diva.evaluation.rescore FOLDER ...`.

Every FOLDER is searched for results.json. This is for answers that got their scores later (experiments/fig2_qa), and
for changes of a metric.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from diva.command import exit_codes
from diva.errors import UserError
from diva.evaluation.reporting.tables import Result
from diva.evaluation.results import RESULTS, scored, write_results
from diva.training.run_folder import environment


def rescore(folders: Sequence[Path]) -> list[Result]:
    """Rewrite every results.json below the folders. Raises UserError if there is none."""
    found = sorted({file.parent for folder in folders for file in folder.rglob(RESULTS)})
    if not found:
        raise UserError(f"there is no {RESULTS} below {', '.join(map(str, folders))}")
    results = []
    for folder in found:
        before = Result.read(folder)
        figures = scored(list(before.answers.values()), before.metrics)
        values = before.values | figures | {"scored_by": environment()["revision"]}
        write_results(folder, values)
        results.append(Result(values, before.answers))
    return results


@exit_codes
def main() -> None:
    """Rescore, and print the new main metrics."""
    parser = argparse.ArgumentParser(
        prog="python -m diva.evaluation.rescore", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders that hold results.json, at any depth")
    for result in rescore(parser.parse_args().folders):
        of = result.values
        value = "none" if of["value"] is None else f"{of['value']:.3f}"
        print(f"{of['system']} on {of['task']}: {of['metric']} {value}, n {of['n']}, {of['errors']} failed")


if __name__ == "__main__":
    main()
