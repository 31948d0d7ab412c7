"""Tables from results: `python -m diva.evaluation.tables FOLDER ... [--into FILE]`.

Every FOLDER is searched for results.json. One markdown table a task, with a row for the ceiling and for the cascade
even where they have not been run, and the gap between each system and the ceiling on the same samples.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from diva.cli import exit_codes
from diva.errors import UserError
from diva.evaluation.intervals import Difference, paired_difference
from diva.evaluation.results import RESULTS, read_results
from diva.evaluation.runner import SAMPLES, read_answers
from diva.evaluation.samples import Answer

_ROLES = {"ceiling": "text LLM, true transcript (ceiling)", "cascade": "Whisper, then the LLM (cascade)"}


@dataclass(frozen=True)
class Result:
    """One results.json with the answers beside it."""

    values: dict[str, Any]
    answers: dict[str, Answer]

    @classmethod
    def read(cls, folder: Path) -> "Result":
        return cls(read_results(folder), {a.id: a for a in read_answers(folder / SAMPLES)})

    @property
    def label(self) -> str:
        role, name = self.values["role"], self.values["system"]
        return _ROLES.get(role, name)


def gap(system: Result, ceiling: Result) -> Difference | None:
    """The system's headline minus the ceiling's, on the samples that both have; None where metrics differ."""
    name = system.values["metric"]
    if name != ceiling.values["metric"]:
        return None
    metrics = instantiate(system.values["config"]["task"]["metrics"], _convert_="all")
    metric = next(metric for metric in metrics if metric.name == name)
    ids = [i for i in system.answers if i in ceiling.answers]
    measures = (metric.measure([result.answers[i] for i in ids]) for result in (system, ceiling))
    return paired_difference(*measures) if ids else None


def table(results: Sequence[Result]) -> str:
    """A markdown table of one task's results. Raises UserError where they are not of the same task and data."""
    first = results[0].values
    for result in results[1:]:
        for part in ("task_hash", "data_hash"):
            if result.values[part] != first[part]:
                raise UserError(
                    f"{first['task']}: {result.values['system']} and {first['system']} were not asked the same"
                    f" ({part} differs); evaluate them again with one version of the task and its data"
                )
    by_role = {
        role: [r for r in results if r.values["role"] == role] for role in ("ceiling", "system", "cascade")
    }
    ceiling = next(iter(by_role["ceiling"]), None)
    lines = [
        f"| {first['task']} | {first['metric']} | 95% interval | n | failed | gap to ceiling |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for role, of_role in by_role.items():
        if not of_role and role in _ROLES:
            lines.append(f"| {_ROLES[role]} | not run | | | | |")
        for result in sorted(of_role, key=lambda r: r.label):
            lines.append(_row(result, ceiling))
    return "\n".join(lines + _notes(results)) + "\n"


def _row(result: Result, ceiling: Result | None) -> str:
    values = result.values
    difference = gap(result, ceiling) if ceiling is not None and result is not ceiling else None
    shown = "" if difference is None else f"{difference.value:+.3f}{_interval(difference.interval)}"
    value = "" if values["value"] is None else f"{values['value']:.3f}"
    sure = _interval(values["wilson"] or values["interval"]).strip()
    cells = (result.label, value, sure, values["n"], values["errors"], shown)
    return "| " + " | ".join(map(str, cells)) + " |"


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"


def _notes(results: Sequence[Result]) -> list[str]:
    """Groups, and what a figure rests on where that is not plain."""
    lines: list[str] = []
    groups = sorted({group for r in results for group in r.values["groups"]})
    if groups:
        lines += ["", "| by group | " + " | ".join(groups) + " |", "|---|" + "---:|" * len(groups)]
    for result in results:
        of = result.values["groups"]
        if of:
            cells = [
                f"{of[g]['value']:.3f}" if g in of and of[g]["value"] is not None else "" for g in groups
            ]
            lines.append(f"| {result.label} | " + " | ".join(cells) + " |")
    notes = {f"{f['metric']}: {f['note']}" for r in results for f in r.values["figures"] if f["note"]}
    return lines + [line for note in sorted(notes) for line in ("", note)]


def tables(folders: Sequence[Path]) -> str:
    """Markdown tables of all results below the folders, one a task. Raises UserError where there are none."""
    found = sorted({file.parent for folder in folders for file in folder.rglob(RESULTS)})
    if not found:
        raise UserError(f"there is no {RESULTS} below {', '.join(map(str, folders))}")
    results = [Result.read(folder) for folder in found]
    tasks = sorted({result.values["task"] for result in results})
    return "\n".join(table([r for r in results if r.values["task"] == task]) for task in tasks)


@exit_codes
def main() -> None:
    """Print the tables, or write them into a file."""
    parser = argparse.ArgumentParser(
        prog="python -m diva.evaluation.tables", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders that hold results.json, at any depth")
    parser.add_argument("--into", type=Path, help="a file that gets the tables instead of the screen")
    arguments = parser.parse_args()
    text = tables(arguments.folders)
    if arguments.into:
        arguments.into.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
