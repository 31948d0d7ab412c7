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

from diva import markdown
from diva.cli import exit_codes
from diva.errors import UserError
from diva.evaluation.intervals import Difference, paired_difference
from diva.evaluation.metrics import Measure
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
    if system.values["metric"] != ceiling.values["metric"]:
        return None
    ids = [i for i in system.answers if i in ceiling.answers]
    return paired_difference(measure(system, ids), measure(ceiling, ids)) if ids else None


def measure(result: Result, ids: Sequence[str]) -> Measure:
    """The headline metric of these answers, in this order."""
    metrics = instantiate(result.values["config"]["task"]["metrics"], _convert_="all")
    metric = next(metric for metric in metrics if metric.name == result.values["metric"])
    return metric.measure([result.answers[i] for i in ids])


def check_comparable(results: Sequence[Result]) -> None:
    """Raises UserError where results are not of the same task and data."""
    first = results[0].values
    for result in results[1:]:
        for part in ("task_hash", "data_hash"):
            if result.values[part] != first[part]:
                raise UserError(
                    f"{first['task']}: {result.values['system']} and {first['system']} were not asked the same"
                    f" ({part} differs); evaluate them again with one version of the task and its data"
                )


@dataclass(frozen=True)
class Table:
    """Cells as text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> list[str]:
        """Its lines, the first column on the left, the others on the right."""
        return markdown.table(self.header, self.rows, numbers=True)


def table(results: Sequence[Result]) -> str:
    """The results of one task as markdown. Raises UserError where they are not of the same task and data."""
    lines = systems_table(results).markdown()
    groups = groups_table(results)
    if groups is not None:
        lines += ["", *groups.markdown()]
    return "\n".join(lines + [line for note in notes(results) for line in ("", note)]) + "\n"


def systems_table(results: Sequence[Result]) -> Table:
    """A row a system, the ceiling first, the cascade last. Raises UserError as `check_comparable` does."""
    check_comparable(results)
    ceilings = [r for r in results if r.values["role"] == "ceiling"]
    rows = []
    for role in ("ceiling", "system", "cascade"):
        of_role = sorted((r for r in results if r.values["role"] == role), key=lambda r: r.values["system"])
        for result in of_role:
            # With several LLMs, whose ceiling or cascade a row is has to be said.
            whose = f", {_llm_of(result)}" if role in _ROLES and len(of_role) > 1 else ""
            rows.append([result.label + whose, *_cells(result, _ceiling_of(result, ceilings))])
        if not of_role and role in _ROLES:
            rows.append([_ROLES[role], "not run", "", "", "", ""])
    first = results[0].values
    return Table((first["task"], first["metric"], "95% interval", "n", "failed", "gap to ceiling"), rows)


def _llm_of(result: Result) -> str:
    """The system whose LLM answers: "teacher of NAME" and "cascade of NAME" have that of NAME."""
    return str(result.values["system"]).removeprefix("teacher of ").removeprefix("cascade of ")


def _ceiling_of(result: Result, ceilings: Sequence[Result]) -> Result | None:
    """The ceiling with the same LLM, or the only one; none for a ceiling."""
    if result.values["role"] == "ceiling":
        return None
    own = [ceiling for ceiling in ceilings if _llm_of(ceiling) == _llm_of(result)]
    found = own or (ceilings if len(ceilings) == 1 else [])
    return found[0] if found else None


def _cells(result: Result, ceiling: Result | None) -> list[str]:
    values = result.values
    difference = gap(result, ceiling) if ceiling is not None else None
    shown = "" if difference is None else f"{difference.value:+.3f}{brackets(difference.interval)}"
    value = "" if values["value"] is None else f"{values['value']:.3f}"
    sure = brackets(values["wilson"] or values["interval"]).strip()
    return [value, sure, str(values["n"]), str(values["errors"]), shown]


def brackets(interval: Sequence[float] | None) -> str:
    """The interval after a space, or nothing."""
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"


def groups_table(results: Sequence[Result]) -> Table | None:
    """The headline of each group of samples by itself; None where there are no groups."""
    groups = sorted({group for r in results for group in r.values["groups"]})
    rows = []
    for result in results:
        of = result.values["groups"]
        if of:
            known = [of[group]["value"] if group in of else None for group in groups]
            rows.append([result.label, *("" if value is None else f"{value:.3f}" for value in known)])
    return Table(("by group", *groups), rows) if groups else None


def notes(results: Sequence[Result]) -> list[str]:
    """What a figure rests on where that is not plain."""
    return sorted({f"{f['metric']}: {f['note']}" for r in results for f in r.values["figures"] if f["note"]})


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
