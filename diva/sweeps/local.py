"""Where the runs of a sweep happen. Every run is a process of its own.

So its memory is returned, a crash or the kernel's out-of-memory killer ends it alone, and it may start
processes of its own (DDP).
"""

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

from diva.config.hydra_private import quote
from diva.errors import UserError
from diva.sweeps.folder import Outcome, SweepRun, write_outcome

_PARENT = "DIVA_SWEEP_PROCESS"
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b.*")
_MAX_REASON = 300


class RunProcess:
    """`python -m diva.train` for one run; its output goes to run.log in the run's folder."""

    def __init__(self, run: SweepRun, options: list[str], environment: dict[str, str]):
        self.run = run
        self.options = options
        # Inside a SLURM job Lightning would take the job's tasks for the run's ranks.
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SUBMITIT_"))
        }
        self.environment = kept | {"HYDRA_FULL_ERROR": "1"} | environment | {_PARENT: str(os.getpid())}
        self.stopped = False
        self._process: subprocess.Popen | None = None
        self._lock = threading.RLock()  # a signal handler may come in between

    def __call__(self) -> None:
        """Start or continue the run, wait for its end, write its outcome unless it finished or was stopped."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        log = self.run.folder / "run.log"
        with open(self.run.folder / ".lock", "w", encoding="utf-8") as lock, open(log, "ab") as output:
            # The run inherits the lock: one left over from a killed sweep holds it until it has ended.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.run.done:
                return  # by the one left over
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
                    start_new_session=True,  # Ctrl-C reaches the sweep, which lets its runs save
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
        """Wait for the run's end from a signal handler, which may have interrupted `__call__` in its own waiting."""
        if self._process is not None and self._process.returncode is None:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def _command(self) -> list[str]:
        folder = self.run.folder.absolute()
        started = (folder / "checkpoints" / "last.ckpt").is_file()
        into = f"resume={folder}" if started else f"hydra.run.dir={quote(str(folder))}"
        return [sys.executable, "-m", "diva.train", *self.options, *self.run.overrides, into]


def end_with_sweep() -> None:
    """In the process of a run: when the sweep's process is gone, save a checkpoint and end.

    Does nothing in a run that no sweep has started. Processes that the run starts are no concern of the sweep.
    """
    parent = os.environ.pop(_PARENT, None)
    if parent is not None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM tells every process; the sweep's sees to it
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _end_group(leader: int) -> None:
    """What the run started must not outlive it: the other ranks of a killed one would wait for ever."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _outcome(run: SweepRun, status: int, log: Path, start: int) -> Outcome | None:
    """How a run that has left with `status` failed, read from what it logged since byte `start`; None if it didn't."""
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

    `accelerator` and `devices` are the hardware of a run. Raises UserError where the shares are too small.
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
        """Carry out one run. Called from up to `n_jobs` threads at once; does nothing once it was told to stop."""
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
        """Let all runs save and end, and no other begin; returns what to tell the user."""
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
    import torch  # here: every run imports this module before its command line is checked

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
