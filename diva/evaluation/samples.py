"""What a task asks, and what a system answered."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Instruction:
    """What a system is told besides the speech."""

    system: str | None = None  # system message; None: the model's own
    question: str | None = None  # text in the user's turn, on a line of its own after the speech


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
