"""A sweep on disk: one folder a run, what each was to do, and how each ended."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf

from diva.files import written_whole

Status = Literal["finished", "failed", "pruned", "unfinished"]
JOURNAL = "study.journal"  # in a sweep's folder: what a study knows
TRIAL = "trial.json"  # in a run's folder: the run is a trial of that study
_OUTCOME, _OVERRIDES, _SUMMARY = "outcome.json", "overrides.yaml", "summary.json"


class Pruned(Exception):
    """Ends a run that is not worth its while; its outcome is written by then."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended, or that it has not."""

    status: Status
    reason: str = ""  # one line
    users_fault: bool = False  # of a failed run: exit code 2, not 1


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its folder and the overrides that make it what it is."""

    folder: Path
    overrides: tuple[str, ...]

    @property
    def values(self) -> dict[str, str]:
        """Override name -> value, as given on the command line."""
        return values(self.overrides)

    @property
    def outcome(self) -> Outcome:
        """From outcome.json, which failed and pruned runs have, or summary.json, which finished ones have."""
        file = self.folder / _OUTCOME
        if file.is_file():
            return Outcome(**json.loads(file.read_text()))
        return Outcome("finished" if (self.folder / _SUMMARY).is_file() else "unfinished")

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do: a failed run may be tried again, a pruned one is not."""
        return self.outcome.status in ("finished", "pruned")

    @property
    def figures(self) -> dict[str, float]:
        """The final figures of a finished run; empty for any other."""
        if self.outcome.status != "finished":
            return {}
        summary = json.loads((self.folder / _SUMMARY).read_text())
        return {name: value for name, value in summary.items() if isinstance(value, int | float)}

    def begin(self) -> None:
        """Make the folder, and forget how an earlier attempt ended."""
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(list(self.overrides)), self.folder / _OVERRIDES)
        for name in (_OUTCOME, _SUMMARY):
            (self.folder / name).unlink(missing_ok=True)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Leave word in a run's folder of how it ended; whole or not at all."""
    with written_whole(folder / _OUTCOME) as file:
        file.write_text(json.dumps(vars(outcome)) + "\n")


def values(overrides: Iterable[str]) -> dict[str, str]:
    """Override name -> value; names without the + of an added key."""
    pairs = (text.partition("=") for text in overrides)
    return {name.lstrip("+"): value for name, _, value in pairs}


def find_runs(sweep: Path) -> list[SweepRun]:
    """The runs of the sweep in folder `sweep`, in the order of their numbers."""
    folders = sorted(
        (file.parent for file in sweep.glob(f"*/{_OVERRIDES}")), key=lambda run: _natural(run.name)
    )
    return [
        SweepRun(folder, tuple(str(text) for text in OmegaConf.load(folder / _OVERRIDES)))
        for folder in folders
    ]


def place_runs(sweep: Path, wanted: list[tuple[str, ...]]) -> list[SweepRun]:
    """Each list of overrides with its folder: the one that holds this run already, or the next free number.

    Runs are known by what they do, not by their place in the grid: a value added to a sweep renumbers nothing.
    """
    taken = {frozenset(run.values.items()): run.folder for run in find_runs(sweep)}
    number = 1 + max((int(file.name) for file in sweep.glob("*") if file.name.isdigit()), default=-1)
    runs = []
    for overrides in wanted:
        folder = taken.get(frozenset(values(overrides).items()))
        if folder is None:
            folder = sweep / str(number)
            number += 1
        runs.append(SweepRun(folder, overrides))
    return runs


def _natural(name: str) -> tuple[int, str]:
    return (int(name) if name.isdigit() else -1, name)
