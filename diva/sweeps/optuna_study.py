"""A sweep that searches: Optuna chooses the values, and ends unpromising runs early.

The command line gives the search space in Hydra's syntax: `key=a,b`, `key=range(1,9)`, `key=interval(0.1,1)`,
`key='tag(log,interval(1e-5,1e-3))'`. The study is in study.journal in the sweep's folder. Runs read and write that file
too, so they may be on any machine.
"""

import json
from pathlib import Path

import optuna
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from diva.config import make
from diva.config.hydra_private import IntervalSweep, Override, RangeSweep
from diva.errors import UserError
from diva.sweeps.folder import JOURNAL, TRIAL, Outcome, Pruned, SweepRun, write_outcome

FIGURE = "val/kl"  # the metric that is minimised, and that pruning compares
_NAME = "sweep"
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class Study:
    """`trials` runs. `sampler` chooses the values of each from the results of the runs that have ended.

    sampler: config of an Optuna sampler with a `seed`.
    pruner: config of an Optuna pruner; its steps are optimizer steps, at which runs validate.
    """

    def __init__(self, trials: int, sampler: DictConfig, pruner: DictConfig):
        self.trials = trials
        self.sampler = sampler
        self.pruner = pruner

    def open(self, folder: Path, overrides: list[Override]) -> "Study":
        """Begin the study in `folder`, or continue it, unfinished trials first; returns itself.

        Raises UserError if there is nothing to search, or the study in `folder` has another search space.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._folder = folder
        # The command line comes after hydra.sweeper.params, so its values are used.
        last = {o.get_key_element(): o for o in overrides}.values()
        self._space = {o.get_key_element(): distribution(o) for o in last if o.is_sweep_override()}
        self._fixed = [str(o.input_line) for o in last if not o.is_sweep_override()]
        if not self._space:
            raise UserError("sweep.study has nothing to search: give a key several values, or an interval")
        self._study = optuna.create_study(
            storage=_storage(folder), study_name=_NAME, direction="minimize", load_if_exists=True
        )
        task = {"fixed": sorted(self._fixed), "space": {name: str(d) for name, d in self._space.items()}}
        if self._study.user_attrs.get("task", task) != task:
            raise UserError(
                f"the study in {folder} searches something else: continue it with its own overrides,"
                " or give this one a hydra.sweep.dir of its own"
            )
        self._study.set_user_attr("task", task)
        known = self._study.trials
        # A new sampler with the same seed would propose the same values again.
        self._study.sampler = make(OmegaConf.merge(self.sampler, {"seed": self.sampler.seed + len(known)}))
        self._interrupted = [trial for trial in known if trial.state == TrialState.RUNNING]
        self._left = self.trials - sum(trial.state in _ENDED for trial in known)
        return self

    def take(self) -> SweepRun | None:
        if self._left <= 0:
            return None
        self._left -= 1
        if self._interrupted:
            return self._run(self._interrupted.pop(0))
        trial = self._study.ask(fixed_distributions=self._space)
        return self._run(self._study.trials[trial.number])

    def ended(self, run: SweepRun) -> None:
        """Report the run to the study. A stopped run stays open. A run without the metric has failed."""
        number, status = int(run.folder.name), run.outcome.status
        if status == "finished":
            self._study.tell(number, run.figures.get(FIGURE))
        elif status != "unfinished":
            self._study.tell(number, state=TrialState.PRUNED if status == "pruned" else TrialState.FAIL)

    def _run(self, trial: FrozenTrial) -> SweepRun:
        chosen = [f"{name}={value}" for name, value in trial.params.items()]
        run = SweepRun(self._folder / str(trial.number), (*self._fixed, *chosen))
        run.folder.mkdir(exist_ok=True)
        pruner = OmegaConf.to_container(self.pruner, resolve=True)
        (run.folder / TRIAL).write_text(
            json.dumps({"number": trial.number, "pruner": pruner}), encoding="utf-8"
        )
        return run


class Pruning(Callback):
    """Reports each validation's metric to the study, and ends the run if the study's pruner says so."""

    def __init__(self, folder: Path, study: optuna.Study, trial_id: int, storage: JournalStorage):
        self.folder = folder
        self.study = study
        self.trial_id = trial_id
        self.storage = storage

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step >= trainer.max_steps:
            return
        reason = self._reason(trainer) if trainer.is_global_zero else ""
        if trainer.strategy.broadcast(reason):  # all ranks end together
            raise Pruned

    def _reason(self, trainer: Trainer) -> str:
        value = float(trainer.callback_metrics[FIGURE])
        self.storage.set_trial_intermediate_value(self.trial_id, trainer.global_step, value)
        if not self.study.pruner.prune(self.study, self.storage.get_trial(self.trial_id)):
            return ""
        reason = f"{FIGURE} {value:.4g} at step {trainer.global_step} of {trainer.max_steps}"
        write_outcome(self.folder, Outcome("pruned", reason))
        return reason


def pruning(folder: Path) -> list[Callback]:
    """The callback for the run in `folder`, if the run is an unfinished trial of a study."""
    trial = json.loads((folder / TRIAL).read_text(encoding="utf-8"))
    storage = _storage(folder.parent)
    study = optuna.load_study(
        study_name=_NAME, storage=storage, pruner=make(OmegaConf.create(trial["pruner"]))
    )
    study_id = storage.get_study_id_from_name(_NAME)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial["number"])
    if storage.get_trial(trial_id).state.is_finished():
        return []  # the user runs a pruned run to its end by hand
    return [Pruning(folder, study, trial_id, storage)]


def distribution(override: Override) -> BaseDistribution:
    """The distribution that Optuna draws from. Raises UserError for syntax of Hydra without equivalent in Optuna."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        unknown = value.tags - {"log"}
        if unknown:
            raise UserError(
                f"{override.input_line}: there is no tag {', '.join(sorted(unknown))}; there is: log"
            )
        assert value.start is not None
        assert value.end is not None
        if isinstance(value.start, int):
            return IntDistribution(value.start, int(value.end), log="log" in value.tags)
        return FloatDistribution(value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep):
        numbers = sorted(value.range())
        if all(isinstance(number, int) for number in numbers):
            return IntDistribution(int(numbers[0]), int(numbers[-1]), step=abs(int(value.step)))
        return FloatDistribution(numbers[0], numbers[-1], step=abs(value.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _storage(folder: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
