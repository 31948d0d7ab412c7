"""Results as an evaluation leaves them, written with the functions that write real ones."""

import json
from collections.abc import Sequence
from pathlib import Path

from diva.config import check_overrides, make
from diva.evaluation.evaluate import evaluate
from diva.evaluation.results import scored, write_results
from diva.evaluation.runner import SAMPLES, write_answers
from diva.evaluation.samples import Answer

METRICS = [{"_target_": "diva.evaluation.metrics.ContainsAnswer"}]
VOICES = ("slt", "rms", "kal16", "awb")


def answers(right: Sequence[bool | None]) -> list[Answer]:
    """An answer each, right or wrong or failed (None), the voices in turn."""
    return [
        Answer(
            f"clip{i}",
            None if good is None else "It is Paris." if good else "It is Rome.",
            ("Paris",),
            "RuntimeError: too long" if good is None else None,
            f"question {i}",
            VOICES[i % len(VOICES)],
        )
        for i, good in enumerate(right)
    ]


def write_result(
    folder: Path,
    right: Sequence[bool | None],
    role: str = "system",
    system: str = "diva",
    task: str = "spoken_mini_by_voice",
    metrics: Sequence[dict] = METRICS,
    of: Sequence[Answer] | None = None,
    **changes: object,
) -> Path:
    """results.json and samples.jsonl in a folder; `of` are answers in place of those of `right`."""
    given = answers(right) if of is None else of
    values = {
        "task": task, "version": 1, **scored(given, [make(metric) for metric in metrics]), "role": role,
        "system": system, "seconds": 1.0, "task_hash": "asked", "data_hash": "data",
        "config": {"task": {"metrics": list(metrics)}},
    }  # fmt: skip
    write_results(folder, values | changes)
    write_answers(folder / SAMPLES, given)
    return folder


def write_summary(folder: Path, agreement: float, kl: float, **more: float) -> None:
    """The training metrics of a run, as train_summary.json."""
    values = {
        "val/first_token_agreement": agreement,
        "val/kl": kl,
        "val/alignment_accuracy": 0.9,
        "seconds": 600.0,
    }
    (folder / "train_summary.json").write_text(json.dumps(values | more))


def in_process(overrides: list[str], choice: str) -> list[Path]:
    """diva.evaluate as the command does it, without its start."""
    return evaluate(check_overrides("evaluate", overrides), choice)
