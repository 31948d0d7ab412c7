"""The files of an evaluation: results.json and samples.jsonl."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from diva.errors import UserError
from diva.evaluation.intervals import Interval, bootstrap, wilson
from diva.evaluation.metrics import Measure, Metric, Unavailable, mean
from diva.evaluation.samples import Answer
from diva.files import written_whole

RESULTS = "results.json"


@dataclass(frozen=True)
class Figure:
    """A metric of a system on a task."""

    metric: str
    value: float | None  # None if it cannot be computed; `note` says why
    n: int  # number of answers in it
    errors: int  # failed answers, whether they are in it or not
    interval: Interval | None  # 95% bootstrap over the samples
    wilson: Interval | None = None  # 95%, of a share; unlike the bootstrap it is valid at 0 and 1
    failures_as_zero: float | None = None  # the mean with failed answers as 0, if there are any
    note: str = ""


def figures(answers: Sequence[Answer], metrics: Sequence[Metric]) -> list[Figure]:
    """All metrics of the answers; the first with a value is the main one."""
    found = []
    for metric in metrics:
        try:
            found.append(_figure(metric.name, metric.measure(answers), answers))
        except Unavailable as reason:
            found.append(Figure(metric.name, None, 0, _errors(answers), None, note=str(reason)))
    return found


def _figure(name: str, measure: Measure, answers: Sequence[Answer]) -> Figure:
    kept = ~np.isnan(measure.rows.astype(float)).any(axis=1)
    value = measure.value(measure.rows[kept])
    if math.isnan(value):
        return Figure(name, None, 0, _errors(answers), None, note="every answer failed")
    left_out = len(kept) - int(kept.sum())
    as_zero = value * int(kept.sum()) / len(kept) if left_out and measure.value is mean else None
    interval = bootstrap(Measure(measure.rows[kept], measure.value))
    is_share = measure.is_share and bool(np.isin(measure.rows[kept], (0, 1)).all())
    share = wilson(int(measure.rows[kept].sum()), int(kept.sum())) if is_share else None
    return Figure(name, value, int(kept.sum()), _errors(answers), interval, share, as_zero, measure.note)


def _errors(answers: Sequence[Answer]) -> int:
    return sum(answer.prediction is None for answer in answers)


def headline(of: Sequence[Figure]) -> Figure:
    """The first metric with a value, or the first one."""
    return next((figure for figure in of if figure.value is not None), of[0])


def scored(answers: Sequence[Answer], metrics: Sequence[Metric]) -> dict[str, Any]:
    """The part of results.json about the answers: first the main metric, then all metrics, then those of groups."""
    found = figures(answers, metrics)
    every = {"figures": [asdict(figure) for figure in found], "groups": by_group(answers, metrics)}
    return {**asdict(headline(found)), **every}


def by_group(answers: Sequence[Answer], metrics: Sequence[Metric]) -> dict[str, dict[str, Any]]:
    """The main metric of each group of answers, in the order of the answers; empty if there are no groups."""
    groups = dict.fromkeys(answer.group for answer in answers if answer.group is not None)
    parts = {group: [answer for answer in answers if answer.group == group] for group in groups}
    return {group: asdict(headline(figures(part, metrics))) for group, part in parts.items()}


def digest(value: Any) -> str:
    """A hash of a plain value, in twelve hexadecimal digits."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def write_results(folder: Path, values: dict[str, Any]) -> None:
    """Write results.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / RESULTS) as file:
        file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_results(folder: Path) -> dict[str, Any]:
    """The results.json in a folder. Raises UserError if there is none."""
    try:
        return json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no readable {RESULTS}: {error}") from error
