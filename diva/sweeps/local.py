"""Runs of a sweep on this machine. Every run is a process of its own.

So its memory is freed at its end. A crash, or the kernel's out-of-memory killer, ends only this run. And a run may
start processes of its own (DDP).
"""

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

from diva.config.hydra_private import quote
from diva.errors import UserError
from diva.sweeps.folder import Outcome, SweepRun, write_outcome
from diva.training.distributed.ranks import end_with

_PARENT = "DIVA_SWEEP_PROCESS"
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b.*")
_MAX_REASON = 300


class RunProcess:
    """`python -m diva.train` for one run; its output goes to run.log in the run's folder."""

    def __init__(self, run: SweepRun, options: list[str], environment: dict[str, str]):
        self.run = run
        self.options = options
        # Inside a SLURM job, Lightning would use the job's tasks as the run's ranks.
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SUBMITIT_"))
        }
        self.environment = kept | {"HYDRA_FULL_ERROR": "1"} | environment | {_PARENT: str(os.getpid())}
        self.stopped = False
        self._process: subprocess.Popen | None = None
        self._lock = threading.RLock()  # reentrant, because a signal handler may interrupt the holder

    def __call__(self) -> None:
        """Start or resume the run and wait for its end. Write its outcome, unless it finished or was stopped."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        log = self.run.folder / "run.log"
        with open(self.run.folder / ".lock", "w", encoding="utf-8") as lock, open(log, "ab") as output:
            # The run inherits the lock. A run that has survived a killed sweep holds it until its end.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.run.done:
                return  # finished by the surviving process
            self.run.begin()
            start = output.tell()
            with self._lock:
                if self.stopped:
                    return
                self._process = subprocess.Popen(
                    self._command(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                    start_new_session=True,  # Ctrl-C reaches only the sweep, which then lets its runs save
                    pass_fds=(lock.fileno(),),
                )
            status = self._process.wait()
            _end_group(self._process.pid)
        if not self.stopped and (outcome := _outcome(self.run, status, log, start)):
            write_outcome(self.run.folder, outcome)

    def stop(self) -> None:
        """Let the run save a checkpoint and end."""
        with self._lock:
            self.stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()

    def wait_in_handler(self) -> None:
        """Wait for the run's end in a signal handler, which may have interrupted `__call__` while that waits."""
        if self._process is not None and self._process.returncode is None:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def _command(self) -> list[str]:
        folder = self.run.folder.absolute()
        started = (folder / "checkpoints" / "last.ckpt").is_file()
        into = f"resume={folder}" if started else f"hydra.run.dir={quote(str(folder))}"
        return [sys.executable, "-m", "diva.train", *self.options, *self.run.overrides, into]


def end_with_sweep() -> None:
    """In the process of a run: save a checkpoint and end when the sweep's process has ended.

    Does nothing in a run that no sweep has started, and in processes that the run starts.
    """
    parent = os.environ.pop(_PARENT, None)
    if parent is not None:
        signal.signal(
            signal.SIGUSR2, signal.SIG_IGN
        )  # SLURM signals every process; that of the sweep handles it
        end_with(int(parent), signal.SIGTERM)


def _end_group(leader: int) -> None:
    """End all processes that the run started: the other ranks of a killed run would wait for ever."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _outcome(run: SweepRun, status: int, log: Path, start: int) -> Outcome | None:
    """Why a run with exit code `status` failed, from its log after byte `start`; None if it did not fail."""
    if status == 0 and run.outcome.status != "unfinished":
        return None
    if status < 0:
        name = signal.Signals(-status).name
        hint = ", as the kernel does when memory runs out" if -status == signal.SIGKILL else ""
        return Outcome("failed", f"killed by {name}{hint}")
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("diva: ") for line in lines if line.startswith("diva: ")]
    raised = [line for line in lines if _EXCEPTION.match(line)]
    if status == 2 and said:
        return Outcome("failed", said[-1][:_MAX_REASON], users_fault=True)
    if status == 128 + signal.SIGTERM:
        return Outcome("failed", "stopped by SIGTERM; its checkpoint is saved")
    reason = (raised or lines or [""])[-1]
    return Outcome("failed", (reason or f"ended with exit code {status} and no summary.json")[:_MAX_REASON])


class LocalRuns:
    """`n_jobs` runs at a time on this machine, each with its share of the cores and of the GPUs.

    `accelerator` and `devices` are the hardware of a run. Raises UserError if the shares are too small.
    """

    def __init__(self, n_jobs: int, accelerator: str, devices: int):
        if n_jobs < 1:
            raise UserError(f"sweep.runner.n_jobs={n_jobs} is no number of runs: give 1 or more")
        self.n_jobs = n_jobs
        self._shares: SimpleQueue[dict[str, str]] = SimpleQueue()
        for share in _shares(n_jobs, accelerator, devices):
            self._shares.put(share)
        self._running: set[RunProcess] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def __call__(self, run: SweepRun, options: list[str]) -> None:
        """Carry out one run. Called from up to `n_jobs` threads at once. Does nothing after `stop`."""
        share = self._shares.get()
        process = RunProcess(run, options, share)
        try:
            with self._lock:
                if self._stopped:
                    return
                self._running.add(process)
            process()
        finally:
            self._running.discard(process)
            self._shares.put(share)

    def stop(self) -> str:
        """Let all runs save and end, and start no others; returns a message for the user."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.stop()
        return "waiting for the runs to save"


def _shares(n_jobs: int, accelerator: str, devices: int) -> list[dict[str, str]]:
    """Environment variables that give each of `n_jobs` runs, of `devices` processes, its cores and GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = n_jobs > 1 and "OMP_NUM_THREADS" not in os.environ
    each_process = max(1, cores // (n_jobs * max(devices, 1)))
    threads = {"OMP_NUM_THREADS": str(each_process)} if shared else {}
    if accelerator != "gpu" or n_jobs == 1:
        return [threads] * n_jobs
    import torch  # not at the top: every run imports this module before its command line is checked

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
    each = len(gpus) // n_jobs
    if each < max(devices, 1):
        raise UserError(
            f"sweep.runner.n_jobs={n_jobs} runs at a time with {max(devices, 1)} GPU each need"
            f" {n_jobs * max(devices, 1)} GPUs; there are {len(gpus)}"
        )
    return [
        threads | {"CUDA_VISIBLE_DEVICES": ",".join(gpus[job * each : (job + 1) * each])}
        for job in range(n_jobs)
    ]
