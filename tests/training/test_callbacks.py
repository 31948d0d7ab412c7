"""What the callbacks of a run write, and when."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import metrics

from diva.training.callbacks import LastCheckpoint
from diva.training.metrics_file import MetricsFile


@pytest.fixture
def trainer(tmp_path):
    """A trainer after its fourth step; a kill ends it while it saves."""

    def save_checkpoint(path: Path) -> None:
        raise KeyboardInterrupt

    measured = {"train/loss": torch.tensor(1.5), "val/kl": torch.tensor(0.5)}
    return SimpleNamespace(
        global_step=4,
        log_every_n_steps=2,
        current_epoch=1,
        callback_metrics=measured,
        received_sigterm=False,
        is_global_zero=True,
        loggers=[MetricsFile(tmp_path / "metrics.csv")],
        save_checkpoint=save_checkpoint,
    )


def end_of_batch(trainer, folder: Path) -> None:
    LastCheckpoint(folder, 4, 100).on_train_batch_end(trainer, None, None, None, 3)


def test_a_checkpoint_comes_after_the_row_of_its_step(trainer, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        end_of_batch(trainer, tmp_path)
    assert metrics(tmp_path) == [{"step": "3", "epoch": "1", "train/loss": "1.5"}]


def test_a_step_that_is_not_logged_has_no_row(trainer, tmp_path):
    trainer.log_every_n_steps = 3
    with pytest.raises(KeyboardInterrupt):
        end_of_batch(trainer, tmp_path)
    assert not (tmp_path / "metrics.csv").exists()
