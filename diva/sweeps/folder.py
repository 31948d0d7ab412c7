"""A sweep on disk: one folder for each run, with its overrides and how it ended."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf

from diva.files import written_whole

Status = Literal["finished", "failed", "pruned", "unfinished"]
JOURNAL = "study.journal"  # in a sweep's folder: the trials of a study
TRIAL = "trial.json"  # in a run's folder: the run is a trial of that study
_OUTCOME, _OVERRIDES, _SUMMARY = "outcome.json", "overrides.yaml", "summary.json"


class Pruned(Exception):
    """Ends a run that does not look promising. Its outcome has been written before."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended, or that it has not ended."""

    status: Status
    reason: str = ""  # one line
    users_fault: bool = False  # whether a failed run had exit code 2, not 1


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its folder and its overrides."""

    folder: Path
    overrides: tuple[str, ...]

    @property
    def values(self) -> dict[str, str]:
        """Override name -> value, as given on the command line."""
        return values(self.overrides)

    @property
    def outcome(self) -> Outcome:
        """The outcome, from outcome.json (failed and pruned runs) or summary.json (finished runs)."""
        file = self.folder / _OUTCOME
        if file.is_file():
            return Outcome(**json.loads(file.read_text(encoding="utf-8")))
        return Outcome("finished" if (self.folder / _SUMMARY).is_file() else "unfinished")

    @property
    def done(self) -> bool:
        """Whether the run is not to be started again: it has finished or was pruned. Failed runs are tried again."""
        return self.outcome.status in ("finished", "pruned")

    @property
    def figures(self) -> dict[str, float]:
        """The final metrics of a finished run; empty for any other."""
        if self.outcome.status != "finished":
            return {}
        summary = json.loads((self.folder / _SUMMARY).read_text(encoding="utf-8"))
        return {name: value for name, value in summary.items() if isinstance(value, int | float)}

    def begin(self) -> None:
        """Make the folder, and remove the outcome of an earlier attempt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(list(self.overrides)), self.folder / _OVERRIDES)
        for name in (_OUTCOME, _SUMMARY):
            (self.folder / name).unlink(missing_ok=True)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write into a run's folder how it ended; whole or not at all."""
    with written_whole(folder / _OUTCOME) as file:
        file.write_text(json.dumps(vars(outcome)) + "\n", encoding="utf-8")


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
    """Each list of overrides with its folder: the folder of the same overrides, or the next free number.

    Runs are identified by their overrides, not by their place in the grid. So a value that is added to a sweep does not
    change the numbers of other runs.
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
