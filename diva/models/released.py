"""Published checkpoints: what their files hold in our terms, what does not fit, and how to write one.

There are three forms. The authors' training code writes `query_tokens`, `projection.*` (the weight as [in, out]) and
Whisper's decoder under `connector.`, in one file or in shards with the frozen parts. The published model class, and the
Cantonese fork's, save the same below `connector.` or `qformer.`, the weight as [out, in], and the encoder below
`whisper_encoder.`. The fork's training saves both as `qformer.pth` and `whisper_encoder.pth`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .configuration import AdapterConfig, DivaConfig

State = dict[str, Tensor]
# Where the Q-Former and the encoder are in a state as torch writes it.
QFORMERS = ("connector.", "qformer.")
ENCODER = "whisper_encoder."
# By width, of what the published DiVAs were made.
_LLMS = {
    2048: "meta-llama/Llama-3.2-1B-Instruct",
    3072: "meta-llama/Llama-3.2-3B-Instruct",
    3584: "hon9kon9ize/CantoneseLLMChat-v1.0-7B",
    4096: "meta-llama/Meta-Llama-3-8B-Instruct",
}
_ENCODERS = {768: "alvanlii/whisper-small-cantonese", 1280: "openai/whisper-large-v3"}


@dataclass(frozen=True)
class Checkpoint:
    """What the files of a DiVA hold."""

    config: DivaConfig
    adapter: State
    encoder: State | None = None  # the encoder that was trained with it, where it was


def is_released(state: State) -> bool:
    """Whether these are weights of a published form."""
    return any(f"{prefix}query_tokens" in state for prefix in ("", *QFORMERS))


def from_released(values: dict[str, Any], state: State, folder: Path, names: dict[str, str]) -> Checkpoint:
    """A published config.json and weights in our terms; `names` stand for those of the frozen parts.

    Raises UserError where weights are missing, and where neither `values` nor `names` say of what it was made.
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
    """Weights as torch writes them -> as the authors' training code does, and the encoder beside them.

    What the authors' training code writes stays as it is: there the encoder is the named one, bit for bit.
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
    """Raise UserError where nobody has said of what LLM and encoder a checkpoint was made."""
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
    """Raise UserError where a checkpoint's weights have not the names and shapes of an adapter's or encoder's `own`."""
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
    """Whether a state has the weights of `own`, which may be held in another precision."""
    return all(
        name in state and torch.equal(state[name].to(value.dtype), value.cpu()) for name, value in own.items()
    )


def to_released(config: AdapterConfig, adapter: State, decoder: State) -> State:
    """An adapter's weights as the published code reads them, which takes the rest of Whisper's `decoder` along.

    Raises UserError for an adapter that it cannot run.
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
