"""Reading and writing the folder of a model.

An export holds `config.json`, the adapter and the LLM's LoRA matrices in `model.safetensors`, the tokenizer, and the
code to load it (`remote_code`). Only AutoProcessor reads this tokenizer; a model uses that of its LLM.
`config.json` names the frozen parts, or they are in folders next to it. The published layouts are in `released`.
"""

import json
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError
from ..files import written_whole
from .configuration import DivaConfig
from .lora import LORA
from .pretrained import ADAPTER_WEIGHTS, FORK_FILES, adapter_files, is_fork, resolve
from .released import ENCODER, QFORMERS, Checkpoint, State, from_released, is_released

WEIGHTS = "model.safetensors"


def export_folder(name: str | Path) -> Path:
    """The folder with the files of `name`. Raises UserError if there are none."""
    folder = Path(name).expanduser()
    if (folder / "export").is_dir():
        return folder / "export"
    if folder.is_dir() and not (folder / "config.json").is_file() and not is_fork(folder):
        raise UserError(
            f"{folder} is neither a run that has ended (it would have export/) nor an export (config.json)"
        )
    return resolve(str(name), diva=True)


def read(folder: Path, llm: str | None = None, encoder: str | None = None) -> Checkpoint:
    """Read an export or a released checkpoint. `llm` and `encoder` replace the names of the frozen parts in its config.

    Raises UserError if the folder is not a DiVA, or if neither its config nor the arguments name the frozen parts.
    """
    try:
        described = (folder / "config.json").is_file() or not is_fork(folder)
        values = json.loads((folder / "config.json").read_text(encoding="utf-8")) if described else {}
        state = read_weights(folder, ("",)) if "adapter" in values else read_weights(folder)
    except (OSError, ValueError, SafetensorError, UnpicklingError) as error:
        raise UserError(f"{folder} is not a readable export: {error}") from error
    names = {part: name for part, name in (("llm", llm), ("encoder", encoder)) if name}
    if "adapter" in values:
        lora = {name: value for name, value in state.items() if name.startswith(LORA)}
        adapter = {name: value for name, value in state.items() if name not in lora}
        return Checkpoint(_beside(DivaConfig.from_dict(values, **names), folder), adapter, lora=lora)
    if "reference_encoder" in values or is_released(state):
        return from_released(values, state, folder, names)
    raise UserError(f"{folder}/config.json is of a {values.get('model_type', 'model')}, not of a DiVA")


def read_weights(folder: Path, prefixes: tuple[str, ...] = ADAPTER_WEIGHTS) -> State:
    """The weights whose names start with one of `prefixes`. Other weights in the same files are not read."""
    if is_fork(folder):
        qformer, encoder = (
            torch.load(folder / file, map_location="cpu", weights_only=True) for file in FORK_FILES
        )
        below = {QFORMERS[1] + name: value for name, value in qformer.items()}
        return below | {ENCODER + name: value for name, value in encoder.items()}
    state: State = {}
    for file in adapter_files(folder):
        with safe_open(folder / file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefixes)]  # noqa: SIM118
            state |= {name: tensors.get_tensor(name) for name in names}
    return state


def _beside(config: DivaConfig, folder: Path) -> DivaConfig:
    """The config with the folders of those frozen parts that the export contains."""
    for part, key, name in (
        ("encoder", "name", "encoder"),
        ("llm", "name", "llm"),
        ("adapter", "decoder", "decoder"),
    ):
        value = getattr(config, part)
        if getattr(value, key) == name and (folder / name).is_dir():
            setattr(config, part, replace(value, **{key: str(folder / name)}))
    return config


@torch.no_grad()
def write(folder: Path, config: dict[str, Any], state: State) -> None:
    """Write weights, then config.json. The folder is complete when it has config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with written_whole(folder / WEIGHTS) as file:
        save_file(tensors, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
