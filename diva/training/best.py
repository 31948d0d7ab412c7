"""The export of the best validation so far, in addition to the export of the last step."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from diva.errors import UserError
from diva.files import written_whole
from diva.training.checkpoints import without_prefix
from diva.training.measures import lower_is_better, measures

EXPORT, NOTE = "export_best", "best.json"


def check_best(config: DictConfig) -> None:
    """Raise UserError if `checkpoint_best` is not a metric of this run's validation."""
    names = [*config.data.get("pooled_val", ()), *config.data.val_splits]
    known = [f"{name}/{m}" for name in names for m in measures(config.answers.val_tokens)]
    if config.checkpoint_best is not None and config.checkpoint_best not in known:
        raise UserError(
            f"checkpoint_best={config.checkpoint_best} is not measured; there are: {', '.join(known)}"
        )


class BestExport(Callback):
    """Writes `export_best/` and `best.json` after each validation with the best value of `metric` so far.

    A resumed run continues from the value in `best.json`.
    """

    def __init__(self, folder: Path, metric: str, resumed: bool):
        self.folder = folder
        self.metric = metric
        self.best: float | None = None
        if resumed and (note := folder / NOTE).is_file():
            found = json.loads(note.read_text(encoding="utf-8"))
            self.best = found["value"] if found["metric"] == metric else None

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        value = float(trainer.callback_metrics[self.metric])
        if not self._is_better(value):
            return
        self.best = value
        adapter = trainer.strategy.lightning_module_state_dict()  # a collective if weights are sharded
        if trainer.is_global_zero:
            self._write(module.model, adapter, trainer.global_step)

    def _is_better(self, value: float) -> bool:
        if self.best is None or value != value:  # NaN: no clip could be validated
            return value == value
        return value < self.best if lower_is_better(self.metric) else value > self.best

    def _write(self, model: Any, adapter: dict[str, torch.Tensor], step: int) -> None:
        new = self.folder / f"{EXPORT}.new"
        shutil.rmtree(new, ignore_errors=True)
        model.save_pretrained(new, state_dict=without_prefix(adapter))
        # The earlier export is there until the new one is in its place, but for a moment.
        export, old = self.folder / EXPORT, self.folder / f"{EXPORT}.old"
        shutil.rmtree(old, ignore_errors=True)
        if export.is_dir():
            export.rename(old)
        new.rename(export)
        shutil.rmtree(old, ignore_errors=True)
        text = json.dumps({"metric": self.metric, "value": self.best, "step": step}) + "\n"
        with written_whole(self.folder / NOTE) as file:
            file.write_text(text, encoding="utf-8")
        card = f"# The best export of a run\n\nIts adapter is that of step {step:,}: {self.metric} {self.best:.4f}.\n"
        (self.folder / EXPORT / "README.md").write_text(card, encoding="utf-8")
