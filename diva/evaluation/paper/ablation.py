"""An ablation over seeds: the score of each system, and whether the systems have the paper's order."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from diva.errors import UserError
from diva.evaluation.intervals import Interval
from diva.evaluation.paper.comparison import Authors
from diva.evaluation.paper.seeds import Runs, difference
from diva.evaluation.reporting.bars import Bar, Group, Panel
from diva.evaluation.reporting.tables import ROWS, Result, Table, brackets, check_comparable
from diva.evaluation.results import RESULTS
from diva.markdown import spread
from diva.plots.style import named

TRAINING = "train_summary.json"
_BESIDE = {"teacher": ROWS["ceiling"], "cascade": ROWS["cascade"]}
# Keys of a run's summary.json -> their names in the table.
_TRAINING = {
    "val/first_token_agreement": "first-token agreement",
    "val_unseen_voice/first_token_agreement": "agreement, unseen voice",
    "val/kl": "KL, nats",
    "val_unseen_voice/kl": "KL, unseen voice",
    "val/alignment_accuracy": "alignment accuracy",
    "seconds": "training, minutes",
}
_ORDERED = "val/first_token_agreement"
_VALIDATED = ("val", "val_unseen_voice")
_DRAWN = ("first_token_agreement", "kl")


@dataclass(frozen=True)
class Outcome:
    """Our part of an experiment."""

    lines: list[str]  # markdown
    panels: list[Panel]


@dataclass(frozen=True)
class Ablation:
    """The ablation that an experiment.yaml describes. Results are in the folders SYSTEM_seedK, teacher and cascade."""

    task: str
    metric: str
    systems: Mapping[
        str, str
    ]  # our system, by its folder's name -> the authors' system, by its name in authors.json
    against: str  # our system that the others are compared with
    order_by: tuple[str, str]  # task and metric of the authors' results that give the paper's order
    seeds: Sequence[int]  # seeds of a complete replication
    unseen: Sequence[str]  # groups of samples that are not like the training data

    def outcome(self, folder: Path, authors: Authors) -> Outcome:
        """Raises UserError for results that cannot be compared, or whose folders have other names."""
        title = f"## Ours: {self.task}, seeds {', '.join(map(str, self.seeds))}"
        results = {file.parent.name: Result.read(file.parent) for file in sorted(folder.glob(f"*/{RESULTS}"))}
        missing = self._missing(results)
        lines = [title, "", *([f"Not run: {', '.join(missing)}.", ""] if missing else [])]
        if not results:
            return Outcome(lines[:-1], [])
        self._check(results, folder)
        first = next(iter(results.values())).answers
        unseen = np.array([first[i].group in self.unseen for i in first])
        runs, beside = self._runs(folder, results, list(first)), _beside(results, list(first))
        lines += [*self._answers(runs, beside, unseen), "", *_training_table(list(runs.values()))]
        lines += ["", "## The order", "", self._order(runs, authors)]
        return Outcome(lines, self._panels([*beside.values(), *runs.values()], unseen))

    def _missing(self, results: Mapping[str, Result]) -> list[str]:
        """Runs that are missing for a complete replication, as "SYSTEM (seed 1, 3)"."""
        missing = [name for name in _BESIDE if name not in results]
        for name in self.systems:
            seeds = [str(seed) for seed in self.seeds if f"{name}_seed{seed}" not in results]
            missing += [f"{name} (seed {', '.join(seeds)})"] if seeds else []
        return missing

    def _check(self, results: Mapping[str, Result], folder: Path) -> None:
        first = next(iter(results.values()))
        for name, result in results.items():
            found = _seed(name)
            if name not in _BESIDE and (found is None or found[0] not in self.systems):
                raise UserError(
                    f"{folder / name} is none of teacher, cascade and SYSTEM_seedK with SYSTEM one of"
                    f" {', '.join(self.systems)}"
                )
            asked = result.values["task"], result.values["metric"]
            if asked != (self.task, self.metric):
                raise UserError(f"{folder / name} is of {'/'.join(asked)}, not of {self.task}/{self.metric}")
            if result.answers.keys() != first.answers.keys():
                raise UserError(f"{folder / name} has other samples than the folders beside it")
            scored = result.measure(self.metric, list(result.answers))
            if abs(scored.value(scored.rows) - result.values["value"]) > 1e-6:
                raise UserError(f"{folder / name}: its samples do not give the figure of its {RESULTS}")
        check_comparable(list(results.values()))

    def _runs(self, folder: Path, results: Mapping[str, Result], ids: Sequence[str]) -> dict[str, Runs]:
        """Our systems that have been run, in the order of the experiment."""
        runs = {}
        for name in self.systems:
            seeds = sorted(found[1] for of in results if (found := _seed(of)) and found[0] == name)
            if seeds:
                folders = [f"{name}_seed{seed}" for seed in seeds]
                scores = np.stack([_scores(results[of], ids) for of in folders])
                training = [read for of in folders if (read := _summary(folder / of / TRAINING)) is not None]
                runs[name] = Runs(name, tuple(seeds), scores, training)
        return runs

    # ---- tables

    def _answers(self, runs: Mapping[str, Runs], beside: Mapping[str, Runs], unseen: np.ndarray) -> list[str]:
        header = (
            *("system", "seeds", f"{self.metric}, mean", "each seed", "SD over seeds", "seen voices"),
            *(f"unseen voice ({', '.join(self.unseen)})", "minus ceiling", f"minus {self.against}", "failed"),
        )
        rows = []
        for run in (*beside.values(), *runs.values()):
            each = (
                [", ".join(f"{v:.3f}" for v in run.each_seed), _sd(run.each_seed)] if run.seeds else ["", ""]
            )
            parts = [_sure(run.among(chosen)) if chosen.any() else "" for chosen in (~unseen, unseen)]
            differences = [
                _difference(run, other) if run.seeds and other is not None and other is not run else ""
                for other in (beside.get("teacher"), runs.get(self.against))
            ]
            failed = str(int(np.isnan(run.scores).sum()))
            seeds = ", ".join(map(str, run.seeds))
            rows.append([run.label, seeds, _sure(run), *each, *parts, *differences, failed])
        counts = f"{unseen.size} samples, {int(unseen.sum())} of them in an unseen voice."
        return [*Table(header, rows).markdown(), "", f"{counts} {_ABOUT_INTERVALS}"]

    def _order(self, runs: Mapping[str, Runs], authors: Authors) -> str:
        """One paragraph: the paper's order, ours, and for how many pairs ours is certain."""
        key = (self.order_by[0], self.order_by[1])
        theirs = {name: _published(authors, system, key) for name, system in self.systems.items()}
        paper = sorted(theirs, key=lambda name: -theirs[name])
        said = f"The paper's order ({'/'.join(key)}): {_chain(paper, theirs)}."
        if lacking := [name for name in paper if name not in runs]:
            return f"{said} Ours is not known yet: {', '.join(lacking)} not run."
        means = {name: run.mean for name, run in runs.items()}
        ours = sorted(paper, key=lambda name: -means[name])
        verdicts = [
            _verdict(difference(runs[better], runs[worse]).interval)
            for better, worse in combinations(paper, 2)
        ]
        return (
            f"At this size the paper's order {_holds(paper, means)}. {said} Ours ({self.task}/{self.metric}):"
            f" {_chain(ours, means)}. Of the {len(verdicts)} pairs {verdicts.count('as')} are as in the paper,"
            f" {verdicts.count('against')} the other way round, and {verdicts.count('open')} cannot be told apart:"
            f" the interval of their difference holds zero.{_trained_order(paper, runs)}"
        )

    def _panels(self, runs: Sequence[Runs], unseen: np.ndarray) -> list[Panel]:
        everything = np.ones_like(unseen)
        parts = [("all voices", everything), ("seen voices", ~unseen), ("unseen voice", unseen)]
        groups = [Group(name, [_bar(run.among(of)) for run in runs]) for name, of in parts if of.any()]
        panels = [Panel(f"Ours: {named(self.metric)}", groups)]
        for measure in _DRAWN:
            groups = [Group(named(of), _trained_bars(runs, f"{of}/{measure}")) for of in _VALIDATED]
            groups = [group for group in groups if group.bars]
            panels += [Panel(f"Ours: {named(measure)}", groups)] if groups else []
        return panels


_ABOUT_INTERVALS = (
    "Intervals: 95%, bootstrap over seeds and samples together (1,000 draws); differences seed by seed and sample by"
    " sample."
)


def _seed(name: str) -> tuple[str, int] | None:
    """SYSTEM_seedK -> SYSTEM, K."""
    found = re.fullmatch(r"(.+)_seed(\d+)", name)
    return (found[1], int(found[2])) if found else None


def _published(authors: Authors, system: str, key: tuple[str, str]) -> float:
    try:
        return authors.figures[system][key].value
    except KeyError as error:
        raise UserError(f"authors.json has no figure of {system} for {'/'.join(key)}") from error


def _holds(paper: Sequence[str], means: Mapping[str, float]) -> str:
    return "holds" if all(means[a] > means[b] for a, b in pairwise(paper)) else "does not hold"


def _trained_order(paper: Sequence[str], runs: Mapping[str, Runs]) -> str:
    """The order by a metric of training, if every system has it. It says more if few answers are right."""
    values = {name: _trained(runs[name], _ORDERED) for name in paper}
    if not all(values.values()):
        return ""
    means = {name: float(np.mean(of)) for name, of in values.items()}
    ours = sorted(paper, key=lambda name: -means[name])
    return f" By {_TRAINING[_ORDERED]} in training it {_holds(paper, means)}: {_chain(ours, means)}."


def _verdict(of: Interval | None) -> str:
    """Whether a difference that is above zero in the paper is so here too: as, against or open."""
    if of is None or of[0] <= 0 <= of[1]:
        return "open"
    return "as" if of[0] > 0 else "against"


def _beside(results: Mapping[str, Result], ids: Sequence[str]) -> dict[str, Runs]:
    return {
        name: Runs(label, (), _scores(results[name], ids).reshape(1, -1))
        for name, label in _BESIDE.items()
        if name in results
    }


def _scores(result: Result, ids: Sequence[str]) -> np.ndarray:
    """Scores [n]. Raises UserError for a metric that does not give each answer a score."""
    rows = result.measure(result.values["metric"], ids).rows
    if rows.shape[1] != 1:
        raise UserError(f"{result.values['metric']} is no mean over answers, which seeds are put together by")
    return rows[:, 0]


def _summary(file: Path) -> dict[str, Any] | None:
    """A run's summary.json; None if there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _training_table(runs: Sequence[Runs]) -> list[str]:
    """Mean and SD over seeds of training's metrics on held-out sentences."""
    keys = [key for key in _TRAINING if any(_trained(run, key) for run in runs)]
    if not keys:
        return ["Metrics of training: not on this machine."]
    rows = [
        [run.label, *(spread(_trained(run, key), 1 if key == "seconds" else 3) for key in keys)]
        for run in runs
    ]
    table = Table(("training, mean ± SD over seeds", *(_TRAINING[key] for key in keys)), rows)
    return [
        *table.markdown(),
        "",
        "Agreement and KL are to the text LLM's first token, on held-out sentences.",
    ]


def _trained(run: Runs, key: str) -> list[float]:
    scale = 60.0 if key == "seconds" else 1.0
    return [summary[key] / scale for summary in run.training if key in summary]


def _sd(values: Sequence[float]) -> str:
    return f"{np.std(values, ddof=1):.3f}" if len(values) > 1 else ""


def _sure(run: Runs) -> str:
    return f"{run.mean:.3f}{brackets(run.interval)}"


def _difference(run: Runs, other: Runs) -> str:
    found = difference(run, other)
    return f"{found.value:+.3f}{brackets(found.interval)}"


def _chain(order: Sequence[str], values: Mapping[str, float]) -> str:
    return " > ".join(f"{name} {values[name]:.3f}" for name in order)


def _bar(run: Runs) -> Bar:
    points = tuple(run.each_seed) if len(run.seeds) > 1 else ()
    return Bar(named(run.label), run.mean, run.interval, not run.seeds, points)


def _trained_bars(runs: Sequence[Runs], key: str) -> list[Bar]:
    """A metric of training: the mean over seeds, and each seed as a point."""
    pairs = [(run.label, _trained(run, key)) for run in runs]
    return [
        Bar(named(label), float(np.mean(of)), None, points=tuple(of) if len(of) > 1 else ())
        for label, of in pairs
        if of
    ]
