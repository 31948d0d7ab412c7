"""Start a run from the adapter of another run or model (`model.start_from`). Only its weights are used."""

import json
from pathlib import Path

from diva.errors import UserError
from diva.models.configuration import DivaConfig, LoraConfig
from diva.models.folders import export_folder, read
from diva.models.lora import load_lora
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.released import Checkpoint, same_weights

_PROJECTION = {
    "projection.weight",
    "projection.bias",
}  # the only weights of a Q-Former that depend on the LLM


def read_start(config: DivaConfig) -> Checkpoint | None:
    """The checkpoint that `model.start_from` names (a finished run, an export, a hub id); None if it is not set.

    Raises UserError for any other name, and for an adapter with another architecture than in the config.
    """
    if config.start_from is None:
        return None
    folder = export_folder(config.start_from)
    checkpoint = read(folder, *(_name(folder, part, config) for part in ("llm", "encoder")))
    for key in ("kind", "num_query_tokens", "stack"):
        there, here = getattr(checkpoint.config.adapter, key), getattr(config.adapter, key)
        if there != here:
            raise UserError(
                f"model.start_from={config.start_from} has model.adapter.{key}={there}, this run has {here}: give"
                f" model.adapter.{key}={there}"
            )
    there, here = checkpoint.config.llm.lora, config.llm.lora
    if there is not None and there != here:
        raise UserError(
            f"model.start_from={config.start_from} has LoRA matrices of the LLM, with other settings than this run:"
            f" give model.llm.lora={_as_override(there)}"
        )
    return checkpoint


def _as_override(lora: LoraConfig) -> str:
    """Settings as they are written on the command line."""
    names = "null" if lora.target_modules is None else f"[{','.join(lora.target_modules)}]"
    return f"'{{r:{lora.r},alpha:{lora.alpha:g},target_modules:{names}}}'"


def _name(folder: Path, part: str, config: DivaConfig) -> str | None:
    """The config's name for a part that the checkpoint does not name."""
    file = folder / "config.json"
    described = file.is_file() and DivaConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))
    return None if described and getattr(described, part).name else getattr(config, part).name


def start_from(model: DivaForConditionalGeneration, start: Checkpoint) -> str:
    """Copy the weights of `start` into the adapter, and its LoRA matrices into the LLM. Returns a line for the log.

    If `start` was for an LLM of another width, its projection is not copied. Raises UserError for any other weight that
    does not fit, and for an adapter that needs its own encoder.
    """
    config, own, state = model.config, model.adapter.state_dict(), start.adapter
    where, llm, encoder = f"model.start_from={config.start_from}", config.llm.name, config.encoder.name
    if start.encoder is not None and not same_weights(model.encoder.body.state_dict(), start.encoder):
        raise UserError(
            f"{where} brings the encoder that was trained with it, which is not model.encoder.name={encoder}: load it,"
            " save_pretrained(FOLDER, full=True), and give model.encoder.name=FOLDER/encoder"
        )
    shapes = [{name: tuple(value.shape) for name, value in weights.items()} for weights in (state, own)]
    there, here = shapes
    unfit = {name for name in there.keys() | here.keys() if there.get(name) != here.get(name)}
    line = f"the adapter starts from {config.start_from}"
    if unfit == _PROJECTION and there["projection.weight"][1] == here["projection.weight"][1]:
        state = {name: value for name, value in state.items() if name not in _PROJECTION}
        line += (
            f", all but its projection: that one is for an LLM of width {there['projection.bias'][0]}, and {llm} has"
            f" {here['projection.bias'][0]}"
        )
    elif unfit:
        name = min(unfit)
        has, needs = (shape.get(name, "no such weight") for shape in shapes)
        raise UserError(
            f"{where} does not fit model.llm.name={llm} and model.encoder.name={encoder}: its {name} is {has}, here it"
            f" is {needs}{f', and {len(unfit) - 1} more differ' if len(unfit) > 1 else ''}"
        )
    elif start.config.llm.name != llm:
        line += f", which was trained with {start.config.llm.name}"
    model.adapter.load_state_dict(own | state)
    if start.lora:
        load_lora(model.llm, start.lora, where)
        line += ", with its LoRA matrices of the LLM"
    return line
