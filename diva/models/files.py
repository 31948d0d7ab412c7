"""A model's files: our layout, and the code that lets an export load without diva.

An export holds `config.json`, the adapter in `model.safetensors`, the tokenizer (for AutoProcessor alone: a model
takes its LLM's) and, for `trust_remote_code`, the few modules of diva that a model needs. The frozen parts are named in
`config.json`, or lie beside it. The published layouts are in `diva.models.released`.
"""

import json
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from diva.errors import UserError
from diva.files import written_whole
from diva.models.build import build, load_tokenizer
from diva.models.configuration import DivaConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.pretrained import is_fork, resolve
from diva.models.released import (
    Checkpoint,
    check_fit,
    from_released,
    is_released,
    load_encoder,
    read_weights,
    to_released,
)

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
        for name in (
            "files",
            "released",
            "build",
            "adapter",
            "encoder",
            "prompts",
            "pretrained",
            "converters",
        )
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
    llm: str | None = None,
    encoder: str | None = None,
    **kwargs: Any,
) -> DivaForConditionalGeneration:
    """The model of a run directory, an export, or a hub id in our layout or a published one.

    `llm` and `encoder` (folders, or names as on the hub) stand for those that the files name, or do not name.
    Raises UserError for files that cannot be read, and for weights that do not fit their LLM or their encoder.
    """
    for key in kwargs.keys() - _IGNORED:
        if key not in _HUB_ONLY:
            raise TypeError(
                f"from_pretrained of a DiVA takes no {key!r}; it takes dtype, device_map, llm, encoder"
            )
        if kwargs[key] not in (None, False, "main"):
            raise TypeError(
                f"from_pretrained of a DiVA takes no {key!r}: download that revision, give its folder"
            )
    folder = export_folder(name)
    checkpoint = read(folder, llm, encoder)
    config = checkpoint.config
    if (wanted := dtype or torch_dtype) not in (None, "auto"):
        config = DivaConfig.from_dict(config.to_dict() | {"frozen_dtype": str(wanted).removeprefix("torch.")})
    # Never the one beside config.json: transformers would read that config for it, which is no text model's.
    tokenizer = load_tokenizer(config.llm.name)
    model = build(config, tokenizer, cls=cls, device_map=device_map, start=False)
    check_fit(model.adapter, checkpoint.adapter, folder, config)
    model.adapter.load_state_dict(checkpoint.adapter)
    if checkpoint.encoder is not None:
        check_fit(model.encoder.whisper, checkpoint.encoder, folder, config)
        model.has_own_encoder = load_encoder(model.encoder.whisper, checkpoint.encoder)
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
    if folder.is_dir() and not (folder / "config.json").is_file() and not is_fork(folder):
        raise UserError(
            f"{folder} is neither a run that has ended (it would have export/) nor an export (config.json)"
        )
    return resolve(str(name), diva=True)


def read(folder: Path, llm: str | None = None, encoder: str | None = None) -> Checkpoint:
    """An export or a released checkpoint; `llm` and `encoder` name its frozen parts in place of its config.json.

    Raises UserError for what is no DiVA, and where nothing says of what it was made.
    """
    try:
        described = (folder / "config.json").is_file() or not is_fork(folder)
        values = json.loads((folder / "config.json").read_text()) if described else {}
        state = read_weights(folder, ("",)) if "adapter" in values else read_weights(folder)
    except (OSError, ValueError, SafetensorError, UnpicklingError) as error:
        raise UserError(f"{folder} is not a readable export: {error}") from error
    names = {part: name for part, name in (("llm", llm), ("encoder", encoder)) if name}
    if "adapter" in values:
        return Checkpoint(_beside(DivaConfig.from_dict(values, **names), folder), state)
    if "reference_encoder" in values or is_released(state):
        return from_released(values, state, folder, names)
    raise UserError(f"{folder}/config.json is of a {values.get('model_type', 'model')}, not of a DiVA")


def _beside(config: DivaConfig, folder: Path) -> DivaConfig:
    """Frozen parts that an export brings along are named by their folder in it."""
    for part in ("encoder", "llm"):
        value = getattr(config, part)
        if value.name == part and (folder / part).is_dir():
            setattr(config, part, type(value)(**(vars(value) | {"name": str(folder / part)})))
    return config


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
    if model.has_own_encoder and not full:
        raise UserError(
            f"the encoder of this model is not {model.config.encoder.name} but was trained with its adapter: write"
            " it out too, with save_pretrained(FOLDER, full=True)"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "released":
        state = to_released(model)
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
    with written_whole(folder / WEIGHTS) as file:
        save_file(tensors, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _save_frozen(model: DivaForConditionalGeneration, folder: Path) -> None:
    from transformers import WhisperModel

    model.llm.save_pretrained(folder / "llm")
    model.processor.tokenizer.save_pretrained(folder / "llm")
    name = resolve(model.config.encoder.name)
    whisper = WhisperModel.from_pretrained(name, dtype=torch.float32)
    if model.has_own_encoder:
        whisper.encoder.load_state_dict(model.encoder.whisper.state_dict())
    whisper.save_pretrained(folder / "encoder")


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
