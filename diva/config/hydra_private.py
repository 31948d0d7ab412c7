"""What diva needs of Hydra and Hydra does not promise to keep: the one place that imports its private modules."""

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
_GRAMMAR = set("'\"[]{}()$,\\")  # what means something in a value


def command_line() -> Namespace:
    """Hydra's options in `sys.argv`; `overrides` are the arguments that are none."""
    return get_args_parser().parse_args()


def parse(arguments: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them. Raises UserError for what it cannot read."""
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
    """An argument of the command line such that Hydra can read it.

    `~` at the start of a value is the home folder, which shells do not put in behind a `=`. A value that Hydra's
    grammar refuses is quoted where it can only be text (`name=été`) or a path (`root=/d/a=b`), one that is a list of
    choices where a file has that name (`root=/d/a,b`).
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
    """`value` as Hydra reads it back, whatever its characters."""
    return str(QuotedString(value, Quote.single).with_quotes())


def _parsed(argument: str) -> Override | None:
    """None for what Hydra cannot read."""
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
    """Within it `hydra.compose` reads configs of `folder`; yields overrides that add those of `config_dir`."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(folder, version_base="1.3"):
        yield [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
