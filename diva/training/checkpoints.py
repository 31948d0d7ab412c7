"""Adapter-only state: what a checkpoint holds, and whether it can be resumed from."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from diva.errors import UserError

ADAPTER_PREFIX = "model.adapter."


def adapter_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trainable part of a training module's state: no frozen weight ever goes to disk."""
    return {key: value for key, value in state.items() if key.startswith(ADAPTER_PREFIX)}


def check_adapter_keys(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise UserError unless names and shapes agree: loading is not strict, so nothing else would notice."""
    missing = sorted(expected.keys() - found.keys())
    surplus = sorted(found.keys() - expected.keys())
    if missing or surplus:
        raise UserError(
            f"the checkpoint is of another adapter: it lacks {missing[:3]} and has {surplus[:3]} besides;"
            " resume with the model config of the run it comes from"
        )
    for key, value in found.items():
        if value.shape != expected[key].shape:
            raise UserError(
                f"the checkpoint is of another adapter: {key} has shape {list(value.shape)}, the model"
                f" {list(expected[key].shape)}; resume with the model config of the run it comes from"
            )


class StreamedCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint as it goes, where Lightning's puts two copies of it together in memory first.

    So a process that is killed may leave half a file: the caller renames (`diva.training.callbacks.LastCheckpoint`).
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "wb") as file:  # torch would say of a full disk that its archive is broken
                torch.save(checkpoint, file)
        except OSError as error:
            Path(path).unlink(missing_ok=True)  # half of it would take the room that a resumed run needs
            raise OSError(error.errno, error.strerror, str(path)) from error


def check_resumable(path: Path) -> None:
    """Raise UserError unless `path` is a whole checkpoint, to the bit: torch itself looks at no checksum."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the run to resume has not saved a checkpoint yet")
    try:
        with zipfile.ZipFile(path) as archive:
            if changed := archive.testzip():
                raise zipfile.BadZipFile(f"{changed} has another checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
        assert "state_dict" in state
    except PermissionError:
        raise
    except Exception as error:  # whatever a damaged archive or pickle leads to
        raise UserError(f"{path} is damaged and cannot be resumed from ({str(error)[:100]})") from error
