"""What a queue that refuses jobs does to a sweep."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from stand_ins import wait_until
from submitit.core.utils import FailedJobError

from diva.sweeps import slurm as sweep_slurm
from diva.sweeps.folder import Outcome, SweepRun, write_outcome
from diva.sweeps.slurm import SlurmRuns
from diva.sweeps.sweep import Grid, carry_out, exit_code


@pytest.fixture
def refusals(monkeypatch) -> list[str]:
    """What sbatch answers, one submission after another; nothing: it takes the job, and the run finishes at once."""
    answers: list[str] = []

    class Executor:
        def __init__(self, folder: Path, cluster: str, **limits: int):
            self.folder = folder

        def update_parameters(self, **parameters) -> None:
            """Any will do."""

        def submit(self, job) -> SimpleNamespace:
            answer = answers.pop(0)
            if answer:
                raise FailedJobError(answer)
            self.folder.mkdir()
            (job.run.folder / "summary.json").write_text("{}")
            return SimpleNamespace(job_id="7", done=lambda: True)

    monkeypatch.setattr(sweep_slurm.submitit, "AutoExecutor", Executor)
    return answers


def runs_at_once(poll_seconds: float = 0.01) -> SlurmRuns:
    return SlurmRuns(1, "cpu", 1, "local", 2, poll_seconds, OmegaConf.create({}))


def test_a_refused_job_is_submitted_once_more(refusals, tmp_path):
    refusals += ["sbatch: error: Socket timed out", ""]
    one = SweepRun(tmp_path / "0", ())
    runs_at_once()(one, [])
    assert one.outcome == Outcome("finished")
    assert refusals == []


def test_a_run_whose_job_is_refused_fails_alone(refusals, tmp_path):
    refusals += ["sbatch: error:\ninvalid partition"] * 2 + [""]
    first, second = SweepRun(tmp_path / "0", ("seed=1",)), SweepRun(tmp_path / "1", ("seed=2",))
    runs = [first, second]
    assert carry_out(Grid(runs), runs_at_once(), [], {"seed"}) == runs
    reason = "refused by the queue: sbatch: error: invalid partition"
    assert first.outcome == Outcome("failed", reason, users_fault=True)
    assert second.outcome == Outcome("finished")
    assert exit_code(runs) == 2


def test_a_sweep_that_ends_leaves_a_refused_run_for_the_next_time(refusals, tmp_path):
    refusals += ["sbatch: error: Socket timed out", ""]
    one, runs = SweepRun(tmp_path / "0", ()), runs_at_once(poll_seconds=60)
    thread = threading.Thread(target=runs, args=(one, []))
    thread.start()
    wait_until(lambda: len(refusals) == 1)
    runs.stop()
    thread.join(10)
    assert one.outcome == Outcome("unfinished")
    runs(one, [])
    assert len(refusals) == 1, "nothing is submitted any more"


def test_an_outcome_of_an_earlier_time_is_forgotten(refusals, tmp_path):
    refusals += [""]
    one = SweepRun(tmp_path / "0", ())
    one.begin()
    write_outcome(one.folder, Outcome("failed", "refused"))
    runs_at_once()(one, [])
    assert one.outcome == Outcome("finished")
