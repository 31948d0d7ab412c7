"""Published checkpoints: what their files hold in our terms, what does not fit, and how to write one.

There are three forms. The authors' training code writes `query_tokens`, `projection.*` (the weight as [in, out]) and
Whisper's decoder under `connector.`, in one file or in shards with the frozen parts. The published model class, and the
Cantonese fork's, save the same below `connector.` or `qformer.`, the weight as [out, in], and the encoder below
`whisper_encoder.`. The fork's training saves both as `qformer.pth` and `whisper_encoder.pth`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from diva.errors import UserError
from diva.models.adapter import QFormerAdapter
from diva.models.configuration import DivaConfig
from diva.models.pretrained import ADAPTER_WEIGHTS, FORK_FILES, adapter_files, is_fork, resolve

if TYPE_CHECKING:
    from diva.models.modeling import DivaForConditionalGeneration

State = dict[str, Tensor]
# Where the Q-Former and the encoder are in a state as torch writes it.
_QFORMERS = ("connector.", "qformer.")
_ENCODER = "whisper_encoder."
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


def read_weights(folder: Path, prefixes: tuple[str, ...] = ADAPTER_WEIGHTS) -> State:
    """The weights whose names begin with one of `prefixes`; of others in the same files not a byte is read."""
    if is_fork(folder):
        qformer, encoder = (
            torch.load(folder / file, map_location="cpu", weights_only=True) for file in FORK_FILES
        )
        below = {_QFORMERS[1] + name: value for name, value in qformer.items()}
        return below | {_ENCODER + name: value for name, value in encoder.items()}
    state: State = {}
    for file in adapter_files(folder):
        with safe_open(folder / file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefixes)]  # noqa: SIM118
            state |= {name: tensors.get_tensor(name) for name in names}
    return state


def is_released(state: State) -> bool:
    """Whether these are weights of a published form."""
    return any(f"{prefix}query_tokens" in state for prefix in ("", *_QFORMERS))


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
    prefix = next((prefix for prefix in _QFORMERS if f"{prefix}query_tokens" in state), None)
    if prefix is None:
        return state, None
    flat = {
        name.removeprefix(prefix).replace("decoder.", "connector.", 1): value
        for name, value in state.items()
        if name.startswith(prefix)
    }
    if "projection.weight" in flat:
        flat["projection.weight"] = flat["projection.weight"].T
    encoder = {
        name.removeprefix(_ENCODER): value for name, value in state.items() if name.startswith(_ENCODER)
    }
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


def check_fit(part: nn.Module, state: State, folder: Path, config: DivaConfig) -> None:
    """Raise UserError where a checkpoint's weights are not those of an adapter or encoder on these frozen parts."""
    wanted = {name: value.shape for name, value in part.state_dict().items()}
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


def load_encoder(whisper: nn.Module, state: State) -> bool:
    """Put the weights of a checkpoint's encoder in place of the named one's; whether they differ from them."""
    own = whisper.state_dict()
    if all(torch.equal(state[name].to(value.dtype), value.cpu()) for name, value in own.items()):
        return False
    whisper.load_state_dict(state)
    return True


@torch.no_grad()
def to_released(model: "DivaForConditionalGeneration") -> State:
    """The weights of a model as the published code reads them. Raises UserError for a model that it cannot run."""
    adapter = model.adapter
    if not isinstance(adapter, QFormerAdapter):
        raise UserError(
            "the released layout has a Q-Former (model.adapter.kind=qformer); this adapter is an MLP"
        )
    if model.config.adapter.tokens_per_second is not None:
        raise UserError(
            "the published code reads all virtual tokens of a clip, however long; this model was trained with"
            f" model.adapter.tokens_per_second={model.config.adapter.tokens_per_second:g}"
        )
    from transformers import WhisperModel

    decoder = WhisperModel.from_pretrained(resolve(model.config.encoder.name), dtype=torch.float32).decoder
    state = {f"connector.{key}": value for key, value in decoder.state_dict().items()}
    state["connector.embed_positions.weight"][: len(adapter.positions)] = adapter.positions
    state |= {f"connector.layers.{key}": value for key, value in adapter.layers.state_dict().items()}
    state |= {f"connector.layer_norm.{key}": value for key, value in adapter.norm.state_dict().items()}
    return state | {
        "query_tokens": adapter.query_tokens,
        "projection.weight": adapter.projection.weight.T,
        "projection.bias": adapter.projection.bias,
    }
