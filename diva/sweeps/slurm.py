"""Runs of a sweep as SLURM jobs, through submitit.

If a job reaches its time limit or is preempted, it lets its run save and goes back into the queue. The run then resumes
from its checkpoint. The jobs continue after the end of the sweep's process. The same command finds them again.
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
_ATTEMPTS = 2  # to submit a job, because a busy controller sometimes refuses


class RunJob:
    """The callable that submitit pickles and calls inside the job."""

    def __init__(self, run: SweepRun, options: list[str]):
        self.run = run
        self.options = options
        self._process: RunProcess | None = None

    def __call__(self) -> None:
        self._process = RunProcess(self.run, self.options, {})
        self._process()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit when the job has to end: let the run save; returns the call for the requeued job."""
        if self._process is not None:
            self._process.stop()
            self._process.wait_in_handler()
        return submitit.helpers.DelayedSubmission(RunJob(self.run, self.options))


class SlurmRuns:
    """Up to `n_jobs` jobs in the queue at a time, one for each run.

    `accelerator` and `devices` are the hardware of a run. `parameters` are submitit's (timeout_min, cpus_per_task,
    mem_gb, slurm_partition, ...). A run may go back into the queue `max_timeouts` times because of its time limit, and
    any number of times because of preemption. `cluster` is "slurm"; "local" runs the same jobs here, for tests.
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
        # Wrong parameters are an error before any run.
        with tempfile.TemporaryDirectory() as folder:
            self._executor(Path(folder))

    def __call__(self, run: SweepRun, options: list[str]) -> None:
        """Submit one run, or find the job it has, and wait for its end. Called from up to `n_jobs` threads."""
        if run.done:
            return  # done by a job of an earlier process of this sweep
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
        """Do not end the jobs; returns a message for the user."""
        self._stopping.set()
        return "the jobs stay in the queue (scancel ends them)"

    def _submit(self, run: SweepRun, options: list[str], jobs: Path) -> submitit.Job[None] | None:
        """The run's job. None if it is refused twice, which is written as the outcome, or if the sweep ends."""
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
        """Whether the job has ended. A job that is being requeued has not."""
        return not in_queue(job.job_id) if self.cluster == "slurm" else job.done()


def in_queue(job_id: str) -> bool:
    """Whether SLURM still has the job; True if SLURM does not answer just now.

    This does not use submitit, which asks sacct. Some clusters have no sacct, and there the wait for a killed job would
    never end.
    """
    command = ["squeue", "--noheader", "--jobs", job_id]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        return "Invalid job id" not in asked.stderr
    return bool(asked.stdout.strip())


def _reason(job: submitit.Job) -> str:
    """Why a job ended before its run had an outcome: the last line of its output."""
    lines = [line for line in (job.stderr() or "").splitlines() if line.strip()]
    return f"job {job.job_id} ended before its run: {lines[-1] if lines else 'it said nothing'}"[:300]
