"""Continuous batching: one thread owns the model, and a new job joins the running batch."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

from diva.audio.frames import SAMPLE_RATE
from diva.models.modeling import DivaForConditionalGeneration
from diva.serving.decoding import RunningBatch
from diva.serving.rows import Job, Row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchLimits:
    """Limits of a batch. A job that is larger than `tokens` or `audio_seconds` runs alone."""

    rows: int = 16
    wait_seconds: float = 0.005  # how long an idle model waits for more jobs after the first
    tokens: int = 8192  # rows times the longest prompt with its answer
    audio_seconds: float = 600.0  # encoded together: windows times the longest window


class Batcher:
    """Answers jobs in the order in which they came, several at a time.

    Between two tokens, waiting jobs are admitted if they fit, and finished jobs leave.
    """

    def __init__(
        self,
        model: DivaForConditionalGeneration,
        limits: BatchLimits,
        on_step: Callable[[int], Any],
    ):
        self._model = model
        self._limits = limits
        self._on_step = on_step
        self._end_tokens = model.end_tokens
        self._waiting: deque[tuple[float, Job]] = deque()  # with when they came
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._work, name="diva-batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        with self._changed:
            self._waiting.extend((time.monotonic(), job) for job in jobs)
            self._changed.notify()

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        running = RunningBatch(self._model)
        while True:
            jobs = self._newcomers([row.job for row in running.rows])
            if not jobs and not running.rows:
                return
            if jobs:
                newcomers = [Row(job, self._model.processor.tokenizer, self._end_tokens) for job in jobs]
                self._try(newcomers, running.admit, newcomers)
            if running.rows:
                self._on_step(len(running.rows))
                if not self._try(running.rows, running.step):
                    running = RunningBatch(self._model)

    def _newcomers(self, running: Sequence[Job]) -> list[Job]:
        """The oldest waiting jobs that fit beside those that run. If none run, it waits for one; then [] is the end."""
        with self._changed:
            while True:
                self._waiting = deque((came, job) for came, job in self._waiting if not job.cancelled)
                left = self._left_to_wait()
                if running or self._closed or (left is not None and left <= 0):
                    break
                self._changed.wait(left)
            newcomers: list[Job] = []
            while self._waiting and self._fits(running, [*newcomers, self._waiting[0][1]]):
                newcomers.append(self._waiting.popleft()[1])
            return newcomers

    def _left_to_wait(self) -> float | None:
        """Seconds until the waiting jobs are started in any case; None if no job waits."""
        if not self._waiting:
            return None
        if len(self._waiting) >= self._limits.rows:
            return 0.0
        return self._waiting[0][0] + self._limits.wait_seconds - time.monotonic()

    def _fits(self, running: Sequence[Job], newcomers: Sequence[Job]) -> bool:
        jobs = [*running, *newcomers]
        longest = max(job.prompt_tokens + job.max_tokens for job in jobs)
        samples = sum(job.windows for job in newcomers) * max(job.window_samples for job in newcomers)
        return len(jobs) == 1 or (
            len(jobs) <= self._limits.rows
            and len(jobs) * longest <= self._limits.tokens
            and samples <= self._limits.audio_seconds * SAMPLE_RATE
        )

    def _try(self, rows: Sequence[Row], do: Callable[..., None], *arguments: Any) -> bool:
        """Whether it succeeded. An error is delivered to the rows that have not ended."""
        try:
            do(*arguments)
        except Exception as error:
            logger.exception("%d rows failed", len(rows))
            for row in rows:
                if not row.done:
                    row.job.deliver(error)
            return False
        return True
