"""Tables from results: `python -m diva.evaluation.tables FOLDER ... [--into FILE]`.

Every FOLDER is searched for results.json. There is one markdown table for each task. It has rows for the ceiling and
the cascade even if they have not been run. It gives the difference of each system from the ceiling and from the
cascade, on the same samples. All rows of a table have the same metric.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diva import markdown
from diva.command import exit_codes
from diva.config import make
from diva.errors import UserError
from diva.evaluation.intervals import Difference, paired_difference
from diva.evaluation.metrics import Measure, Metric
from diva.evaluation.results import RESULTS, by_group, read_results
from diva.evaluation.runner import SAMPLES, read_answers
from diva.evaluation.samples import Answer

ROWS = {"ceiling": "text LLM, true transcript (ceiling)", "cascade": "Whisper, then the LLM (cascade)"}


@dataclass(frozen=True)
class Result:
    """One results.json with its answers."""

    values: dict[str, Any]
    answers: dict[str, Answer]

    @classmethod
    def read(cls, folder: Path) -> "Result":
        return cls(read_results(folder), {a.id: a for a in read_answers(folder / SAMPLES)})

    @property
    def label(self) -> str:
        role, name = self.values["role"], self.values["system"]
        return ROWS.get(role, name)

    @property
    def metrics(self) -> list[Metric]:
        return make(self.values["config"]["task"]["metrics"], _convert_="all")

    def figure(self, metric: str) -> Mapping[str, Any] | None:
        """Its record of a metric; None if it has none."""
        found = (f for f in self.values["figures"] if f["metric"] == metric and f["value"] is not None)
        return next(found, None)

    def groups(self, metric: str) -> Mapping[str, Mapping[str, Any]]:
        """The record of a metric for each group of samples; computed from the answers if it is not the main metric."""
        if metric == self.values["metric"] or not self.values["groups"]:
            return self.values["groups"]
        return by_group(list(self.answers.values()), [m for m in self.metrics if m.name == metric])

    def measure(self, metric: str, ids: Sequence[str]) -> Measure:
        """A metric of these answers, in this order."""
        chosen = next(m for m in self.metrics if m.name == metric)
        return chosen.measure([self.answers[i] for i in ids])


def gap(system: Result, other: Result, metric: str) -> Difference | None:
    """The system's metric minus the other's, on the samples that both have answered; None if there are none."""
    if system.figure(metric) is None or other.figure(metric) is None:
        return None
    ids = [i for i in system.answers if i in other.answers]
    found = paired_difference(system.measure(metric, ids), other.measure(metric, ids)) if ids else None
    return found if found is not None and found.n else None


def check_comparable(results: Sequence[Result]) -> None:
    """Raises UserError if results are not of the same task and data."""
    first = results[0].values
    for result in results[1:]:
        for part in ("task_hash", "data_hash"):
            if result.values[part] != first[part]:
                raise UserError(
                    f"{first['task']}: {result.values['system']} and {first['system']} were not asked the same"
                    f" ({part} differs); evaluate them again with one version of the task and its data, files of"
                    " answers with references=task"
                )


def common_metric(results: Sequence[Result]) -> str:
    """The first metric of the task that all results have, so that a column has one metric only. Results without any
    metric do not count.

    Raises UserError if they have none in common.
    """
    known = [result for result in results if any(f["value"] is not None for f in result.values["figures"])]
    if not known:
        return str(results[0].values["metric"])
    for figure in known[0].values["figures"]:
        if all(result.figure(figure["metric"]) is not None for result in known):
            return str(figure["metric"])
    each = ", ".join(f"{result.values['system']} has {result.values['metric']}" for result in known)
    raise UserError(
        f"{known[0].values['task']}: no metric is there for all ({each}); keep such results in folders apart"
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
    """The results of one task as markdown. Raises UserError if they cannot be in one table."""
    lines = systems_table(results).markdown()
    groups = groups_table(results)
    if groups is not None:
        lines += ["", *groups.markdown()]
    return "\n".join(lines + [line for note in notes(results) for line in ("", note)]) + "\n"


def systems_table(results: Sequence[Result]) -> Table:
    """One row for each system, all with one metric; the ceiling first, the cascade last.

    Raises UserError as `check_comparable` and `common_metric` do.
    """
    check_comparable(results)
    metric = common_metric(results)
    beside = {role: [r for r in results if r.values["role"] == role] for role in ROWS}
    header = (results[0].values["task"], metric, "95% interval", "n", "failed", *(f"minus {r}" for r in ROWS))
    rows = []
    for role in ("ceiling", "system", "cascade"):
        of_role = sorted((r for r in results if r.values["role"] == role), key=lambda r: r.values["system"])
        for result in of_role:
            # With several LLMs, the row has to say whose ceiling or cascade it is.
            whose = f", {_namesake(result)}" if role in ROWS and len(of_role) > 1 else ""
            rows.append([result.label + whose, *_cells(result, metric, beside)])
        if not of_role and role in ROWS and _has_clips(results[0]):
            rows.append([ROWS[role], "not run", *([""] * (len(header) - 2))])
    return Table(header, rows)


def _has_clips(result: Result) -> bool:
    """Whether the task has clips. A task of votes has none, and so no ceiling and no cascade."""
    return result.values["config"]["task"].get("corpus", "") is not None


def _namesake(result: Result) -> str:
    """The system whose baseline it is: NAME for "teacher of NAME" and "cascade of NAME"."""
    return str(result.values["system"]).removeprefix("teacher of ").removeprefix("cascade of ")


def _beside(result: Result, others: Sequence[Result]) -> Result | None:
    """Of several ceilings or cascades, the one with the result's own LLM. For a result without an LLM, the only one.

    Names are compared only between those with the same LLM, prompt and dtype.
    """
    reader = result.values.get("reader")
    if reader is None:
        return others[0] if len(others) == 1 else None
    own = [other for other in others if other.values.get("reader") == reader]
    return next((other for other in own if _namesake(other) == _namesake(result)), own[0] if own else None)


def _cells(result: Result, metric: str, beside: Mapping[str, Sequence[Result]]) -> list[str]:
    gaps = []
    for role, others in beside.items():
        # A cascade has a gap to its ceiling, a ceiling has none.
        compared = result.values["role"] == "system" or (result.values["role"], role) == (
            "cascade",
            "ceiling",
        )
        other = _beside(result, others) if compared else None
        difference = gap(result, other, metric) if other is not None else None
        gaps.append("" if difference is None else f"{difference.value:+.3f}{brackets(difference.interval)}")
    figure = result.figure(metric)
    errors = str(result.values["errors"])
    if figure is None:
        return ["", "", "0", errors, *gaps]
    sure = brackets(figure["wilson"] or figure["interval"]).strip()
    return [f"{figure['value']:.3f}", sure, str(figure["n"]), errors, *gaps]


def brackets(interval: Sequence[float] | None) -> str:
    """A space and the interval, or an empty text."""
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"


def groups_table(results: Sequence[Result]) -> Table | None:
    """Each group of samples separately, with the metric of `systems_table`; None if there are no groups."""
    metric = common_metric(results)
    every = [(result.label, result.groups(metric)) for result in results]
    groups = list(dict.fromkeys(group for _, of in every for group in of))
    rows = []
    for label, of in every:
        if of:
            known = [of[group]["value"] if group in of else None for group in groups]
            rows.append([label, *("" if value is None else f"{value:.3f}" for value in known)])
    return Table(("by group", *groups), rows) if groups else None


def notes(results: Sequence[Result]) -> list[str]:
    """Notes of the metrics, missing metrics and skipped clips."""
    metric = common_metric(results)
    found = {f"{f['metric']}: {f['note']}" for r in results for f in r.values["figures"] if f["note"]}
    better = [r for r in results if r.values["metric"] != metric and r.figure(metric)]
    if better:
        names = ", ".join(sorted({r.values["metric"] for r in better}))
        found.add(f"{metric}: every row has it; {names} is there for {', '.join(map(_name, better))} alone.")
    found |= {f"Skipped by the corpus, for every system: {line}." for r in results if (line := left_out(r))}
    return sorted(found)


def _name(result: Result) -> str:
    return str(result.values["system"])


def left_out(result: Result) -> str:
    """The clips that the corpus skipped, as "2 clips (2 missing file)"; empty if there are none."""
    reasons: dict[str, int] = result.values.get("skipped") or {}
    total = sum(reasons.values())
    each = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{total} clip{'s' if total > 1 else ''} ({each})" if total else ""


def tables(folders: Sequence[Path]) -> str:
    """Markdown tables of all results below the folders, one for each task or study of votes.

    Raises UserError if there are none.
    """
    found = sorted({file.parent for folder in folders for file in folder.rglob(RESULTS)})
    if not found:
        raise UserError(f"there is no {RESULTS} below {', '.join(map(str, folders))}")
    results = [Result.read(folder) for folder in found]
    apart: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        # Each set of votes is a study of its own.
        study = "" if _has_clips(result) else str(result.values["system"])
        apart.setdefault((result.values["task"], study), []).append(result)
    return "\n".join(table(apart[key]) for key in sorted(apart))


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
