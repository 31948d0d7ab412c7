"""The table at the end of a multirun: what was varied, and what came out."""

import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

_FIGURES = ("val/alignment_accuracy", "val/first_token_agreement", "val/kl", "seconds")


class SweepTable(Callback):
    """Hydra calls this; the table goes to stdout."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        Console().print(sweep_table(Path(config.hydra.sweep.dir)))


def sweep_table(folder: Path) -> Table:
    """One row a run of the sweep in `folder`: the overrides that differ between runs, then the figures."""
    runs = sorted(
        (file.parent for file in folder.glob("*/overrides.yaml")), key=lambda run: _natural(run.name)
    )
    overrides = {run: _overrides(run) for run in runs}
    names = list(dict.fromkeys(name for values in overrides.values() for name in values))
    varied = [name for name in names if len({values.get(name) for values in overrides.values()}) > 1]
    table = Table("run", *varied, *_FIGURES, title=str(folder))
    for run in runs:
        file = run / "summary.json"
        summary = json.loads(file.read_text()) if file.is_file() else {}
        figures = (f"{summary[name]:.4g}" if name in summary else "failed" for name in _FIGURES)
        table.add_row(run.name, *(overrides[run].get(name, "") for name in varied), *figures)
    return table


def _overrides(run: Path) -> dict[str, str]:
    """Override name -> value, as given on the command line of one run."""
    pairs = (str(text).partition("=") for text in OmegaConf.load(run / "overrides.yaml"))
    return {name: value for name, _, value in pairs}


def _natural(name: str) -> tuple[int, str]:
    return (int(name) if name.isdigit() else -1, name)
