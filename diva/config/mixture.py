"""The parts of a mixture, `data.parts.NAME={corpus: common_voice, root: PATH, weight: 2}`, and what they stand for.

`corpus` is a file of configs/data. A part has the keys of that file, a weight and a limit. The keys of
configs/data/base.yaml are not keys of a part: they are those of the whole run. A part that needs a root and gives none
has that of the mixture, `data.root`.
"""

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diva.config.folder import CONFIG_DIR, read_config
from diva.errors import UserError

PARTS = "data.parts"
_MISSING = "???"
_OWN = {"corpus": _MISSING, "weight": 1.0, "limit": None}
_NO_CORPUS = {"base", "mixture"}
_PART, _MIXTURE = "diva.data.mixture.Part", "diva.data.mixture.Mixture"


def addable(override: str) -> str:
    """An override with `++` if its key is one of a part: Hydra then adds a new part, as it changes one that exists."""
    key, equals, _ = override.partition("=")
    return f"++{override}" if equals and (key == PARTS or key.startswith(f"{PARTS}.")) else override


def check_parts(data: Any) -> dict[str, set[str]]:
    """The keys that each part may have, by the part's path. `data` is the plain data config.

    Empty for data without parts. Raises UserError for parts that cannot be understood, or that lack a value.
    """
    parts = data.get("parts") if isinstance(data, dict) else None
    if parts is None:
        return {}
    corpus = data.get("corpus")
    if not isinstance(corpus, dict) or corpus.get("_target_") != _MIXTURE:
        raise UserError("data.parts are those of a mixture: choose data=mixture")
    if not isinstance(parts, dict) or not parts:
        raise UserError(
            f"a mixture needs parts: give each as {PARTS}.NAME={{corpus: common_voice, root: PATH}}"
        )
    known = {f"{PARTS}.{name}": _check_part(name, part) for name, part in parts.items()}
    pools(parts)
    return known


def _check_part(name: Any, part: Any) -> set[str]:
    path = f"{PARTS}.{name}"
    if not re.fullmatch(r"[^\W\d][\w-]*", str(name)):
        raise UserError(
            f"{path}: the name of a part has letters, digits, _ and - only, and starts with a letter or _"
        )
    if not isinstance(part, dict):
        raise UserError(f"{path}={part} must be a mapping, such as {{corpus: common_voice, root: PATH}}")
    if not isinstance(splits := part.get("val_splits"), dict | None):
        raise UserError(f"{path}.val_splits={splits} must be a mapping, such as {{val: dev}}, or null")
    corpus = part.get("corpus", _MISSING)
    if corpus == _MISSING:
        raise UserError(f"{path}.corpus has no value: give it on the command line, {path}.corpus=VALUE")
    known = sorted(file.stem for file in (Path(CONFIG_DIR) / "data").glob("*.yaml"))
    known = [choice for choice in known if choice not in _NO_CORPUS]
    if corpus not in known:
        raise UserError(f"there is no {path}.corpus={corpus}; there are: {', '.join(known)}")
    return {*_OWN, *_of_corpus(corpus)}


def without_root(config: dict) -> dict:
    """The plain config of a run; of a mixture without `data.root`, which it needs only for parts that give no root.

    Raises UserError for a part that needs a root, if neither it nor the mixture gives one.
    """
    data = config.get("data")
    if not isinstance(data, dict) or "parts" not in data:
        return config
    for name, part in _merged(data["parts"], data["root"]).items():
        if part.get("root") == _MISSING:
            raise UserError(
                f"{PARTS}.{name}.root has no value: give it on the command line, {PARTS}.{name}.root=VALUE, or"
                " data.root=VALUE for all parts that give none"
            )
    return config | {"data": {key: value for key, value in data.items() if key != "root"}}


def part_configs(data: DictConfig) -> dict[str, DictConfig]:
    """A data config of each part of a mixture, with the name of the part's limit in other data configs.

    Empty for the data config of a single corpus.
    """
    if "parts" not in data:
        return {}
    root = None if OmegaConf.is_missing(data, "root") else data.root
    return _resolved(_plain(data.parts), root)


def _resolved(parts: Any, root: str | None) -> dict[str, DictConfig]:
    return {
        name: OmegaConf.create({"data": part | {"max_train_clips": part["limit"]}}).data
        for name, part in _merged(parts, root).items()
    }


def _merged(parts: Mapping[str, Any], root: str | None) -> dict[str, dict[str, Any]]:
    """Each part, with the values of its corpus's file where it gives none."""
    merged = {}
    for name, part in parts.items():
        of_file = _of_corpus(part["corpus"])
        if of_file.get("root") == _MISSING:
            of_file = of_file | {"root": root}
        given = {key: value for key, value in part.items() if value != _MISSING}
        merged[name] = _OWN | of_file | given | {"corpus": _file(part["corpus"])["corpus"]}
    return merged


def _of_corpus(name: str) -> dict[str, Any]:
    """The values of a corpus's file that a part may change."""
    shared = {*_file("base"), "corpus"}
    return {key: value for key, value in _file(name).items() if key not in shared}


@lru_cache
def _file(name: str) -> dict[str, Any]:
    """The values of a file of configs/data and of its defaults."""
    raw = read_config(Path(CONFIG_DIR) / "data" / f"{name}.yaml")
    values: dict[str, Any] = {}
    for default in raw.get("defaults", []):
        # A group below this one, such as `augment: none`, is a key of its own.
        values |= _file(default) if isinstance(default, str) else default
    return values | {key: value for key, value in raw.items() if key != "defaults"}


def validations(parts: Mapping[str, Any]) -> dict[str, str]:
    """The validations of a mixture, one for each validation of each part: VALIDATION_PART -> PART/SPLIT."""
    return {f"{of}_{name}": f"{name}/{split}" for of, name, split in _validations(parts)}


def pools(parts: Mapping[str, Any]) -> dict[str, list[str]]:
    """The metrics over several parts: each validation -> the names of that validation of each part.

    Raises UserError if two validations would have one name.
    """
    found: dict[str, list[str]] = {}
    for of, name, _ in _validations(parts):
        found.setdefault(of, []).append(f"{of}_{name}")
    if not found:
        raise UserError(
            f"no part of the mixture is validated on: give one {PARTS}.NAME.val_splits={{val: SPLIT}}"
        )
    names = Counter([*found, *(name for names in found.values() for name in names)])
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise UserError(f"two validations of the mixture are named {twice!r}: give a part of it another name")
    return found


def _validations(parts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(validation, part, split of the part), by validation and then by part."""
    splits = {name: part["val_splits"] or {} for name, part in _merged(parts, None).items()}
    order = dict.fromkeys(of for of_part in splits.values() for of in of_part)
    return [(of, name, of_part[of]) for of in order for name, of_part in splits.items() if of in of_part]


def _parts(parts: DictConfig, root: str | None) -> dict[str, dict[str, Any]]:
    """The configs of the parts, as `Mixture` takes them."""
    return {
        name: {
            "_target_": _PART,
            "corpus": {**_plain(part.corpus), "_partial_": True},
            "train_split": part.train_split,
            "weight": part.weight,
            "limit": part.limit,
        }
        for name, part in _resolved(_plain(parts), root).items()
    }


def _plain(node: DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def register() -> None:
    """Let configs/data/mixture.yaml say what its parts stand for."""
    for name, resolver in (
        ("mixture_parts", _parts),
        ("mixture_validations", lambda parts: validations(_plain(parts))),
        ("mixture_pools", lambda parts: pools(_plain(parts))),
    ):
        OmegaConf.register_new_resolver(name, resolver, replace=True)
