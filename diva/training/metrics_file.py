"""metrics.csv: one row per step. The file stays complete after a kill and a resume."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from diva.files import written_whole


class MetricsFile(Logger):
    """Rewrites the whole file with every row: to a temporary file, which is then renamed to `path`.

    Lightning's CSVLogger deletes the rows of an earlier process. This one continues them. If a resumed run repeats a
    step, the row of that step is replaced.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml of the run holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        if self._rows is None:
            self._rows = {row: values for row, values in self._read().items() if row <= step}
        self._rows.setdefault(step, {}).update(metrics)
        columns = sorted({name for row in self._rows.values() for name in row} - {"step", "epoch"})
        with written_whole(self.path) as whole, open(whole, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["step", "epoch", *columns])
            writer.writeheader()
            writer.writerows({"step": number, **row} for number, row in sorted(self._rows.items()))

    def _read(self) -> dict[int, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        with open(self.path, encoding="utf-8", newline="") as file:
            return {
                int(row.pop("step")): {name: value for name, value in row.items() if value != ""}
                for row in csv.DictReader(file)
            }
