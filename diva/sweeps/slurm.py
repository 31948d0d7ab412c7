"""Runs of a sweep as SLURM jobs, through submitit.

A job that reaches its time limit or is preempted lets its run save, goes back into the queue, and the run goes on
where its checkpoint is. The jobs outlive the sweep's own process: its command, given again, finds them.
"""

import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import submitit
from omegaconf import DictConfig
from submitit.core.utils import FailedJobError

from diva.errors import UserError
from diva.sweeps.folder import Outcome, SweepRun, write_outcome
from diva.sweeps.local import RunProcess

_JOB_ID = "job_id"
_ATTEMPTS = 2  # at submitting: a controller that is busy refuses now and then


class RunJob:
    """What submitit pickles and calls inside the job."""

    def __init__(self, run: SweepRun, options: list[str]):
        self.run = run
        self.options = options
        self._process: RunProcess | None = None

    def __call__(self) -> None:
        self._process = RunProcess(self.run, self.options, {})
        self._process()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit when the job is to end: let the run save; returns what the requeued job does."""
        if self._process is not None:
            self._process.stop()
            self._process.wait_in_handler()
        return submitit.helpers.DelayedSubmission(RunJob(self.run, self.options))


class SlurmRuns:
    """Up to `n_jobs` jobs in the queue at a time, one a run.

    `accelerator` and `devices` are the hardware of a run. `parameters` are submitit's (timeout_min, cpus_per_task,
    mem_gb, slurm_partition, ...). A run may be sent back into the queue `max_timeouts` times for its time limit, and
    any number of times for preemption. `cluster` is "slurm"; "local" runs the same jobs on this machine, to try them.
    """

    def __init__(
        self,
        n_jobs: int,
        accelerator: str,
        devices: int,
        cluster: str,
        max_timeouts: int,
        poll_seconds: float,
        parameters: DictConfig,
    ):
        self.n_jobs = n_jobs
        self.cluster = cluster
        self.max_timeouts = max_timeouts
        self.poll_seconds = poll_seconds
        self.parameters: dict[str, Any] = {str(name): value for name, value in parameters.items()}
        if accelerator == "gpu" and devices < 1:
            raise UserError(
                f"hardware.devices={devices}: a job has to know its number of GPUs, hardware.devices=N"
            )
        if accelerator == "gpu":
            self.parameters.setdefault("gpus_per_node", devices)
        self._stopping = threading.Event()
        # What is wrong with the parameters is said before any run.
        with tempfile.TemporaryDirectory() as folder:
            self._executor(Path(folder))

    def __call__(self, run: SweepRun, options: list[str]) -> None:
        """Submit one run, or find the job it has, and wait for its end. Called from up to `n_jobs` threads."""
        if run.done:
            return  # by a job that has outlived its sweep
        run.folder.mkdir(parents=True, exist_ok=True)
        jobs = run.folder.absolute() / "job"
        known = jobs / _JOB_ID
        if self.cluster == "slurm" and known.is_file() and in_queue(known.read_text(encoding="utf-8")):
            job: submitit.Job[None] = submitit.SlurmJob(jobs, known.read_text(encoding="utf-8"))
        else:
            run.begin()
            if (submitted := self._submit(run, options, jobs)) is None:
                return
            job = submitted
            known.write_text(job.job_id, encoding="utf-8")
        while not self._over(job):
            if self._stopping.wait(self.poll_seconds):
                return
        if run.outcome.status == "unfinished":
            write_outcome(run.folder, Outcome("failed", _reason(job)))

    def stop(self) -> str:
        """Leave the jobs where they are; returns what to tell the user."""
        self._stopping.set()
        return "the jobs stay in the queue (scancel ends them)"

    def _submit(self, run: SweepRun, options: list[str], jobs: Path) -> submitit.Job[None] | None:
        """The run's job. None, with the outcome written, where it is refused twice; also where the sweep ends."""
        for attempt in range(_ATTEMPTS):
            if self._stopping.wait(self.poll_seconds if attempt else 0):
                return None
            try:
                return self._executor(jobs).submit(RunJob(run, options))
            except FailedJobError as error:
                said = " ".join(str(error).split()) or "no reason given"
        write_outcome(run.folder, Outcome("failed", f"refused by the queue: {said}"[:300], users_fault=True))
        return None

    def _executor(self, folder: Path) -> submitit.AutoExecutor:
        try:
            executor = submitit.AutoExecutor(
                folder, self.cluster, **{f"{self.cluster}_max_num_timeout": self.max_timeouts}
            )
            executor.update_parameters(name="diva", **self.parameters)
        except (RuntimeError, ValueError, NameError) as error:
            raise UserError(f"sweep.runner cannot submit jobs: {error}") from error
        return executor

    def _over(self, job: submitit.Job) -> bool:
        """Whether there is nothing to wait for. A job between two places in the queue is still in it."""
        return not in_queue(job.job_id) if self.cluster == "slurm" else job.done()


def in_queue(job_id: str) -> bool:
    """Whether SLURM still has the job; yes where it cannot be asked just now.

    Not from submitit, which asks sacct: some clusters have none, and a killed job would be waited for without end.
    """
    command = ["squeue", "--noheader", "--jobs", job_id]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        return "Invalid job id" not in asked.stderr
    return bool(asked.stdout.strip())


def _reason(job: submitit.Job) -> str:
    """Why a job ended before its run had an outcome: the last line it said."""
    lines = [line for line in (job.stderr() or "").splitlines() if line.strip()]
    return f"job {job.job_id} ended before its run: {lines[-1] if lines else 'it said nothing'}"[:300]
