"""All uses of Hydra's private modules, which may change between versions of Hydra."""

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException

from diva.errors import UserError

__all__ = [
    "IntervalSweep",
    "Override",
    "RangeSweep",
    "combinations",
    "command_line",
    "composing",
    "parse",
    "quote",
    "readable",
]
_GRAMMAR = set("'\"[]{}()$,\\")  # characters with a meaning in a value


def command_line() -> Namespace:
    """Hydra's options in `sys.argv`. `overrides` are all other arguments."""
    return get_args_parser().parse_args()


def parse(arguments: Sequence[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar. Raises UserError for an override that it cannot read."""
    try:
        return OverridesParser.create().parse_overrides(list(arguments))
    except HydraException as error:
        wrong = next((a for a in arguments if _parsed(a) is None), "")
        key, _, value = wrong.partition("=")
        whole = f'quotes within quotes, "{key}={quote(value)}"'
        instead = "quotes, each text by itself: 'a=b','c'" if set(value) & set(",[{") else whole
        raise UserError(
            f"cannot read the override {wrong}: put text with special characters in {instead}"
        ) from error


def readable(argument: str) -> str:
    """An argument of the command line, changed so that Hydra can read it.

    `~` at the start of a value becomes the home folder, because shells do not expand it after a `=`.
    A value that Hydra's grammar refuses is quoted if it can only be text (`name=été`) or a path (`root=/d/a=b`).
    A value that Hydra reads as a list of choices is quoted if a file has that name (`root=/d/a,b`).
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    if value == "~" or value.startswith("~/"):
        argument = f"{key}={(value := os.path.expanduser(value))}"
    override = _parsed(argument)
    if override is None:
        is_path = value.startswith(("/", "./", "../")) and "," not in value
        if not is_path and _GRAMMAR & set(value) and not os.path.exists(value):
            return argument
    elif not override.is_sweep_override() or not os.path.exists(value):
        return argument
    quoted = f"{key}={quote(value)}"
    return argument if _parsed(quoted) is None else quoted


def quote(value: str) -> str:
    """`value` in quotes, so that Hydra reads any characters unchanged."""
    return str(QuotedString(value, Quote.single).with_quotes())


def _parsed(argument: str) -> Override | None:
    """The parsed override; None if Hydra cannot read it."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def combinations(overrides: list[Override]) -> list[tuple[str, ...]]:
    """The overrides of each run of a grid."""
    (grid,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    return [tuple(run) for run in grid]


@contextmanager
def composing(folder: str, config_dir: str | None) -> Iterator[list[str]]:
    """Inside, `hydra.compose` reads the configs in `folder`. Yields overrides that also add those of `config_dir`."""

    GlobalHydra.instance().clear()
    with initialize_config_dir(folder, version_base="1.3"):
        yield [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
