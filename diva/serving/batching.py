"""Dynamic batching: one thread owns the model, requests that wait together are generated together."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

from transformers import LogitsProcessorList, StoppingCriteriaList

from diva.audio.frames import SAMPLE_RATE
from diva.models.modeling import DivaForConditionalGeneration
from diva.serving.rows import Job, Row, RowEnds, RowSampling

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchLimits:
    """What fits into one batch. A job that is larger than the last two runs alone."""

    rows: int = 16
    wait_seconds: float = 0.005  # for company, from when the first job of a batch came
    tokens: int = 8192  # rows times the longest prompt and answer
    audio_seconds: float = 600.0  # windows times the longest window


class Batcher:
    """Answers jobs in the order in which they came, several at a time.

    A batch runs until its last row has ended; who comes meanwhile waits for the next one.
    """

    def __init__(
        self,
        model: DivaForConditionalGeneration,
        limits: BatchLimits,
        on_batch: Callable[[int], Any],
    ):
        self._model = model
        self._limits = limits
        self._on_batch = on_batch
        end = model.generation_config.eos_token_id
        self._end_tokens = set(end if isinstance(end, list) else [end])
        self._waiting: deque[tuple[float, Job]] = deque()  # with when they came
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._work, name="diva-batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        with self._changed:
            self._waiting.append((time.monotonic(), job))
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
        while batch := self._next_batch():
            self._on_batch(len(batch))
            self._answer(batch)

    def _next_batch(self) -> list[Job]:
        """The oldest jobs that fit together, once they are enough or have waited enough; [] at the end."""
        with self._changed:
            while not self._closed:
                self._drop_cancelled()
                if len(self._waiting) >= self._limits.rows:
                    break
                left = None
                if self._waiting:
                    left = self._waiting[0][0] + self._limits.wait_seconds - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            batch: list[Job] = []
            while self._waiting and (not batch or self._fits([*batch, self._waiting[0][1]])):
                batch.append(self._waiting.popleft()[1])
            return batch

    def _drop_cancelled(self) -> None:
        self._waiting = deque((came, job) for came, job in self._waiting if not job.cancelled)

    def _fits(self, jobs: Sequence[Job]) -> bool:
        prompt, answer = max(job.prompt_tokens for job in jobs), max(job.max_tokens for job in jobs)
        samples = sum(job.windows for job in jobs) * max(job.window_samples for job in jobs)
        return (
            len(jobs) <= self._limits.rows
            and len(jobs) * (prompt + answer) <= self._limits.tokens
            and samples <= self._limits.audio_seconds * SAMPLE_RATE
        )

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Generate one batch; what goes wrong goes to every row that had not ended."""
        rows = [Row(job, self._model.processor.tokenizer, self._end_tokens) for job in jobs]
        try:
            inputs = self._model.processor.apply_chat_template([job.chat for job in jobs])
            self._model.generate(
                **inputs.to(self._model.device),
                do_sample=False,
                max_new_tokens=max(job.max_tokens for job in jobs),
                logits_processor=LogitsProcessorList([RowSampling(jobs, self._model.device)]),
                stopping_criteria=StoppingCriteriaList([RowEnds(rows)]),
            )
            assert all(row.done for row in rows), "the generation ended before its rows did"
        except Exception as error:
            logger.exception("a batch of %d failed", len(jobs))
            for row in rows:
                if not row.done:
                    row.job.deliver(error)
