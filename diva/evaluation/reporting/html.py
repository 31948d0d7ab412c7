"""An HTML page of an evaluation, with plots and clips to listen to: `report=html`.

Pictures and clips are part of the file. Its content security policy forbids the browser to load anything else.
"""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from jinja2 import Environment

from diva.audio.frames import SAMPLE_RATE
from diva.errors import AudioFault
from diva.evaluation.metrics import Metric, Unavailable, mean
from diva.evaluation.reporting import curves
from diva.evaluation.reporting.bars import Bar, Group, Panel, draw
from diva.evaluation.reporting.html_template import TEMPLATE
from diva.evaluation.reporting.tables import ROWS, Result, common_metric, groups_table, notes, systems_table
from diva.evaluation.task import Task
from diva.plots.style import named

REPORT = "report.html"
SAMPLES_SHOWN = 24
# Maximum length of a clip, so that the page has a few megabytes even for long recordings.
SECONDS_HEARD = 60.0


@dataclass(frozen=True)
class Said:
    """One system's answer to one sample."""

    system: str
    text: str  # the answer, or why it failed
    verdict: str  # right, wrong, failed, or the score of a metric with other values than 0 and 1


@dataclass(frozen=True)
class Shown:
    """One sample on the page."""

    id: str
    question: str | None
    references: Sequence[str]
    group: str | None
    audio: str | None  # MP3, base64
    silence: str  # why there is no audio
    said: Sequence[Said]


def write_report(folder: Path, results: Sequence[Result], task: Task, has_audio: bool) -> Path:
    """Write FOLDER/report.html from results of one task, the system's first. Raises UserError as the task does."""
    file = folder / REPORT
    listen = _clips(task) if has_audio else {}
    file.write_text(page(results, task, listen), encoding="utf-8")
    return file


def _clips(task: Task) -> dict[str, Callable[[], np.ndarray]]:
    """Sample id -> a function that opens its clip."""
    manifest = task.open()
    return {s.id: lambda row=s.row: manifest.waveform(row) for s in task.samples(manifest)}  # type: ignore[misc]


def page(results: Sequence[Result], task: Task, listen: Mapping[str, Callable[[], np.ndarray]]) -> str:
    """The page's text; `listen` opens a sample's clip, [S] at 16 kHz, or raises AudioFault."""
    metric, verdicts = _verdicts(results, task.metrics)
    ids = _spread(list(results[0].answers), SAMPLES_SHOWN)
    shown = [_shown(i, results, verdicts, listen) for i in ids]
    groups = groups_table(results)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE).render(
        task=task,
        values=results[0].values,
        tables=[systems_table(results), *([groups] if groups else [])],
        notes=notes(results),
        picture=base64.b64encode(_picture(results)).decode(),
        samples=shown,
        total=len(results[0].answers),
        drawn=common_metric(results),
        metric=metric,
    )


def _spread(ids: Sequence[str], count: int) -> list[str]:
    """At most `count` ids, evenly spaced, so that the choice does not depend on the answers."""
    places = np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)
    return [ids[place] for place in places]


def _verdicts(results: Sequence[Result], metrics: Sequence[Metric]) -> tuple[str, list[dict[str, str]]]:
    """The first metric that scores each answer of every system, and its verdict on each answer, by system."""
    every = [list(result.answers.values()) for result in results]
    for metric in metrics:
        try:
            measures = [metric.measure(answers) for answers in every]
        except Unavailable:
            continue
        if all(measure.value is mean for measure in measures):
            return metric.name, [
                {a.id: _verdict(score) for a, score in zip(answers, measure.rows[:, 0], strict=True)}
                for answers, measure in zip(every, measures, strict=True)
            ]
    return "", [{a.id: "" if a.error is None else "failed" for a in answers} for answers in every]


def _verdict(score: float) -> str:
    if math.isnan(score):
        return "failed"
    return {0.0: "wrong", 1.0: "right"}.get(score, f"{score:.2f}")


def _shown(
    name: str,
    results: Sequence[Result],
    verdicts: Sequence[Mapping[str, str]],
    listen: Mapping[str, Callable[[], np.ndarray]],
) -> Shown:
    first = results[0].answers[name]
    said = []
    for result, of in zip(results, verdicts, strict=True):
        answer = result.answers[name]
        text = answer.prediction if answer.prediction is not None else answer.error or ""
        said.append(Said(result.label, text, "failed" if answer.prediction is None else of[name]))
    audio, silence = None, "the clips are not on this machine"
    if name in listen:
        try:
            audio = mp3(listen[name]())
        except AudioFault as fault:
            silence = str(fault)
    return Shown(name, first.transcript, first.references, first.group, audio, silence, said)


def mp3(waveform: np.ndarray) -> str:
    """[S] at 16 kHz -> its first minute as base64 of an MP3, which every browser plays."""
    file = io.BytesIO()
    heard = waveform[: int(SECONDS_HEARD * SAMPLE_RATE)]
    soundfile.write(file, heard, SAMPLE_RATE, format="MP3", compression_level=0.7)
    return base64.b64encode(file.getvalue()).decode()


def _picture(results: Sequence[Result]) -> bytes:
    return curves.draw(results) if curves.has_conditions(results[0]) else draw(_panels(results))


def _panels(results: Sequence[Result]) -> list[Panel]:
    """The metric of the tables: every system over all samples, and in each group of them."""
    metric = common_metric(results)
    groups = [Group("all samples", _bars(results, [result.figure(metric) or {} for result in results]))]
    of_groups = [result.groups(metric) for result in results]
    for group in dict.fromkeys(group for of in of_groups for group in of):
        groups.append(Group(group, _bars(results, [of.get(group, {}) for of in of_groups])))
    return [Panel(named(metric), groups)]


def _bars(results: Sequence[Result], figures: Sequence[Mapping]) -> list[Bar]:
    return [
        Bar(named(result.label), of["value"], of["wilson"] or of["interval"], result.values["role"] in ROWS)
        for result, of in zip(results, figures, strict=True)
        if of.get("value") is not None
    ]
