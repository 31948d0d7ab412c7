"""Configs: Hydra composes them, every key is checked before anything is loaded, and `make` instantiates them."""

import difflib
import re
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diva.config import mixture, precision
from diva.config.folder import CONFIG_DIR, read_config
from diva.config.hydra_private import IntervalSweep, Override, command_line, composing, parse
from diva.config.numbers import check_numbers
from diva.config.targets import current, import_parameters, read_parameters, with_current, with_current_key
from diva.errors import UserError

_RESERVED = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
_DIFFERENCES_ONLY = {"experiment", "hydra"}  # groups whose files only change keys that other files declare
# Mappings with keys that the user chooses.
_FREE = {
    "data.val_splits",
    mixture.PARTS,
    "logger",
    "sweep.runner.parameters",
    "model.llm.template_kwargs",
    "system.template_kwargs",
}

precision.register()
mixture.register()


def make(config: Any, **options: Any) -> Any:
    """Hydra's `instantiate`, for current and earlier names of targets.

    `options` are Hydra's own, such as `_convert_`. A UserError of the target is raised unchanged. Hydra alone would
    wrap it in its own error.
    """
    plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    try:
        return instantiate(with_current(plain), **options)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise


def check_command_line(config_name: str) -> None:
    """Compose the config of `sys.argv` before Hydra runs. Raises UserError for a misspelt key or value."""
    parsed = command_line()
    if parsed.help or parsed.hydra_help or parsed.shell_completion or parsed.info:
        return
    check_overrides(config_name, parsed.overrides, parsed.config_dir)


def check_overrides(config_name: str, overrides: list[str], config_dir: str | None = None) -> DictConfig:
    """Compose `config_name` with `overrides` and check every key of the result. A sweep uses its first choice."""
    with composing(CONFIG_DIR, config_dir) as extra:
        try:
            first = [
                _first_choice(override)
                for override in parse([with_current_key(given) for given in overrides])
            ]
            config = compose(config_name, overrides=first + extra)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(_explain(error, config_name)) from error
    known = _declared_keys(config_name, config_dir)
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    known |= mixture.check_parts(plain.get("data"))
    to_import: list[_Target] = []
    for key, value in plain.items():
        _check_names([key], known[""], "")
        to_import += check_keys(value, str(key), known)
    _check_missing(mixture.without_root(plain))
    check_numbers(config)
    for target in to_import:
        _check_names(target.keys, import_parameters(target.name, target.path), target.path)
    return config


def _first_choice(override: Override) -> str:
    if not override.is_sweep_override():
        return str(override.input_line)
    if override.is_discrete_sweep():
        value = next(iter(override.sweep_string_iterator()))
    else:
        interval = override.value()
        assert isinstance(interval, IntervalSweep)
        value = str(interval.start)
    return f"{override.get_key_element()}={value}"


def _declared_keys(config_name: str, config_dir: str | None) -> dict[str, set[str]]:
    """For every path without a `_target_`: its keys in the primary config and in the files of the groups.

    Experiments are not read: they may only change keys that are declared elsewhere. So a misspelt key in an experiment
    is an error, not a new key that nothing reads.
    """
    known: dict[str, set[str]] = {"": set()}
    folders = [Path(folder) for folder in (CONFIG_DIR, config_dir) if folder]
    primary = next(file for folder in folders if (file := folder / f"{config_name}.yaml").is_file())
    _declare(_raw(primary), "", known)
    for folder in folders:
        for file in folder.glob("*/**/*.yaml"):
            group = file.parent.relative_to(folder).as_posix().replace("/", ".")
            if group.split(".")[0] not in _DIFFERENCES_ONLY:
                parent, _, name = group.rpartition(".")
                known.setdefault(parent, set()).add(name)
                _declare(_raw(file), group, known)
    return known


def _raw(file: Path) -> dict[str, Any]:
    return {key: value for key, value in read_config(file).items() if key != "defaults"}


def _declare(node: dict[str, Any], path: str, known: dict[str, set[str]]) -> None:
    known.setdefault(path, set()).update(map(str, node))
    for key, child in node.items():
        if isinstance(child, dict):
            _declare(child, f"{path}.{key}" if path else str(key), known)


class _Target(NamedTuple):
    """A node whose keys can only be checked by importing its `_target_`."""

    name: str
    keys: set[str]
    path: str


def check_keys(node: Any, path: str, known: dict[str, set[str]]) -> list[_Target]:
    """Check the keys of a node and of all nodes below it.

    With a `_target_` the keys must be its parameters. Otherwise they must be declared in `known`.
    Returns the nodes whose targets must be imported to check them. Imports take seconds, so the caller does them last.
    """
    if isinstance(node, list):
        return [t for i, child in enumerate(node) for t in check_keys(child, f"{path}[{i}]", known)]
    if not isinstance(node, dict):
        return []
    to_import = []
    if "_target_" in node:
        target = _Target(current(str(node["_target_"])), node.keys() - _RESERVED, path)
        parameters = read_parameters(target.name)
        if parameters is None:
            to_import.append(target)
        _check_names(target.keys, parameters, path)
    elif path in known and path not in _FREE:
        _check_names(node.keys(), known[path], path)
    return to_import + [t for key, child in node.items() for t in check_keys(child, f"{path}.{key}", known)]


def _check_names(names: Any, known: set[str] | None, path: str) -> None:
    for name in names:
        if known is not None and name not in known:
            full = f"{path}.{name}" if path else name
            raise UserError(f"there is no key '{full}'{_nearest(str(name), known, path)}")


def _nearest(name: str, known: set[str], path: str = "") -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if match:
        return f"; did you mean '{path}.{match[0]}'?" if path else f"; did you mean '{match[0]}'?"
    return f"; there are: {', '.join(sorted(known))}"


def _check_missing(node: Any, path: str = "") -> None:
    if node == "???":
        raise UserError(f"{path} has no value: give it on the command line, {path}=VALUE")
    if isinstance(node, dict):
        for key, child in node.items():
            _check_missing(child, f"{path}.{key}" if path else str(key))


def _explain(error: Exception, config_name: str) -> str:
    """Hydra's composition error as one line with the nearest correct name."""
    text = str(error)
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, choice = match.groups()
        folder = Path(CONFIG_DIR) / group
        known = {file.stem for file in folder.glob("*.yaml")}
        return f"there is no {group}={choice}{_nearest(choice, known)}"
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match.group(1)
        if entry := re.search(rf"full_key: ({re.escape(key)}\.\S+)", str(error.__cause__)):
            key = entry.group(1)  # a mapping was given, and this is the key in it that does not exist
        parent, _, last = key.rpartition(".")
        if parent in _FREE:
            return f"'{parent}' has no entry {last!r} yet; add it with: +{key}=VALUE"
        return f"there is no key '{key}'{_nearest(last, _siblings(config_name, parent), parent)}"
    return text.splitlines()[0]


def _siblings(config_name: str, parent: str) -> set[str]:
    """Keys at the same level as a misspelt one, in the default composition."""
    config = compose(config_name, return_hydra_config=False)
    node = OmegaConf.select(config, parent, throw_on_missing=False) if parent else config
    if isinstance(node, DictConfig):
        return {str(key) for key in node}
    if isinstance(node, ListConfig) or parent == "":
        return {str(key) for key in config}
    top = parent.split(".")[0]
    return {str(key) for key in config} if top not in config else {top}
