"""Callbacks of a training run: checkpoints, progress bar, throughput."""

import os
import signal
import time
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from diva.terminal import label, progress
from diva.training.metrics_file import MetricsFile


class LastCheckpoint(Callback):
    """Writes `last.ckpt` every `every_n_steps` steps, at the end, and before a SIGTERM (preemption) stops the run.

    It is also written before each validation (`val_every`): a run stopped during validation need not repeat steps.
    The checkpoint is written to a temporary file and then renamed, so a killed run never leaves half a checkpoint.
    """

    def __init__(self, folder: str | Path, every_n_steps: int, val_every: int):
        self.path = Path(folder) / "last.ckpt"
        self.intervals = every_n_steps, val_every
        self._saved_at = -1

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx
    ) -> None:
        due = any(trainer.global_step % interval == 0 for interval in self.intervals)
        if due or trainer.received_sigterm:
            self._write_row(trainer)
            self._save(trainer)  # Lightning ends the run once this step's metrics are written

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save(trainer)

    def _write_row(self, trainer: Trainer) -> None:
        """The row of this step in metrics.csv. Lightning writes it after the checkpoint: if it does not come to that, a
        resumed run would not repeat the step."""
        if trainer.global_step % trainer.log_every_n_steps == 0:
            measured = trainer.callback_metrics.items()
            row = {name: float(value) for name, value in measured if name.startswith("train/")}
            for logger in trainer.loggers:
                if isinstance(logger, MetricsFile):
                    logger.log_metrics(row | {"epoch": trainer.current_epoch}, trainer.global_step - 1)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step == self._saved_at:
            return
        self._saved_at = trainer.global_step
        temporary = self.path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)  # a collective: every rank calls it, rank 0 writes
        if trainer.is_global_zero:
            os.replace(temporary, self.path)


class Preemption(Callback):
    """All ranks stop after the same step, whichever of them got the SIGTERM.

    Lightning's own handler waits for the other ranks, in the middle of what the signal has interrupted: they may wait
    for something else, for ever (its issue 20806). Here the handler only makes a note, and the next step, which sums
    counts over all ranks anyway, tells them.
    """

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.world_size > 1:
            # Lightning has registered its handlers by now, and restores the earlier ones after training.
            signal.signal(signal.SIGTERM, lambda *given: setattr(module, "asked_to_stop", True))


class Throughput(Callback):
    """Logs clips per second over all devices, and the fraction of step time spent waiting for data.

    Also the seconds of all steps so far, without validation: for curves over time.
    """

    def __init__(self) -> None:
        self.clips = 0
        self.seconds = 0.0
        self.waited = 0.0
        self._step_started = self._step_ended = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step_ended = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._step_ended = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch, batch_idx) -> None:
        self._step_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx
    ) -> None:
        now = time.perf_counter()
        clips = int(batch.valid.sum()) * trainer.world_size
        seconds, waited = now - self._step_ended, self._step_started - self._step_ended
        self.clips += clips
        self.seconds += seconds
        self.waited += waited
        self._step_ended = now
        values = {
            "train/clips_per_second": clips / seconds,
            "train/data_wait_fraction": waited / seconds,
            "train/padding_fraction": batch.padding_fraction,
            "train/seconds": self.seconds,
        }
        module.log_dict(values, batch_size=max(clips, 1))

    def state_dict(self) -> dict[str, float]:
        return {"clips": self.clips, "seconds": self.seconds, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """A resumed run continues the counts."""
        self.clips, self.seconds = int(state_dict["clips"]), state_dict["seconds"]
        self.waited = state_dict["waited"]

    @property
    def waited_fraction(self) -> float:
        """Fraction of the step time spent waiting for data."""
        return self.waited / self.seconds if self.seconds else 0.0

    @property
    def clips_per_second(self) -> float:
        """Mean over the run, without validation."""
        return self.clips / self.seconds if self.seconds else 0.0


class RunProgress(Callback):
    """One bar for the whole run: step, loss, clips per second, time left."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._progress = progress(
            label("training", style="bold"),
            BarColumn(),
            MofNCompleteColumn(),
            label("{task.fields[figures]}"),
            TimeElapsedColumn(),
            label("left"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task(
            "training", total=trainer.max_steps, completed=trainer.global_step, figures=""
        )
        self._progress.start()

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx
    ) -> None:
        if self._progress is None:
            return
        logged = trainer.callback_metrics
        figures = f"loss {logged['train/loss']:.3f}  {logged['train/clips_per_second']:.1f} clips/s"
        self._progress.update(self._task, completed=trainer.global_step, figures=figures)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        # Not in on_validation_epoch_end: there callbacks run before the module, which logs the metrics.
        if self._progress is None:
            return
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith("train/")}
        line = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        self._progress.console.print(f"step {trainer.global_step}: {line}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
