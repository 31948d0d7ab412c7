"""Sweeps: what fails is contained, what is killed continues, what is searched is pruned for the right reason."""

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import psutil
import pytest
from command_line import environment, metrics, run
from omegaconf import OmegaConf
from optuna.pruners import BasePruner
from stand_ins import FINISHES, FORK, SLEEPS, stand_in, wait_until

from diva.config import CONFIG_DIR, check_overrides, make
from diva.errors import UserError
from diva.sweeps import slurm as sweep_slurm
from diva.sweeps.folder import Outcome, SweepRun, find_runs, place_runs, write_outcome
from diva.sweeps.optuna_study import Study
from diva.sweeps.slurm import SlurmRuns
from diva.sweeps.sweep import exit_code, sweep


def real(test):
    """Mark a test of several processes that import everything."""
    return pytest.mark.integration(pytest.mark.timeout(600)(test))


@pytest.fixture(scope="session")
def arguments(tiny_run: list[str]) -> list[str]:
    return [
        *tiny_run,
        "objective=align_only",
        "optimizer.warmup_steps=1",
        "optimizer.gradient_clip=1e9",
        "max_steps=4",
        "val_every=2",
        "checkpoint_every=1",
        "sample_responses=0",
        "logger=csv",
    ]


@pytest.fixture(scope="session")
def half_failed(arguments, shared_cache, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """Two runs at once, one of which asks for a split that the corpus has not."""
    folder = tmp_path_factory.mktemp("sweeps") / "half"
    done = run(
        "diva.train", "-m", "sweep=parallel", *arguments, "data.train_split=train,trian",
        f"hydra.sweep.dir={folder}", cache=shared_cache, cwd=folder.parent, timeout=500,
    )  # fmt: skip
    return folder, done


@real
def test_a_failed_run_does_not_end_the_sweep(half_failed):
    folder, done = half_failed
    assert done.returncode == 2, done.stderr
    finished, failed = find_runs(folder)
    assert finished.outcome == Outcome("finished")
    assert (folder / "0" / "export").is_dir()
    assert failed.outcome.users_fault
    assert "no split 'trian'" in failed.outcome.reason
    assert "run 1 failed" in done.stderr
    assert "no split 'trian'" in done.stdout, "the table at the end says why"
    assert done.stdout.count("val/kl") == 1


@real
def test_the_report_of_a_half_failed_sweep(half_failed, shared_cache, tmp_path):
    folder, _ = half_failed
    done = run("diva.sweep_report", folder, "--into", tmp_path / "r", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "r" / "sweep.md").read_text()
    kl = json.loads((folder / "0" / "summary.json").read_text())["val/kl"]
    assert "| train | 1 | " in table
    assert f"{kl:.4f}" in table
    assert "| trian | 0 of 1 |" in table
    assert "| 1 | data.train_split=trian | failed | no split 'trian'" in table
    assert (tmp_path / "r" / "sweep.png").read_bytes().startswith(b"\x89PNG")


@real
def test_a_search_prunes_what_is_worse_than_the_median(arguments, shared_cache, tmp_path):
    folder = tmp_path / "sweep"
    # With this seed the sampler takes the sane learning rate first.
    search = ["sweep=optuna", "optimizer.lr=0.0001,30", "sweep.runner.n_jobs=1", "sweep.study.trials=2"]
    search += ["sweep.study.pruner.n_startup_trials=1", "sweep.study.sampler.seed=10"]
    done = run(
        "diva.train", "-m", *arguments, *search, f"hydra.sweep.dir={folder}", cache=shared_cache, cwd=tmp_path,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sane, wild = find_runs(folder)
    assert (sane.values["optimizer.lr"], wild.values["optimizer.lr"]) == ("0.0001", "30")
    assert sane.outcome.status == "finished"
    assert wild.outcome.status == "pruned"
    assert wild.outcome.reason.endswith("at step 2 of 4")
    first, worse = (
        float(next(row["val/kl"] for row in metrics(r.folder) if row["val/kl"])) for r in (sane, wild)
    )
    assert worse > first
    assert f"{worse:.4g}" in wild.outcome.reason
    assert max(int(row["step"]) for row in metrics(wild.folder)) == 1
    assert (wild.folder / "checkpoints" / "last.ckpt").is_file()
    assert not (wild.folder / "export").exists()
    assert "pruned" in done.stdout


@real
def test_a_preempted_job_goes_back_into_the_queue_and_resumes(arguments, shared_cache, tmp_path, monkeypatch):
    for name, value in environment(shared_cache).items():
        monkeypatch.setenv(name, value)
    parameters = OmegaConf.create({"timeout_min": 60})
    runs = SlurmRuns(1, "cpu", 1, "local", 2, 0.2, parameters)
    # Long enough that it cannot end before it is preempted; the requeued job takes it to its end.
    one = SweepRun(tmp_path / "0", (*arguments, "max_steps=40", "val_every=40"))
    thread = threading.Thread(target=runs, args=(one, []))
    thread.start()
    wait_until((one.folder / "checkpoints" / "last.ckpt").is_file)
    controller = psutil.Process(int((one.folder / "job" / "job_id").read_text()))
    (job,) = controller.children()
    job.send_signal(signal.SIGUSR2)
    thread.join(180)
    assert one.outcome == Outcome("finished")
    log = (one.folder / "run.log").read_text()
    assert log.count("parameters: ") == 2, "two processes have trained"
    assert [int(row["step"]) for row in metrics(one.folder)] == list(range(40))
    said = "".join(file.read_text() for file in (one.folder / "job").glob("*_0_log.err"))
    assert "this job is preempted" in said


# Sweeps whose runs are stand-ins.


GRID = ["data.root=x", "data=common_voice"]


def sweep_in(folder: Path, *arguments: str) -> int:
    return sweep([*GRID, *arguments, f"hydra.sweep.dir={folder}"], "train", None)


def test_a_sweep_ends_with_one_table(monkeypatch, tmp_path, capsys):
    stand_in(monkeypatch, FINISHES)
    assert sweep_in(tmp_path, "objective.align_weight=0.5,1", "seed=1,2") == 0
    assert len(list(tmp_path.glob("*/summary.json"))) == 4
    said = capsys.readouterr().out
    for text in ("objective.align_weight", "val/kl", "0.5"):
        assert text in said
    assert said.count("objective.align_weight") == 1


def test_a_sweep_continued_runs_only_what_has_not_finished(monkeypatch, tmp_path):
    counts = "open(sys.argv[1] + '/count', 'a').write('x')"
    failing = (
        f"import sys; {counts}; sys.argv[1].endswith('1') and sys.exit(1); " + FINISHES.partition("; ")[2]
    )
    stand_in(monkeypatch, failing)
    assert sweep_in(tmp_path / "s", "seed=1,2,3") == 1
    assert [r.outcome.status for r in find_runs(tmp_path / "s")] == ["finished", "failed", "finished"]
    stand_in(monkeypatch, f"import sys; {counts}; " + FINISHES.partition("; ")[2])
    assert sweep_in(tmp_path / "s", "seed=1,2,3,4") == 0
    assert [(r.folder / "count").read_text() for r in find_runs(tmp_path / "s")] == ["x", "xx", "x", "x"]


def test_added_values_renumber_nothing(tmp_path):
    first = place_runs(tmp_path, [("a=1", "seed=1"), ("a=2", "seed=1")])
    for one in first:
        one.begin()
    wider = place_runs(tmp_path, [("a=1", "seed=1"), ("a=1", "seed=2"), ("seed=1", "a=2"), ("a=2", "seed=2")])
    assert [one.folder.name for one in wider] == ["0", "2", "1", "3"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["experiment=mini,minni"], "mini"),
        (["hydra/launcher=basic"], "sweep=serial"),
        (["resume=x"], "hydra.sweep.dir"),
        (["hydra.run.dir=x"], "hydra.sweep.dir"),
        (["hardware.num_nodes=2"], "one machine"),
        (["sweep.runner.n_jobs=0"], "n_jobs=0"),
        (["sweep.runner.njobs=2"], "sweep.runner.n_jobs"),
        (["optimizer.lr=interval(0,1)"], "sweep=optuna"),
        (["sweep=optuna"], "nothing to search"),
        (["sweep=slurm", "seed=1,2"], "srun"),
        (["sweep=slurm", "sweep.runner.cluster=local", "+sweep.runner.parameters.memory=2"], "memory"),
        (["sweep=slurm", "sweep.runner.cluster=local", "hardware=gpu_ddp"], "hardware.devices=N"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_refused_before_any_run(monkeypatch, tmp_path, wrong, message):
    stand_in(monkeypatch, FINISHES)
    with pytest.raises(UserError, match=message):
        sweep_in(tmp_path / "s", *wrong)
    assert find_runs(tmp_path / "s") == []


def test_a_search_and_a_grid_do_not_share_a_folder(monkeypatch, tmp_path):
    stand_in(monkeypatch, FINISHES)
    assert sweep_in(tmp_path, "seed=1,2") == 0
    with pytest.raises(UserError, match="every combination"):
        sweep_in(tmp_path, "sweep=optuna", "seed=1,2")
    assert sweep_in(tmp_path / "s", "sweep=optuna", "sweep.study.trials=2", "seed=1,2") == 0
    with pytest.raises(UserError, match="a search"):
        sweep_in(tmp_path / "s", "seed=1,2")


def test_sweep_exit_code_is_2_only_for_the_users_faults(tmp_path):
    def one(name: str, outcome: Outcome) -> SweepRun:
        (tmp_path / name).mkdir()
        write_outcome(tmp_path / name, outcome)
        return SweepRun(tmp_path / name, ())

    mine, ours = one("a", Outcome("failed", "", True)), one("b", Outcome("failed"))
    pruned = one("c", Outcome("pruned"))
    assert exit_code([pruned]) == 0
    assert exit_code([pruned, mine]) == 2
    assert exit_code([mine, ours]) == 1


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_gets_sigterm_lets_its_runs_save(monkeypatch, tmp_path, sent, capfd):
    saves = "import signal, sys, time; here = sys.argv[1]; "
    saves += "signal.signal(signal.SIGTERM, lambda *_: (open(here + '/saved', 'w'), sys.exit(143))); "
    saves += "open(here + '/here', 'w'); [time.sleep(0.05) for _ in range(1200)]"
    stand_in(monkeypatch, saves)

    def in_a_terminal() -> None:  # whoever runs the tests may have this process ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sweep_in(tmp_path, "sweep=parallel", "seed=1,2,3")

    process = FORK.Process(target=in_a_terminal)
    process.start()
    wait_until(lambda: len(list(tmp_path.glob("*/here"))) == 2)
    os.kill(process.pid, sent)
    process.join(60)
    assert process.exitcode == 128 + sent
    assert sorted(file.parent.name for file in tmp_path.glob("*/saved")) == ["0", "1"]
    assert not (tmp_path / "2").exists(), "no run is started any more"
    assert "goes on from here" in capfd.readouterr().err
    assert [one.outcome for one in find_runs(tmp_path)] == [Outcome("unfinished")] * 2


def test_two_sweeps_in_one_folder_are_refused(monkeypatch, tmp_path):
    stand_in(monkeypatch, SLEEPS)
    process = FORK.Process(target=sweep_in, args=(tmp_path, "seed=1,2"))
    process.start()
    wait_until((tmp_path / "0" / "here").exists)
    with pytest.raises(UserError, match="another sweep is at work"):
        sweep_in(tmp_path, "seed=1,2")
    process.terminate()
    process.join(60)


# Configs.


CHOICES = sorted(file.stem for file in (Path(CONFIG_DIR) / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_sweep_config_builds_what_it_names(choice, monkeypatch):
    monkeypatch.setattr(sweep_slurm.submitit, "AutoExecutor", FakeExecutor)
    config = check_overrides("train", [f"sweep={choice}", *GRID])
    assert ("study" in config.sweep) == choice.startswith("optuna")
    assert ("slurm" in choice) == isinstance(make(config.sweep.runner), SlurmRuns)
    if "study" in config.sweep:
        assert isinstance(make(config.sweep.study), Study)
        assert isinstance(make(config.sweep.study.pruner), BasePruner)


class FakeExecutor:
    """In place of submitit's, which wants srun."""

    def __init__(self, folder: Path, cluster: str, **limits: int):
        assert limits == {f"{cluster}_max_num_timeout": 20}

    def update_parameters(self, **parameters) -> None:
        assert parameters["slurm_signal_delay_s"] == 300
