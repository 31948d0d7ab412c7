"""What a task asks, and what a system answered."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Layout = Literal["question_last", "authors"]


@dataclass(frozen=True)
class Instruction:
    """What a system is told besides the speech."""

    system: str | None = None  # system message; None: the model's own
    question: str | None = None  # text in the user's turn, on a line of its own after the speech
    layout: Layout = "question_last"

    def to_diva(self) -> "Instruction":
        """As a DiVA and its LLM are told: in the authors' layout the question ends the system message, before the
        speech (DiVA-Eval, classification_eval.py and models/via.py). Their other audio LLMs get it after the speech.
        """
        if self.layout != "authors" or self.question is None:
            return self
        return Instruction("\n".join(filter(None, (self.system, self.question))))


@dataclass(frozen=True)
class Sample:
    """One clip of a task."""

    id: str
    row: int  # in the task's manifest
    references: tuple[str, ...]  # what counts as right
    transcript: str | None  # what is said; None where the data do not tell
    group: str | None = None  # the part of the task that it belongs to, such as its voice
    waveform: np.ndarray | None = None  # [S], 16 kHz, float32; there while a system listens


@dataclass(frozen=True)
class Answer:
    """One sample's answer, as it is scored; a line of samples.jsonl."""

    id: str
    prediction: str | None  # None where it failed
    references: tuple[str, ...] = ()
    error: str | None = None  # why it failed
    transcript: str | None = None
    group: str | None = None
    score: float | None = None  # as recorded beside a prediction that someone else made
    seconds: float | None = field(default=None, compare=False)  # its share of the time that its batch took
