"""What speed costs in quality: the runs it asks for, and the table of what they came to."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import quality
from diva.cli import check_overrides
from diva.sweep_folder import SweepRun


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The overrides of each variant's multirun, in place of which finished runs appear at once."""
    commands: dict[str, list[str]] = {}

    def multirun(command: list[str], check: bool) -> subprocess.CompletedProcess:
        assert command[:4] == [sys.executable, "-m", "diva.train", "-m"]
        values = dict(argument.split("=", 1) for argument in command[4:])
        assert len(values) == len(command) - 4, "a key is given twice"
        folder = Path(values.pop("hydra.sweep.dir"))
        for number, seed in enumerate(values.pop("seed").split(",")):
            run = SweepRun(folder / str(number), (f"seed={seed}",))
            run.begin()
            figures = dict.fromkeys(quality.FIGURES, int(seed) / 10) | {"seconds": 90.0}
            (run.folder / "summary.json").write_text(json.dumps(figures))
        del values["sweep"]  # the driver's own
        commands[folder.name] = [f"{key}={value}" for key, value in values.items()]
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(quality, "subprocess", SimpleNamespace(run=multirun))
    return commands


def test_each_variant_is_a_run_that_can_be_had_and_a_row(asked, tmp_path, monkeypatch):
    given = ["--steps", "30", "--seeds", "1", "2", "--folder", "runs", "--into", "results"]
    monkeypatch.setattr(sys, "argv", ["quality", *given, "data.num_buckets=2"])
    monkeypatch.chdir(tmp_path)
    quality.main()
    configs = {key: check_overrides("train", overrides) for key, overrides in asked.items()}
    assert {key: config.data.query_tokens for key, config in configs.items()} == {
        "shipped": 16, "both": 16, "queries_32": 32, "full": 16
    }  # fmt: skip
    assert {key for key, config in configs.items() if config.model.encoder.context == "full"} == {"full"}
    begins = {key: config.objective.distill_from_step for key, config in configs.items()}
    assert begins == dict.fromkeys(configs, 20) | {"both": 0}
    assert {(c.max_steps, c.val_every, c.data.num_buckets) for c in configs.values()} == {(30, 30, 2)}
    table = Path("results/quality.md").read_text()
    # Standard deviation of 0.1 and 0.2: sqrt(2 * 0.05**2 / (2 - 1)).
    assert table.count("| 0.150 ± 0.071 | 0.150 ± 0.071 | 0.150 ± 0.071 | 1.5 ± 0.0 |") == len(
        quality.VARIANTS
    )
    assert json.loads(Path("results/quality.json").read_text())["rows"][1]["val/kl"] == [0.1, 0.2]


def test_runs_that_have_not_finished_are_named(tmp_path, monkeypatch, capsys):
    failing = SimpleNamespace(run=lambda command, check: subprocess.CompletedProcess(command, 2))
    monkeypatch.setattr(quality, "subprocess", failing)
    monkeypatch.setattr(sys, "argv", ["quality", "--variants", "full", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        quality.main()
    assert ended.value.code == 2
    assert f"'full' have not all finished: see {tmp_path / 'full'}" in capsys.readouterr().err
