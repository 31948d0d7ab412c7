"""Checkpoints that hold the trained weights only, and the check that a run can resume from one."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from diva.errors import UserError
from diva.models.lora import is_lora

ADAPTER_PREFIX = "model.adapter."


def adapter_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained part of a training module's state: the adapter, and LoRA matrices of the LLM.

    Frozen weights are never written to disk.
    """
    return {key: value for key, value in state.items() if key.startswith(ADAPTER_PREFIX) or is_lora(key)}


def without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter of a module's `state_dict`, by the names that an export has."""
    return {
        key.removeprefix(ADAPTER_PREFIX): value
        for key, value in state.items()
        if key.startswith(ADAPTER_PREFIX)
    }


def check_adapter_keys(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise UserError unless names and shapes agree. Loading is not strict, so this is the only check."""
    missing = sorted(expected.keys() - found.keys())
    surplus = sorted(found.keys() - expected.keys())
    if missing or surplus:
        raise UserError(
            f"the checkpoint is of another adapter: missing keys {missing[:3]}, unexpected keys {surplus[:3]};"
            " resume with the model config of the run it comes from"
        )
    for key, value in found.items():
        if value.shape != expected[key].shape:
            raise UserError(
                f"the checkpoint is of another adapter: {key} has shape {list(value.shape)}, the model"
                f" {list(expected[key].shape)}; resume with the model config of the run it comes from"
            )


class StreamedCheckpointIO(TorchCheckpointIO):
    """Streams a checkpoint to disk. Lightning's own class first builds two copies of it in memory.

    A killed process may leave half a file. So the caller writes to a temporary name and renames it
    (`diva.training.callbacks.LastCheckpoint`).
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "wb") as file:  # given a path, torch reports a full disk as a broken archive
                torch.save(checkpoint, file)
        except OSError as error:
            Path(path).unlink(missing_ok=True)  # half a file would take disk space that a resumed run needs
            raise OSError(error.errno, error.strerror, str(path)) from error


def check_resumable(path: Path) -> None:
    """Raise UserError unless `path` is a complete, undamaged checkpoint. torch itself checks no checksum."""
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
    except Exception as error:  # a damaged archive or pickle can raise any exception
        raise UserError(f"{path} is damaged and cannot be resumed from ({str(error)[:100]})") from error
