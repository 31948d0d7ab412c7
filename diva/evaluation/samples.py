"""Samples of a task, and answers of a system."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Layout = Literal["question_last", "authors"]


@dataclass(frozen=True)
class Instruction:
    """The text that a system gets with the speech."""

    system: str | None = None  # system message; None: the model's own
    question: str | None = None  # text in the user's turn, on a line of its own after the speech
    layout: Layout = "question_last"

    def to_diva(self) -> "Instruction":
        """The instruction for a DiVA and its LLM.

        In the authors' layout the question is the end of the system message, before the speech (DiVA-Eval,
        classification_eval.py and models/via.py). Other audio LLMs get it after the speech.
        """
        if self.layout != "authors" or self.question is None:
            return self
        return Instruction("\n".join(filter(None, (self.system, self.question))))


@dataclass(frozen=True)
class Sample:
    """One clip of a task."""

    id: str
    row: int  # in the task's manifest
    references: tuple[str, ...]  # right answers
    transcript: str | None  # None if the data have none
    group: str | None = None  # the part of the task that it belongs to, such as its voice
    waveform: np.ndarray | None = None  # [S], 16 kHz, float32; only while a system answers it


@dataclass(frozen=True)
class Answer:
    """The answer to one sample; a line of samples.jsonl."""

    id: str
    prediction: str | None  # None if it failed
    references: tuple[str, ...] = ()
    error: str | None = None  # why it failed
    transcript: str | None = None
    group: str | None = None
    score: float | None = None  # recorded in the file that the prediction is from
    seconds: float | None = field(default=None, compare=False)  # its share of its batch's time
