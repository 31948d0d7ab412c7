"""A model's files: our layout, the published one, and the code that lets an export load without diva.

An export holds `config.json`, the adapter in `model.safetensors`, the tokenizer and, for `trust_remote_code`, the
few modules of diva that a model needs. The frozen parts are named in `config.json`, or lie beside it.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diva.errors import UserError
from diva.models.adapter import QFormerAdapter
from diva.models.build import build, load_tokenizer
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.pretrained import resolve

WEIGHTS = "model.safetensors"
# What AutoModel.from_pretrained hands on to every model, and what has no meaning for this one.
_IGNORED = {
    "_from_auto",
    "adapter_kwargs",
    "trust_remote_code",
    "_commit_hash",
    "local_files_only",
    "subfolder",
}
_HUB_ONLY = {"token", "revision", "cache_dir", "force_download", "code_revision"}
# Module of diva -> its file in an export.
_REMOTE_CODE = {
    "diva.models.modeling": "modeling_diva",
    "diva.models.configuration": "configuration_diva",
    "diva.models.processing": "processing_diva",
    **{
        f"diva.models.{name}": name
        for name in ("files", "build", "adapter", "encoder", "prompts", "pretrained", "converters")
    },
    **{f"diva.audio.{name}": name for name in ("frames", "log_mel", "decoding", "containers", "foreign")},
    "diva.errors": "errors",
}
_AUTO_MAP = {
    "AutoConfig": "configuration_diva.DivaConfig",
    **dict.fromkeys(
        ("AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM"),
        "modeling_diva.DivaForConditionalGeneration",
    ),
    "AutoProcessor": "processing_diva.DivaProcessor",
}


def load(
    cls: type[DivaForConditionalGeneration],
    name: str | Path,
    *,
    config: DivaConfig | None = None,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    **kwargs: Any,
) -> DivaForConditionalGeneration:
    """The model of a run directory, an export, or a hub id in our layout or the published one."""
    for key in kwargs.keys() - _IGNORED:
        if key not in _HUB_ONLY:
            raise TypeError(f"from_pretrained of a DiVA takes no {key!r}; it takes dtype and device_map")
        if kwargs[key] not in (None, False, "main"):
            raise TypeError(
                f"from_pretrained of a DiVA takes no {key!r}: download that revision, give its folder"
            )
    folder = export_folder(name)
    config, state = read(folder)
    if (wanted := dtype or torch_dtype) not in (None, "auto"):
        config = DivaConfig.from_dict(config.to_dict() | {"frozen_dtype": str(wanted).removeprefix("torch.")})
    tokenizer = load_tokenizer(
        str(folder) if (folder / "tokenizer_config.json").is_file() else config.llm.name
    )
    model = build(config, tokenizer, cls=cls, device_map=device_map, start=False)
    model.adapter.load_state_dict(state)
    device = model.llm.get_input_embeddings().weight.device
    for part in (model.encoder, model.adapter):
        part.to(device)
    model.prefix_ids, model.suffix_ids = model.prefix_ids.to(device), model.suffix_ids.to(device)
    model.name_or_path = str(name)
    return model.eval()


def export_folder(name: str | Path) -> Path:
    """Where the files of `name` are. Raises UserError where there are none."""
    folder = Path(name).expanduser()
    if (folder / "export").is_dir():
        return folder / "export"
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is neither a run that has ended (it would have export/) nor an export (config.json)"
        )
    return resolve(str(name))


def read(folder: Path) -> tuple[DivaConfig, dict[str, Tensor]]:
    """The config and the adapter's weights of an export in either layout."""
    try:
        values = json.loads((folder / "config.json").read_text())
        state = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} is not a readable export: {error}") from error
    if "reference_encoder" in values:
        config, state = _from_released(values, state, folder)
    elif values.get("model_type") == "diva":
        config = DivaConfig.from_dict(values)
    else:
        raise UserError(f"{folder}/config.json is of a {values.get('model_type', 'model')}, not of a DiVA")
    return _beside(config, folder), state


def _beside(config: DivaConfig, folder: Path) -> DivaConfig:
    """Frozen parts that an export brings along are named by their folder in it."""
    for part in ("encoder", "llm"):
        value = getattr(config, part)
        if value.name == part and (folder / part).is_dir():
            setattr(config, part, type(value)(**(vars(value) | {"name": str(folder / part)})))
    return config


# ---- the published layout (WillHeld/DiVA-llama-3-v0-8b): Whisper's decoder under connector., the projection
# stored as [in, out] in the first releases


def _from_released(
    values: dict[str, Any], state: dict[str, Tensor], folder: Path
) -> tuple[DivaConfig, dict[str, Tensor]]:
    try:
        queries, width = state["query_tokens"].shape
        weight, bias = state["projection.weight"], state["projection.bias"]
        positions = state["connector.embed_positions.weight"]
    except KeyError as error:
        raise UserError(f"{folder / WEIGHTS} lacks {error}, which a released DiVA has") from error
    if weight.shape != (len(bias), width) or weight.shape[0] == weight.shape[1]:
        weight = weight.T
    adapter = {
        "query_tokens": state["query_tokens"],
        "positions": positions[:queries],
        "projection.weight": weight.contiguous(),
        "projection.bias": bias,
    }
    for key, value in state.items():
        if key.startswith("connector.layers."):
            adapter[key.removeprefix("connector.")] = value
        elif key.startswith("connector.layer_norm."):
            adapter[key.replace("connector.layer_norm", "norm")] = value
    config = DivaConfig(
        encoder=EncoderConfig(values["reference_encoder"], context="full"),
        adapter=AdapterConfig(num_query_tokens=queries, projection_init="default"),
        llm=LLMConfig(values["reference_decoder"], prompt_layout="released"),
        frozen_dtype="float16" if torch.cuda.is_available() else "float32",
    )
    return config, adapter


def _to_released(model: DivaForConditionalGeneration) -> dict[str, Tensor]:
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


# ---- writing


@torch.no_grad()
def save(
    model: DivaForConditionalGeneration,
    folder: str | Path,
    *,
    full: bool = False,
    layout: Literal["diva", "released"] = "diva",
    **kwargs: Any,
) -> None:
    """Write an export; `full` puts the frozen parts into it, `layout="released"` writes what the published code
    reads (its prompt and 30 s windows included)."""
    if kwargs.keys() - {"safe_serialization", "push_to_hub", "is_main_process"} or kwargs.get("push_to_hub"):
        raise TypeError(f"save_pretrained of a DiVA takes full and layout, not {', '.join(kwargs)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "released":
        state = _to_released(model)
        config = {
            "model_type": "diva",
            "reference_encoder": model.config.encoder.name,
            "reference_decoder": model.config.llm.name,
        }
    else:
        state = model.adapter.state_dict()
        config = model.config.to_dict() | {"architectures": [type(model).__name__], "auto_map": _AUTO_MAP}
        if full:
            _save_frozen(model, folder)
            for part in ("encoder", "llm"):
                config[part] = config[part] | {"name": part}
        _write_code(folder)
        model.processor.auto_map = {"AutoProcessor": _AUTO_MAP["AutoProcessor"]}
        model.processor.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    save_file(tensors, folder / f"{WEIGHTS}.tmp", metadata={"format": "pt"})
    os.replace(folder / f"{WEIGHTS}.tmp", folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _save_frozen(model: DivaForConditionalGeneration, folder: Path) -> None:
    from transformers import WhisperModel

    model.llm.save_pretrained(folder / "llm")
    model.processor.tokenizer.save_pretrained(folder / "llm")
    name = resolve(model.config.encoder.name)
    WhisperModel.from_pretrained(name, dtype=torch.float32).save_pretrained(folder / "encoder")


def _write_code(folder: Path) -> None:
    """Copies of the modules a model needs, importing each other by place instead of by package."""
    if not __name__.startswith("diva."):  # loaded from an export: its copies are here already
        for copy in Path(__file__).parent.glob("*.py"):
            (folder / copy.name).write_text(copy.read_text())
        return
    root = Path(__file__).parent.parent
    for module, file in _REMOTE_CODE.items():
        source = (root / Path(*module.split(".")[1:])).with_suffix(".py").read_text()
        source = (
            source.partition("\n\nif __name__ ==")[0].rstrip() + "\n"
        )  # a command line needs more of diva
        for name, place in _REMOTE_CODE.items():
            source = re.sub(
                rf"^(\s*)from {re.escape(name)} import", rf"\1from .{place} import", source, flags=re.M
            )
        (folder / f"{file}.py").write_text(source)
