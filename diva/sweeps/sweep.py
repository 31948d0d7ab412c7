"""`python -m diva.train -m ...`: many runs from one command line, each a process of its own.

A failed run does not end the sweep. The same command with the same hydra.sweep.dir continues a sweep. Finished and
pruned runs are not run again. All others resume from their last checkpoint.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from filelock import FileLock, Timeout
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from diva.config import CONFIG_DIR, check_overrides, hydra_private, make
from diva.config.hydra_private import Override, composing
from diva.errors import UserError
from diva.sweeps.folder import JOURNAL, SweepRun, find_runs, place_runs
from diva.sweeps.table import gather, print_tables
from diva.terminal import say

# Keys of Hydra that are not supported in a sweep -> what to use instead.
_REFUSED = {
    "hydra/launcher": "sweep=serial, parallel or slurm says where runs happen",
    "hydra.launcher": "sweep.runner.KEY=VALUE says how runs happen",
    "hydra/sweeper": "sweep=optuna searches",
    "hydra.sweep.subdir": "runs are numbered; hydra.sweep.dir=FOLDER says where",
    "hydra.run.dir": "hydra.sweep.dir=FOLDER says where a sweep goes",
    "resume": "a sweep is continued by its own command with hydra.sweep.dir=FOLDER",
}


class Runner(Protocol):
    """Where runs happen."""

    n_jobs: int

    def __call__(self, run: SweepRun, options: list[str]) -> None: ...

    def stop(self) -> str: ...


class Source(Protocol):
    """Chooses the next run."""

    def take(self) -> SweepRun | None: ...

    def ended(self, run: SweepRun) -> None: ...


class Study(Protocol):
    """A search, which chooses the values of the next run from the results of those that have ended."""

    def open(self, folder: Path, overrides: list[Override]) -> Source: ...


class Grid:
    """All combinations of the given values, in order, without finished runs."""

    def __init__(self, runs: list[SweepRun]):
        self._waiting = [run for run in runs if not run.done]

    def take(self) -> SweepRun | None:
        return self._waiting.pop(0) if self._waiting else None

    def ended(self, run: SweepRun) -> None:
        """Does nothing, because a grid does not depend on results."""


def sweep(arguments: list[str], config_name: str, config_dir: str | None) -> int:
    """Carry out the sweep that the overrides `arguments` ask for; returns its exit code.

    0: every run finished or was pruned. 2: some failed, all because of the user's input. 1: some failed for another
    reason. Raises UserError before any run starts if the sweep itself is wrong.
    """
    config = check_overrides(config_name, arguments, config_dir)
    if config.hardware.num_nodes != 1:
        raise UserError(
            f"hardware.num_nodes={config.hardware.num_nodes}: a run of a sweep stays on one machine"
        )
    folder, parameters = _sweep_folder(arguments, config_name, config_dir)
    overrides = _parse([*(f"{key}={value}" for key, value in parameters.items()), *arguments])
    options = ["--config-dir", str(Path(config_dir).absolute())] if config_dir else []
    of_runs = [override for override in overrides if not _concerns_sweep(override)]
    runner: Runner = make(config.sweep.runner)
    study: Study | None = make(config.sweep.study) if "study" in config.sweep else None
    grid = [] if study else combinations(of_runs)
    _check_choices(grid, config_name, config_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            _check_kind(folder, study)
            source = study.open(folder, of_runs) if study else Grid(place_runs(folder, grid))
            swept = {override.get_key_element() for override in of_runs if override.is_sweep_override()}
            started = carry_out(source, runner, options, swept)
    except Timeout as error:
        raise UserError(f"another sweep is at work in {folder}") from error
    print_tables(gather(find_runs(folder)), str(folder))
    return exit_code(started)


def combinations(overrides: list[Override]) -> list[tuple[str, ...]]:
    """All combinations of the given values. Raises UserError for an interval, which has infinitely many values."""
    for override in overrides:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(f"{override.input_line}: an interval is something to search, with sweep=optuna")
    return hydra_private.combinations(overrides)


def _check_kind(folder: Path, study: Study | None) -> None:
    if find_runs(folder) and (folder / JOURNAL).exists() != (study is not None):
        kind = "every combination of its values" if study else "a search"
        raise UserError(f"the sweep in {folder} is {kind}: give this one a hydra.sweep.dir of its own")


def exit_code(runs: list[SweepRun]) -> int:
    """The exit code of a sweep over `runs`."""
    failed = [run.outcome for run in runs if run.outcome.status == "failed"]
    if not failed:
        return 0
    return 2 if all(outcome.users_fault for outcome in failed) else 1


def _concerns_sweep(override: Override) -> bool:
    key = override.get_key_element().lstrip("+~")
    return key == "sweep" or key.startswith(("sweep.", "hydra.sweep.", "hydra.sweeper."))


def _parse(arguments: list[str]) -> list[Override]:
    overrides = hydra_private.parse(arguments)
    for override in overrides:
        key = override.get_key_element().lstrip("+~")
        for refused, instead in _REFUSED.items():
            if key == refused or key.startswith(f"{refused}."):
                raise UserError(f"{key} has no place in a sweep: {instead}")
    return overrides


def _sweep_folder(
    arguments: list[str], config_name: str, config_dir: str | None
) -> tuple[Path, dict[str, str]]:
    """hydra.sweep.dir and hydra.sweeper.params of the command line `arguments`."""
    plain = [str(o.input_line) for o in _parse(arguments) if not o.is_sweep_override()]
    with composing(CONFIG_DIR, config_dir) as extra:
        config: DictConfig = compose(config_name, overrides=plain + extra, return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # the folder's name may refer to hydra's own values
    folder = Path(config.hydra.sweep.dir)
    HydraConfig.instance().cfg = None
    return folder, dict(config.hydra.sweeper.params or {})


def _check_choices(grid: list[tuple[str, ...]], config_name: str, config_dir: str | None) -> None:
    """Compose configs until every value of every key has been used, so that a misspelt one is found before any run."""
    seen: set[str] = set()
    for overrides in grid:
        if not seen.issuperset(overrides):
            check_overrides(config_name, list(overrides), config_dir)
            seen.update(overrides)


def carry_out(source: Source, runner: Runner, options: list[str], swept: set[str]) -> list[SweepRun]:
    """`runner.n_jobs` runs at a time until there is no next one; returns those that were started.

    `swept` are the keys with several values, which distinguish the runs.
    """
    taking = threading.Lock()
    started: list[SweepRun] = []
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            with taking:
                run = source.take()
                if run is None:
                    return
                started.append(run)
            own = [override for override in run.overrides if override.partition("=")[0] in swept]
            say(f"run {run.folder.name} starts: {' '.join(own)}")
            begun = time.time()
            runner(run, options)
            with taking:
                source.ended(run)
            say(_ending(run, time.time() - begun))

    with ThreadPoolExecutor(runner.n_jobs) as pool, _sigterm_as_interrupt():
        workers = [pool.submit(work) for _ in range(runner.n_jobs)]
        try:
            done, _ = wait(workers, return_when=FIRST_EXCEPTION)
            for worker in done:
                worker.result()
        except BaseException:
            stopping.set()
            say(runner.stop())
            raise
    return started


def _ending(run: SweepRun, seconds: float) -> str:
    outcome, figures = run.outcome, run.figures
    shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if name.startswith("val"))
    text = shown or outcome.reason or f"log: {run.folder / 'run.log'}"
    return f"run {run.folder.name} {outcome.status} after {seconds / 60:.1f} min: {text}"


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """On SIGTERM a sweep lets its runs save, as with Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as interrupted:
        number = interrupted.args[0] if interrupted.args else signal.SIGINT
        say("stopped; the same command with the same hydra.sweep.dir goes on from here")
        sys.exit(128 + number)
    finally:
        signal.signal(signal.SIGTERM, before)
