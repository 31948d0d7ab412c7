"""Asks a system the samples of a task. Each answer is written at once, so that a killed evaluation can be resumed."""

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import ProgressColumn, Task
from rich.text import Text

from diva.data.manifest import Manifest
from diva.errors import AudioFault, UserError
from diva.evaluation.labels import NoLabel
from diva.evaluation.samples import Answer, Instruction, Sample
from diva.evaluation.systems.local import System
from diva.folders import take
from diva.terminal import progress_bar

SAMPLES = "samples.jsonl"
# Number of clips that are decoded at a time, to make batches of similar length.
_BATCHES_AT_ONCE = 16
# After this number of failures in a row, the fault is in the system, not in the samples.
_FAILURES_IN_A_ROW = 20


class Runner:
    """One task and one system. `run` may be called again to continue."""

    def __init__(
        self,
        system: System,
        instruction: Instruction,
        max_new_tokens: int,
        labels: Sequence[str] | None,
        folder: Path,
        batch_size: int,
        title: str,
    ):
        self.system = system
        self.instruction = instruction
        self.max_new_tokens = max_new_tokens
        self.labels = labels
        self.file = folder / SAMPLES
        # A system without batches gets one sample at a time. Otherwise one failure would ask its whole batch again.
        self.batch_size = batch_size if system.batches else 1
        self.title = title
        self._failures: list[str] = []  # of the system, since it last answered

    def run(self, manifest: Manifest, samples: Sequence[Sample], retry_failed: bool = False) -> list[Answer]:
        """An answer for every sample, in their order. Samples that are in samples.jsonl are not asked again.

        The answer of a failed sample has an error. Raises UserError for what the user can mend, and if the system fails
        so often in a row that it must be at fault.
        """
        take(self.file.parent)
        known = {a.id: a for a in read_answers(self.file) if not (retry_failed and a.error)}
        rest = [sample for sample in samples if sample.id not in known]
        with self.file.open("a", encoding="utf-8") as file, progress_bar(_Rate()) as bar:
            shown = bar.add_task(self.title, total=len(samples), completed=len(samples) - len(rest))
            for answers in _timed(self._answers(manifest, rest)):
                known |= {answer.id: answer for answer in answers}
                file.writelines(map(_line, answers))
                file.flush()
                bar.advance(shown, len(answers))
                self._check()
        return [known[sample.id] for sample in samples]

    def _answers(self, manifest: Manifest, samples: Sequence[Sample]) -> Iterator[list[Answer]]:
        """Answers in batches of clips of similar length."""
        size = self.batch_size * _BATCHES_AT_ONCE
        for start in range(0, len(samples), size):
            heard: list[tuple[int, Sample]] = []
            for sample in samples[start : start + size]:
                if not self.system.hears:
                    heard.append((len(sample.transcript or ""), sample))
                    continue
                try:
                    waveform = manifest.waveform(sample.row)
                    heard.append((len(waveform), dataclasses.replace(sample, waveform=waveform)))
                except AudioFault as fault:
                    yield [_answer(sample, None, str(fault))]
            heard.sort(key=lambda pair: pair[0])
            for first in range(0, len(heard), self.batch_size):
                yield self._batch([sample for _, sample in heard[first : first + self.batch_size]])

    def _batch(self, samples: Sequence[Sample]) -> list[Answer]:
        """The batch's answers. If the batch fails, its samples are asked one by one."""
        try:
            said = self.system.answer(samples, self.instruction, self.max_new_tokens, self.labels)
        except (AudioFault, NoLabel) as fault:  # a fault of the clip or the answer, not of the system
            error = str(fault)
        except UserError:
            raise
        except Exception as failure:  # any error of a model or a server; it is written into the results
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
            if len(samples) == 1:
                self._failures.append(error)
        else:
            self._failures.clear()
            return [_answer(sample, text) for sample, text in zip(samples, said, strict=True)]
        if len(samples) == 1:
            return [_answer(samples[0], None, error)]
        return [answer for sample in samples for answer in self._batch([sample])]

    def _check(self) -> None:
        if len(self._failures) >= _FAILURES_IN_A_ROW:
            raise UserError(
                f"the system has failed {len(self._failures)} times in a row, the last with: {self._failures[-1]};"
                " mend that, and run the same command with retry_failed=true"
            )


class _Rate(ProgressColumn):
    """Samples per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def _timed(batches: Iterator[list[Answer]]) -> Iterator[list[Answer]]:
    """The same answers with their seconds, which results.json adds up, also over resumed evaluations."""
    began = time.perf_counter()
    for answers in batches:
        ended = time.perf_counter()
        share = round((ended - began) / len(answers), 4)
        yield [dataclasses.replace(answer, seconds=share) for answer in answers]
        began = time.perf_counter()


def _answer(sample: Sample, prediction: str | None, error: str | None = None) -> Answer:
    return Answer(sample.id, prediction, sample.references, error, sample.transcript, sample.group)


def _line(answer: Answer) -> str:
    return json.dumps(dataclasses.asdict(answer), ensure_ascii=False) + "\n"


def write_answers(file: Path, answers: Sequence[Answer]) -> None:
    """Write a samples.jsonl like that of a run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(map(_line, answers)), encoding="utf-8")


def read_answers(file: Path) -> list[Answer]:
    """The answers in a samples.jsonl, the last one for each sample. An incomplete last line is removed."""
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")
    whole, torn = lines[:-1], lines[-1]
    if torn:
        os.truncate(file, file.stat().st_size - len(torn))
    answers: dict[str, Answer] = {}
    for number, line in enumerate(whole, start=1):
        try:
            values = json.loads(line)
            answers[values["id"]] = Answer(**values | {"references": tuple(values["references"])})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{file}, line {number} cannot be read ({error}); remove the file") from error
    return list(answers.values())
