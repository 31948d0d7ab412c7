"""The `_target_` of a config: its current module and its parameters."""

import ast
import inspect
from importlib.util import find_spec
from pathlib import Path
from pydoc import locate
from typing import Any

from diva.config.mixture import addable
from diva.errors import UserError

# Module names in configs of earlier revisions (users' YAML, committed results) -> current names.
MOVED = {
    "diva.data.common_voice": "diva.data.corpora.common_voice",
    "diva.data.hub": "diva.data.corpora.hub",
    "diva.data.jsonl": "diva.data.corpora.jsonl",
    "diva.data.spoken_mini": "diva.data.corpora.spoken.corpus",
    "diva.data.webdataset": "diva.data.corpora.webdataset",
    "diva.evaluation.other_systems": "diva.evaluation.systems.others",
    "diva.evaluation.systems": "diva.evaluation.systems.local",
    "diva.models.config": "diva.models.configuration",
    "diva.objectives": "diva.training.losses",
    "diva.precompute": "diva.training.frozen",
    "diva.strategies": "diva.training.distributed.fsdp",
    "diva.sweep_runners": "diva.sweeps.local",
    "diva.sweep_slurm": "diva.sweeps.slurm",
    "diva.sweep_study": "diva.sweeps.optuna_study",
    "diva.tpu": "diva.training.distributed.xla",
}


# Config keys of earlier revisions (command lines, folders of runs) -> current keys.
RENAMED_KEYS = {"data.query_tokens_per_second": "model.adapter.tokens_per_second"}


def with_current_key(override: str) -> str:
    """An override `key=value` with the current name of its key; for a key of a mixture's part, one that may add it."""
    key, equals, value = override.partition("=")
    return addable(f"{RENAMED_KEYS.get(key, key)}{equals}{value}")


def current(target: str) -> str:
    """`module.name` with the current name of the module."""
    module, _, name = target.rpartition(".")
    return f"{MOVED.get(module, module)}.{name}"


def with_current(node: Any) -> Any:
    """A copy of a plain config (dicts and lists) with the current name of every `_target_`."""
    if isinstance(node, list):
        return [with_current(child) for child in node]
    if not isinstance(node, dict):
        return node
    return {
        key: current(child) if key == "_target_" and isinstance(child, str) else with_current(child)
        for key, child in node.items()
    }


def read_parameters(target: str) -> set[str] | None:
    """Parameter names of a class or function of diva, read from its source, because an import may take seconds.

    None if the source is not enough: the target is in another package, has **kwargs, or inherits its `__init__`.
    """
    module, _, name = target.rpartition(".")
    try:
        spec = find_spec(module) if module.startswith("diva.") else None
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        return None
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    found = _named(body, name)
    if isinstance(found, ast.ClassDef):
        init = _named(found.body, "__init__")
        if init is None and not found.bases and any("dataclass" in ast.dump(d) for d in found.decorator_list):
            return {
                field.target.id
                for field in found.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            }
        found = init
    if not isinstance(found, ast.FunctionDef) or found.args.kwarg:
        return None
    given = found.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return set(names[1:] if found.name == "__init__" else names)


def _named(body: list[ast.stmt], name: str) -> ast.ClassDef | ast.FunctionDef | None:
    found = (node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name)
    return next(found, None)


def import_parameters(target: str, path: str) -> set[str] | None:
    """Parameter names of any target, by importing it; None: it takes any name. `path` is its key, for messages."""
    try:
        found = locate(target)
    except Exception as error:
        raise UserError(f"{path}._target_={target} cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"{path}._target_={target} cannot be found: no such module or no such name in it")
    parameters = inspect.signature(found).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}
