"""What speed costs in quality: the runs it asks for, and the table of what they came to."""

import json
import sys
from pathlib import Path

import pytest
from stand_ins import stand_in

from benchmarks import quality
from diva.config import check_overrides
from diva.sweeps.folder import find_runs

# The metrics of a run depend on its seed, which is the last of its overrides.
FINISHES = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
seed = int((folder / "overrides.yaml").read_text().split("seed=")[1])
figures = dict.fromkeys(FIGURES, seed / 10)
(folder / "summary.json").write_text(json.dumps(figures | {"seconds": 90.0, "revision": "abc"}))
""".replace("FIGURES", str(quality.FIGURES))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The benchmark with its command line, in an empty folder, and with stand-ins for its runs."""
    stand_in(monkeypatch, FINISHES)
    monkeypatch.chdir(tmp_path)

    def ask(*given: str) -> None:
        monkeypatch.setattr(sys, "argv", ["quality", *given, "--into", "results"])
        quality.main()

    return ask


def test_each_variant_is_a_run_that_can_be_had_and_a_row(asked):
    asked("--steps", "30", "--seeds", "1", "2", "--folder", "runs", "data.num_buckets=2")
    runs = {variant.key: find_runs(Path("runs") / variant.key) for variant in quality.VARIANTS}
    assert {len(of_variant) for of_variant in runs.values()} == {2}
    configs = {key: check_overrides("train", list(found[0].overrides)) for key, found in runs.items()}
    queries = {key: config.data.query_tokens for key, config in configs.items()}
    assert queries == dict.fromkeys(configs, 16) | {
        "queries_12": 12, "queries_32": 32, "queries_in_proportion": 32
    }  # fmt: skip
    rates = {key: config.model.adapter.tokens_per_second for key, config in configs.items()}
    assert rates == dict.fromkeys(configs) | {"queries_in_proportion": 8}
    assert {key for key, config in configs.items() if config.model.encoder.context == "full"} == {"full"}
    begins = {key: config.objective.distill_from_step for key, config in configs.items()}
    assert begins == dict.fromkeys(configs, 20) | {"both": 0}
    assert {(c.max_steps, c.val_every, c.data.num_buckets) for c in configs.values()} == {(30, 30, 2)}
    table = Path("results/quality.md").read_text()
    # Standard deviation of 0.1 and 0.2: sqrt(2 * 0.05**2 / (2 - 1)).
    row = "| 0.150 ± 0.071 | 0.150 ± 0.071 | 0.150 ± 0.071 | 1.5 ± 0.0 |"
    assert table.count(row) == len(quality.VARIANTS)
    assert "Trained at revision abc." in table
    assert json.loads(Path("results/quality.json").read_text())["rows"][1]["val/kl"] == [0.1, 0.2]


def test_runs_of_other_steps_and_seeds_are_other_runs(asked):
    asked("--steps", "30", "--seeds", "1", "2", "--variants", "full")
    left = Path("runs/quality/full/7")  # by a sweep that was killed
    left.mkdir()
    (left / "overrides.yaml").write_text("- seed=3\n")
    asked("--steps", "60", "--seeds", "2", "--variants", "full")
    (row,) = json.loads(Path("results/quality.json").read_text())["rows"]
    assert row["val/kl"] == [0.2]
    assert [run.values.get("max_steps") for run in find_runs(Path("runs/quality/full"))] == [
        "30", "30", None, "60"
    ]  # fmt: skip
    assert not (left / "summary.json").exists()


def test_what_has_finished_is_not_trained_again(asked, monkeypatch):
    asked("--seeds", "1", "--variants", "full")
    stand_in(monkeypatch, "raise SystemExit(1)")
    asked("--seeds", "1", "--variants", "full")


def test_runs_that_have_not_finished_are_named(asked, monkeypatch, capsys):
    stand_in(monkeypatch, "import sys; print('diva: no such corpus'); sys.exit(2)")
    with pytest.raises(SystemExit) as ended:
        asked("--seeds", "1", "--variants", "full", "both")
    assert ended.value.code == 2
    assert (
        "2 of 2 runs have not finished, runs/quality/both/0 for one: no such corpus"
        in capsys.readouterr().err
    )
