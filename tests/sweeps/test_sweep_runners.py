"""A run as a process: its outcome, the processes that end with it, the ones that it waits for."""

import os
import signal
import threading
import time

import psutil
import pytest
from stand_ins import FINISHES, FORK, SLEEPS, stand_in, wait_until

from diva.errors import UserError
from diva.sweeps import local as sweep_runners
from diva.sweeps.folder import Outcome, SweepRun
from diva.sweeps.local import LocalRuns, RunProcess, end_with_sweep


@pytest.mark.parametrize(
    ("script", "reason", "users_fault"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "SIGKILL, as the kernel does when memory",
            False,
        ),
        ("raise MemoryError('no 5 GB left')", "MemoryError: no 5 GB left", False),
        ("import sys; print('diva: no such corpus', file=sys.stderr); sys.exit(2)", "no such corpus", True),
        ("pass", "ended with exit code 0 and no summary.json", False),
    ],
)
def test_a_failed_run_records_its_reason_and_whose_fault_it_is(
    monkeypatch, tmp_path, script, reason, users_fault
):
    stand_in(monkeypatch, script)
    one = SweepRun(tmp_path / "0", ("seed=1",))
    LocalRuns(1, "cpu", 1)(one, [])
    assert one.outcome.status == "failed"
    assert reason in one.outcome.reason
    assert one.outcome.users_fault == users_fault
    assert one.figures == {}


def test_the_reason_is_that_of_the_last_attempt(monkeypatch, tmp_path):
    one = SweepRun(tmp_path / "0", ("seed=1",))
    stand_in(monkeypatch, "import sys; print('diva: first'); sys.exit(2)")
    LocalRuns(1, "cpu", 1)(one, [])
    stand_in(monkeypatch, "import sys; sys.exit(2)")
    LocalRuns(1, "cpu", 1)(one, [])
    assert "first" not in one.outcome.reason
    stand_in(monkeypatch, FINISHES)
    LocalRuns(1, "cpu", 1)(one, [])
    assert one.outcome == Outcome("finished")


def test_what_a_run_has_started_ends_with_it(monkeypatch, tmp_path):
    """As the other ranks of a killed rank 0."""
    child = "import subprocess, sys, os, signal; p = subprocess.Popen(['sleep', '60'])"
    stand_in(
        monkeypatch,
        f"{child}; open(sys.argv[1] + '/pid', 'w').write(str(p.pid)); os.kill(os.getpid(), signal.SIGKILL)",
    )
    LocalRuns(1, "cpu", 1)(SweepRun(tmp_path / "0", ()), [])
    pid = int((tmp_path / "0" / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", 5)


def test_a_stopped_run_has_not_failed(monkeypatch, tmp_path):
    stand_in(monkeypatch, SLEEPS)
    runs, one = LocalRuns(1, "cpu", 1), SweepRun(tmp_path / "0", ())
    thread = threading.Thread(target=runs, args=(one, []))
    thread.start()
    wait_until((tmp_path / "0" / "here").exists)
    runs.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert one.outcome == Outcome("unfinished")


def test_a_run_taken_when_the_sweep_was_stopped_does_not_begin(monkeypatch, tmp_path):
    """Between taking a run and starting its process, too, there is time for a Ctrl-C."""
    stand_in(monkeypatch, FINISHES)
    runs, one = LocalRuns(1, "cpu", 1), SweepRun(tmp_path / "0", ())
    runs.stop()
    runs(one, [])
    assert not one.folder.exists()
    runs._shares.get(block=False)  # it is free again


def test_a_run_waits_for_the_one_that_a_killed_sweep_has_left(monkeypatch, tmp_path):
    """The folder's lock belongs to the process of the run, so it is free only when that has ended."""
    one = SweepRun(tmp_path / "0", ())
    stand_in(monkeypatch, "import sys, time; open(sys.argv[1] + '/here', 'w'); time.sleep(2); " + FINISHES)
    killed = FORK.Process(target=RunProcess(one, [], {}))
    killed.start()
    wait_until((one.folder / "here").exists)
    killed.kill()
    killed.join()
    assert one.outcome == Outcome("unfinished")
    stand_in(monkeypatch, "raise SystemExit(1)")
    LocalRuns(1, "cpu", 1)(one, [])
    assert one.outcome == Outcome("finished"), "it has waited, and has not run what was done"


def test_a_run_ends_with_its_sweep(tmp_path, monkeypatch):
    """Whoever started the run is gone: it gets a SIGTERM, at which training saves."""

    def be_the_run() -> None:
        signal.signal(signal.SIGTERM, lambda *_: ((tmp_path / "saved").touch(), os._exit(143)))
        end_with_sweep()
        (tmp_path / "watches").touch()
        time.sleep(60)

    def be_the_sweep() -> None:
        monkeypatch.setenv("DIVA_SWEEP_PROCESS", str(os.getpid()))
        FORK.Process(target=be_the_run).start()
        time.sleep(60)

    started = FORK.Process(target=be_the_sweep)
    started.start()
    wait_until((tmp_path / "watches").exists)
    time.sleep(1.5)
    assert not (tmp_path / "saved").exists()
    started.kill()
    wait_until((tmp_path / "saved").exists, 20)


def test_processes_of_a_run_are_no_concern_of_the_sweep(monkeypatch):
    """The other ranks inherit the environment, and the sweep is not their parent."""
    monkeypatch.setenv("DIVA_SWEEP_PROCESS", str(os.getppid()))
    before = signal.getsignal(signal.SIGUSR2)
    end_with_sweep()
    signal.signal(signal.SIGUSR2, before)
    assert "DIVA_SWEEP_PROCESS" not in os.environ


def test_a_started_run_is_resumed_and_a_new_one_is_not(tmp_path):
    one = SweepRun(tmp_path / "0", ("seed=1",))
    new = RunProcess(one, ["--config-dir", "x"], {})._command()
    assert new[1:] == ["-m", "diva.train", "--config-dir", "x", "seed=1", f"hydra.run.dir='{one.folder}'"]
    (one.folder / "checkpoints").mkdir(parents=True)
    (one.folder / "checkpoints" / "last.ckpt").touch()
    assert RunProcess(one, [], {})._command()[3:] == ["seed=1", f"resume={one.folder}"]


def test_runs_at_a_time_share_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert sweep_runners._shares(2, "cpu", 1) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert sweep_runners._shares(2, "cpu", 2) == [{"OMP_NUM_THREADS": "2"}] * 2, "of two processes each"
    shares = sweep_runners._shares(2, "gpu", 2)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["4,5", "6,7"]
    with pytest.raises(UserError, match="need 6 GPUs; there are 4"):
        sweep_runners._shares(3, "gpu", 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert sweep_runners._shares(2, "cpu", 1) == [{}, {}], "the user's own word stands"
