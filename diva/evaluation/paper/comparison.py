"""The authors' results and ours in the same columns."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diva.errors import UserError
from diva.evaluation.intervals import Interval, wilson
from diva.evaluation.reporting.bars import Bar, Group, Panel
from diva.evaluation.reporting.tables import ROWS, Result, Table
from diva.plots.style import named

_SIDES = {"authors": "authors", "ours": "ours", "given": "by definition"}


@dataclass(frozen=True)
class Cell:
    """One number of one system."""

    value: float
    interval: Interval | None = None  # 95%
    n: int | None = None  # None: not known
    errors: int = 0
    left_out: int = 0  # clips that the corpus skipped, and so are not in n


@dataclass(frozen=True)
class Column:
    """One metric of one task, or its mean over tasks."""

    title: str
    task: str  # its full name, with the variant, as in authors.json
    metric: str
    mean_of: Sequence[str] = ()  # tasks; a result of `task` itself is used before their mean

    def of(self, figures: Mapping[tuple[str, str], Cell]) -> Cell | None:
        """The column's cell, from a system's cells by (task, metric); None if a part of the mean is missing."""
        own = figures.get((self.task, self.metric))
        if own is not None or not self.mean_of:
            return own
        parts = [figures.get((task, self.metric)) for task in self.mean_of]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        counts = [part.n for part in found if part.n is not None]
        # The tasks may ask the same questions, so their intervals cannot be combined.
        return Cell(
            sum(part.value for part in found) / len(found),
            None,
            sum(counts) if len(counts) == len(found) else None,
            sum(part.errors for part in found),
            sum(part.left_out for part in found),
        )


@dataclass(frozen=True)
class Part:
    """The columns of one table."""

    title: str
    columns: Sequence[Column]


@dataclass(frozen=True)
class Row:
    """The results of one system."""

    label: str
    side: str  # authors, ours or given
    figures: Mapping[tuple[str, str], Cell] = field(default_factory=dict)  # by (task, metric)
    role: str = "system"  # system, ceiling or cascade

    @property
    def reference(self) -> bool:
        """Whether it is a baseline and no system under test."""
        return self.side == "given" or self.role in ROWS


@dataclass(frozen=True)
class Authors:
    """The content of an authors.json."""

    labels: Mapping[str, str]  # of systems
    figures: Mapping[str, Mapping[tuple[str, str], Cell]]  # system -> (task, metric) -> cell
    note: str  # source of the numbers

    @classmethod
    def read(cls, file: Path) -> "Authors":
        """Raises UserError for a file that cannot be read, or with two values for one system, task and metric."""
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            figures: dict[str, dict[tuple[str, str], Cell]] = {name: {} for name in values["systems"]}
            for record in values["figures"]:
                of, key = figures[record["system"]], (record["task"], record["metric"])
                if key in of:
                    raise UserError(f"{file} has two figures for {record['system']}, {'/'.join(key)}")
                of[key] = _figure(record)
            source = values["source"]
            note = (
                f"The authors' figures: {source['repository']}, commit {source['commit']}, {source['how']}."
            )
            return cls(values["systems"], figures, note)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{file} cannot be read: {error!r}") from error

    def rows(self, systems: Sequence[str]) -> list[Row]:
        """Raises UserError for a system that is not in the file."""
        for name in systems:
            if name not in self.labels:
                raise UserError(f"authors.json knows no system {name!r}, only {', '.join(self.labels)}")
        return [Row(self.labels[name], "authors", self.figures[name]) for name in systems]


def _figure(record: Mapping[str, Any]) -> Cell:
    """A record has a value and perhaps an interval, or the number of right answers of n."""
    errors = record.get("errors", 0)
    if "right" in record:
        right, n = record["right"], record["n"]
        return Cell(right / n, wilson(right, n), n, errors)
    interval = record.get("interval")
    return Cell(record["value"], tuple(interval) if interval else None, record.get("n"), errors)


def our_rows(results: Iterable[Result]) -> list[Row]:
    """One row for each system with all its tasks; the ceiling first, the cascade last.

    Raises UserError if a system has two results of one task.
    """
    rows: dict[str, dict[tuple[str, str], Cell]] = {}
    roles: dict[str, str] = {}
    for result in results:
        values = result.values
        of = rows.setdefault(values["system"], {})
        roles[values["system"]] = values["role"]
        if any(task == values["task"] for task, _ in of):
            raise UserError(
                f"there are two results of {values['system']} on {values['task']}: remove one, or evaluate it"
                " under another name="
            )
        missing = sum((values.get("skipped") or {}).values())
        for found in values["figures"]:
            if found["value"] is not None:
                interval = found["wilson"] or found["interval"]
                of[values["task"], found["metric"]] = Cell(
                    found["value"],
                    tuple(interval) if interval else None,
                    found["n"],
                    found["errors"],
                    missing,
                )
    order = ("ceiling", "system", "cascade")
    names = sorted(rows, key=lambda name: (order.index(roles[name]), name))
    return [Row(name, "ours", rows[name], roles[name]) for name in names]


def constant_rows(constants: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Scores of fixed rules, such as always answering Yes; keys are task/metric."""
    rows = []
    for label, values in constants.items():
        pairs = [(key.partition("/"), value) for key, value in values.items()]
        rows.append(Row(label, "given", {(task, metric): Cell(v) for (task, _, metric), v in pairs}))
    return rows


def table(part: Part, rows: Sequence[Row], with_ours: bool = True) -> list[str]:
    """A markdown table with a row for each system that has a result; "not run" if none of ours has."""
    usual = [_usual_n(column, rows) for column in part.columns]
    lines = []
    if any(usual):
        lines.append(["n, unless said otherwise", "", *("" if n is None else f"{n:,}" for n in usual)])
    sides = set()
    for row in rows:
        found = [column.of(row.figures) for column in part.columns]
        if any(found):
            cells = [_cell(f, c.metric, n) for f, c, n in zip(found, part.columns, usual, strict=True)]
            lines.append([row.label, _SIDES[row.side], *cells])
            sides.add(row.side)
    if with_ours and "ours" not in sides:
        lines.append(["not run", "ours", *([""] * len(part.columns))])
    titles = [f"{column.title}, {column.metric}" for column in part.columns]
    return Table(("system", "whose", *titles), lines).markdown()


def _usual_n(column: Column, rows: Sequence[Row]) -> int | None:
    """The n of most rows."""
    counts = [f.n for row in rows if (f := column.of(row.figures)) is not None and f.n is not None]
    return max(counts, key=counts.count) if counts else None


def _cell(figure: Cell | None, metric: str, usual_n: int | None) -> str:
    if figure is None:
        return ""
    text = shown(figure.value, metric)
    if figure.interval is not None:
        text += f" [{', '.join(shown(end, metric) for end in figure.interval)}]"
    if figure.n is not None and figure.n != usual_n:
        text += f", n {figure.n:,}"
    text += f", {figure.errors} failed" if figure.errors else ""
    return text + (f", {figure.left_out} skipped" if figure.left_out else "")


def shown(value: float, metric: str) -> str:
    """Three decimals for a share, two for a metric from 0 to 100."""
    digits = 2 if metric.endswith("bleu") else 3
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0.00


def panels(part: Part, rows: Sequence[Row]) -> list[Panel]:
    """One panel for each metric with results: one group of bars for each column, one bar for each system."""
    labels = _bar_labels(rows)
    found = []
    for metric in dict.fromkeys(column.metric for column in part.columns):
        groups = []
        for column in part.columns:
            pairs = [(row, column.of(row.figures)) for row in rows if column.metric == metric]
            bars = [
                Bar(labels[row.label], figure.value, figure.interval, row.reference)
                for row, figure in pairs
                if figure is not None
            ]
            groups += [Group(column.title, bars)] if bars else []
        if groups:
            found.append(Panel(f"{part.title}: {named(metric)}", groups))
    return found


def _bar_labels(rows: Sequence[Row]) -> dict[str, str]:
    """Row label -> its name in the legend. The only ceiling or the only cascade is named by its role."""
    roles = [row.role for row in rows]
    return {
        row.label: ROWS[row.role]
        if row.role in ROWS and roles.count(row.role) == 1
        else named(row.label) + (" (ours)" if row.side == "ours" else "")
        for row in rows
    }
