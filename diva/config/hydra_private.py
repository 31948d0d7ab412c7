"""What diva needs of Hydra and Hydra does not promise to keep: the one place that imports its private modules."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from diva.errors import UserError

__all__ = ["IntervalSweep", "Override", "RangeSweep", "combinations", "command_line", "composing", "parse"]


def command_line() -> Namespace:
    """Hydra's options in `sys.argv`; `overrides` are the arguments that are none."""
    return get_args_parser().parse_args()


def parse(arguments: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them. Raises UserError for what it cannot read."""
    try:
        return OverridesParser.create().parse_overrides(list(arguments))
    except HydraException as error:
        raise UserError(f"cannot read the override: {str(error).splitlines()[0]}") from error


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
