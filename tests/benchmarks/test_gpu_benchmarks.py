"""What is asked of a borrowed GPU, run on the CPU with tiny models."""

import json

import pytest
import torch

from benchmarks import gpu, gpu_generation, quarter_hour
from diva.planning import memory

SIDES = ["published pattern", "ours, own length", "ours, own length, in proportion",
         "ours, own length, activations recomputed", "ours, own length, answers",
         "ours, own length, answers, KL"]  # fmt: skip


@pytest.fixture
def rows(tiny_overrides, tmp_path, monkeypatch):
    """Runs benchmarks.gpu on some sides and gives their rows."""

    def run(*sides: str) -> list[dict]:
        shape = ["--device", "cpu", "--batch", "2", "--rounds", "1", "--layers", "1", "1", "1"]
        given = [*tiny_overrides, *shape, "--into", str(tmp_path), "--sides", *sides]
        monkeypatch.setattr("sys.argv", ["benchmarks.gpu", *given])
        gpu.main()
        return json.loads((tmp_path / "gpu.json").read_text())["rows"]

    return run


def test_each_side_takes_a_step_and_has_its_share_of_the_peak(rows, monkeypatch):
    monkeypatch.setattr(memory, "resident_bytes", lambda: 0)  # the process grows from side to side
    found = {row["side"]: row for row in rows(*SIDES)}
    assert list(found) == SIDES
    for name, row in found.items():
        assert "failed" not in row, name
        assert row["batch"] == (4 if "proportion" in name else 2)
        assert row["clips_per_second"] == pytest.approx(row["batch"] / row["step_seconds"], rel=0.05)
        assert row["mfu"] == pytest.approx(row["tflop_per_clip"] * row["clips_per_second"], abs=1e-3)
    own, again, proportion = (found[SIDES[number]] for number in (1, 3, 2))
    assert again["tflop_per_clip"] == own["tflop_per_clip"], "what is computed twice counts once"
    assert again["planned_gigabytes"] <= own["planned_gigabytes"]
    assert 0 < proportion["tflop_per_clip"] <= own["tflop_per_clip"]
    answers, divergence = (found[SIDES[number]] for number in (4, 5))
    assert own["tflop_per_clip"] < answers["tflop_per_clip"] < divergence["tflop_per_clip"]
    assert len({row["loss"] for row in (own, answers, divergence)}) == 3


def test_a_batch_that_does_not_fit_is_halved_until_it_does(rows, monkeypatch):
    tried = []

    def measure(bench, side, count, rounds, before=gpu.GpuBench.measure):
        tried.append(count)
        if count > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return before(bench, side, count, rounds)

    monkeypatch.setattr(gpu.GpuBench, "measure", measure)
    assert rows("ours, own length")[0]["batch"] == 1
    assert tried == [2, 1]


def test_a_side_that_fails_leaves_the_others_their_time(rows, monkeypatch):
    monkeypatch.setattr(gpu, "PublishedTraining", lambda *given: 1 / 0)
    failed, measured = rows("published pattern", "ours, own length")
    assert failed["failed"].startswith("ZeroDivisionError")
    assert measured["clips_per_second"] > 0


def test_answers_are_as_long_as_asked(tmp_path, monkeypatch):
    shape = ["--device", "cpu", "--experiment", "mini", "--layers", "1", "1", "1", "--new-tokens", "3"]
    given = [*shape, "--rounds", "1", "--batches", "1", "2", "--into", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu_generation", *given])
    gpu_generation.main()
    found = json.loads((tmp_path / "gpu_generation.json").read_text())["rows"]
    assert [row["batch"] for row in found] == [1, 2, 1, 2]
    assert all("failed" not in row and row["ms_per_token"] > 0 for row in found)


def test_a_step_of_the_quarter_hour_ends_in_its_time(tmp_path):
    sleeps = ("-c", "print('begun', flush=True); import time; time.sleep(60)")
    assert quarter_hour.run(sleeps, tmp_path / "log", 3.0) == "cut off"
    assert (tmp_path / "log").read_text() == "begun\n"
    assert quarter_hour.run(("-c", "raise SystemExit(3)"), tmp_path / "log", 60) == "exit 3"
    assert quarter_hour.run(("-c", ""), tmp_path / "log", 60) == "done"


def test_no_gpu_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu"])
    with pytest.raises(SystemExit) as left:
        gpu.main()
    assert left.value.code == 2
    assert "needs a CUDA device" in capsys.readouterr().err
