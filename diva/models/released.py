"""Published checkpoints: convert them to our layout, check that they fit, and write them.

There are three layouts:
1. The authors' training code writes `query_tokens`, `projection.*` (the weight as [in, out]) and Whisper's decoder
   under `connector.`, in one file or in shards with the frozen parts.
2. The published model class and the Cantonese fork's class save the same under `connector.` or `qformer.`, with the
   weight as [out, in], and the encoder under `whisper_encoder.`.
3. The fork's training saves both as `qformer.pth` and `whisper_encoder.pth`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .configuration import AdapterConfig, DivaConfig

State = dict[str, Tensor]
# Prefixes of the Q-Former and of the encoder in a state dict that torch wrote.
QFORMERS = ("connector.", "qformer.")
ENCODER = "whisper_encoder."
# The frozen parts of the published DiVAs, by their width.
_LLMS = {
    2048: "meta-llama/Llama-3.2-1B-Instruct",
    3072: "meta-llama/Llama-3.2-3B-Instruct",
    3584: "hon9kon9ize/CantoneseLLMChat-v1.0-7B",
    4096: "meta-llama/Meta-Llama-3-8B-Instruct",
}
_ENCODERS = {768: "alvanlii/whisper-small-cantonese", 1280: "openai/whisper-large-v3"}


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a DiVA's files."""

    config: DivaConfig
    adapter: State
    encoder: State | None = None  # the encoder, if it was trained together with the adapter
    lora: State = field(default_factory=dict)  # LoRA matrices of the LLM


def is_released(state: State) -> bool:
    """Whether these are weights of a published form."""
    return any(f"{prefix}query_tokens" in state for prefix in ("", *QFORMERS))


def from_released(values: dict[str, Any], state: State, folder: Path, names: dict[str, str]) -> Checkpoint:
    """Convert a published config.json (`values`) and weights. `names` replace the names of the frozen parts.

    Raises UserError if weights are missing, or if neither `values` nor `names` have the names of the frozen parts.
    """
    state, encoder = _as_the_authors(state)
    try:
        queries, width = state["query_tokens"].shape
        weight, bias = state["projection.weight"], state["projection.bias"]
        positions = state["connector.embed_positions.weight"]
    except KeyError as error:
        raise UserError(f"{folder} lacks {error}, which a released DiVA has") from error
    if weight.shape[0] != len(bias) or weight.shape[0] == weight.shape[1]:
        weight = weight.T
    config = DivaConfig.from_dict(values, **names)
    _check_named(config, folder, width, len(bias))
    adapter = {
        "query_tokens": state["query_tokens"],
        "positions": positions[:queries],
        "projection.weight": weight.contiguous(),
        "projection.bias": bias,
    }
    for name, value in state.items():
        if name.startswith("connector.layers."):
            adapter[name.removeprefix("connector.")] = value
        elif name.startswith("connector.layer_norm."):
            adapter[name.replace("connector.layer_norm", "norm")] = value
    stack = max(1, weight.shape[1] // width)
    config.adapter = replace(config.adapter, num_query_tokens=queries, stack=stack)
    return Checkpoint(config, adapter, encoder)


def _as_the_authors(state: State) -> tuple[State, State | None]:
    """Convert layout 2 or 3 to layout 1. Returns the weights and the encoder.

    Weights in layout 1 are unchanged, and the encoder is None: it is exactly the one that the config names.
    """
    prefix = next((prefix for prefix in QFORMERS if f"{prefix}query_tokens" in state), None)
    if prefix is None:
        return state, None
    flat = {
        name.removeprefix(prefix).replace("decoder.", "connector.", 1): value
        for name, value in state.items()
        if name.startswith(prefix)
    }
    if "projection.weight" in flat:
        flat["projection.weight"] = flat["projection.weight"].T
    encoder = {name.removeprefix(ENCODER): value for name, value in state.items() if name.startswith(ENCODER)}
    return flat, encoder or None


def _check_named(config: DivaConfig, folder: Path, encoder_width: int, llm_width: int) -> None:
    """Raise UserError if the LLM or the encoder of a checkpoint is not named."""
    missing = []
    for part, width, known in (("llm", llm_width, _LLMS), ("encoder", encoder_width, _ENCODERS)):
        if not getattr(config, part).name:
            like = f", as {known[width]} is" if width in known else ""
            missing.append((part, f"{part} of width {width}{like}"))
    if missing:
        keywords, options = (
            " ".join(form.format(part) for part, _ in missing) for form in ("{0}=NAME", "--{0} NAME")
        )
        raise UserError(
            f"{folder} does not say of what it was made: an {' and an '.join(said for _, said in missing)}; name what"
            f" it was trained with: {options} on the command line, {keywords} in Python, system.llm= and"
            " system.encoder= in diva.evaluate"
        )


def check_fit(own: Mapping[str, Tensor], state: State, folder: Path, config: DivaConfig) -> None:
    """Raise UserError if a checkpoint's names and shapes differ from `own`, the weights of the adapter or encoder."""
    wanted = {name: value.shape for name, value in own.items()}
    found = {name: value.shape for name, value in state.items()}
    if wanted == found:
        return
    llm, encoder = config.llm.name, config.encoder.name
    name = "projection.bias"
    if wanted.get(name) != found.get(name) and name in wanted and name in found:
        raise UserError(
            f"{folder} makes virtual tokens of width {found[name][0]}, and the LLM {llm} reads a width of"
            f" {wanted[name][0]}: it was trained with another; name that one (llm=NAME, --llm NAME)"
        )
    name = min(
        (name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)),
        key=lambda name: (name not in found, name not in wanted, name),
    )
    has, needs = (tuple(of[name]) if name in of else "no such weight" for of in (found, wanted))
    raise UserError(
        f"{folder} does not fit the encoder {encoder}: its {name} is {has}, there it is {needs}: it was trained with"
        " a Whisper of another width or depth; name that one (encoder=NAME, --encoder NAME)"
    )


def same_weights(own: Mapping[str, Tensor], state: State) -> bool:
    """Whether a state has the same weights as `own`. The precision may differ."""
    return all(
        name in state and torch.equal(state[name].to(value.dtype), value.cpu()) for name, value in own.items()
    )


def to_released(config: AdapterConfig, adapter: State, decoder: State) -> State:
    """An adapter's weights in the published layout, which also contains the rest of Whisper's `decoder`.

    Raises UserError for an adapter that the published code cannot run.
    """
    if config.kind != "qformer":
        raise UserError(
            "the released layout has a Q-Former (model.adapter.kind=qformer); this adapter is an MLP"
        )
    if config.tokens_per_second is not None:
        raise UserError(
            "the published code reads all virtual tokens of a clip, however long; this model was trained with"
            f" model.adapter.tokens_per_second={config.tokens_per_second:g}"
        )
    state = {f"connector.{name}": value for name, value in decoder.items()}
    positions = decoder["embed_positions.weight"].clone()
    positions[: len(adapter["positions"])] = adapter["positions"]
    state["connector.embed_positions.weight"] = positions
    for name, value in adapter.items():
        if name.startswith("layers."):
            state[f"connector.{name}"] = value
        elif name.startswith("norm."):
            state[name.replace("norm", "connector.layer_norm", 1)] = value
    return state | {
        "query_tokens": adapter["query_tokens"],
        "projection.weight": adapter["projection.weight"].T,
        "projection.bias": adapter["projection.bias"],
    }
