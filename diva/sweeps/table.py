"""Results of a sweep as tables: runs are grouped by the varied keys, with means over seeds."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import pyarrow.csv
from rich.table import Table

from diva.markdown import spread, table
from diva.sweeps.folder import SweepRun
from diva.terminal import stdout_console
from diva.training.measures import lower_is_better

_SEED = "seed"


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    values: tuple[str, ...]  # one for each of the sweep's varied names
    runs: tuple[SweepRun, ...]

    def figure(self, name: str) -> list[float]:
        """The metric `name` of every finished run that has it."""
        return [run.figures[name] for run in self.runs if name in run.figures]


@dataclass(frozen=True)
class Results:
    """The state of a sweep."""

    varied: tuple[str, ...]  # names of the overrides that differ between runs, without the seed
    groups: tuple[Group, ...]
    figures: tuple[str, ...]  # names of the metrics of finished runs

    @property
    def runs(self) -> list[SweepRun]:
        return [run for group in self.groups for run in group.runs]

    def best(self, figure: str) -> Group | None:
        """The group with the best mean; None if there is nothing to compare."""
        means = [statistics.fmean(values) for group in self.groups if (values := group.figure(figure))]
        if len(set(means)) < 2:
            return None
        best = min(means) if lower_is_better(figure) else max(means)
        return next(g for g in self.groups if g.figure(figure) and statistics.fmean(g.figure(figure)) == best)


def gather(runs: list[SweepRun]) -> Results:
    """Group `runs`; groups stand in the order of their first runs."""
    names = list(dict.fromkeys(name for run in runs for name in run.values))
    varied = tuple(
        name for name in names if name != _SEED and len({run.values.get(name) for run in runs}) > 1
    )
    grouped: dict[tuple[str, ...], list[SweepRun]] = {}
    for run in runs:
        grouped.setdefault(tuple(run.values.get(name, "") for name in varied), []).append(run)
    figures = dict.fromkeys(name for run in runs for name in run.figures if name.startswith("val"))
    return Results(
        varied, tuple(Group(values, tuple(members)) for values, members in grouped.items()), tuple(figures)
    )


def markdown(results: Results) -> str:
    """Both tables."""
    lines: list[str] = []
    for header, rows in (_figures(results, "**{}**"), _others(results)):
        if rows:
            lines += [*table(header, rows), ""]
    return "\n".join(lines)


def print_tables(results: Results, title: str) -> None:
    """Both tables to stdout."""
    for (header, rows), name in ((_figures(results, "{} *"), title), (_others(results), "not finished")):
        if rows:
            shown = Table(*header, title=name)
            for row in rows:
                shown.add_row(*row)
            stdout_console().print(shown)


def _figures(results: Results, mark: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the metrics: mean and standard deviation over seeds; `mark` is put around the best of each."""
    best = {name: results.best(name) for name in results.figures}
    rows = []
    for group in results.groups:
        finished = sum(run.outcome.status == "finished" for run in group.runs)
        runs = str(finished) if finished == len(group.runs) else f"{finished} of {len(group.runs)}"
        row = [*(_short(value) for value in group.values), runs]
        for name in results.figures:
            text = spread(group.figure(name))
            row.append(mark.format(text) if group is best[name] else text)
        row.append(spread([seconds / 60 for seconds in group.figure("seconds")], digits=1))
        rows.append(row)
    return [*results.varied, "runs", *results.figures, "minutes"], rows


def _others(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the runs that have not finished, and why."""
    rows = []
    for run in sorted(results.runs, key=lambda run: (len(run.folder.name), run.folder.name)):
        outcome = run.outcome
        if outcome.status != "finished":
            values = (f"{name}={_short(run.values.get(name, ''))}" for name in (*results.varied, _SEED))
            shown = " ".join(value for value in values if not value.endswith("="))
            rows.append([run.folder.name, shown, outcome.status, outcome.reason or _progress(run.folder)])
    return ["run", "overrides", "status", "reason"], rows


def _short(value: str) -> str:
    """A number with few digits: one that a search has chosen has many."""
    try:
        number = float(value)
    except ValueError:
        return value
    return value if len(value) < 8 or not math.isfinite(number) else f"{number:.4g}"


def _progress(run: Path) -> str:
    if not (run / "metrics.csv").is_file():
        return "no step yet"
    steps = pyarrow.csv.read_csv(run / "metrics.csv")["step"].to_pylist()
    return f"last at step {steps[-1] + 1}"
