"""Answers from a file: JSONL, or the lines that the authors of DiVA published (SALT-NLP/DiVA-Eval)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diva.data.manifest import Skip
from diva.errors import UserError
from diva.evaluation.labels import which_label
from diva.evaluation.metrics import Metric, Pedants
from diva.evaluation.pairing import mispairing
from diva.evaluation.samples import Answer, Sample

_SEPARATOR = "[SEP_DIAL]"
_FAILED = "ERROR IN PROCESSING"
# Recomputed scores may differ from recorded ones by this much of the scale, and in this share of the lines: tokenizers
# and libraries change. Lines that belong to other samples differ in far more.
_TOLERANCE, _MAY_DIFFER = 0.02, 0.1
MALFORMED = "malformed line"


@dataclass(frozen=True)
class Line:
    """One line of a predictions file."""

    number: int
    id: str
    prediction: str | None  # None: it failed
    references: tuple[str, ...] | None = None
    score: float | None = None


def read_predictions(file: Path) -> tuple[list[Line], list[Skip]]:
    """The lines of a file in either format, and the malformed lines with their numbers.

    Raises UserError for a missing file, for a file with more malformed lines than good ones, and for a repeated id.
    """
    if not file.is_file():
        raise UserError(f"there is no predictions file {file}")
    lines, skipped = [], []
    for number, text in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not text.strip():
            continue
        try:
            lines.append(_authors(number, text) if _SEPARATOR in text else _json(number, text))
        except (ValueError, KeyError, TypeError) as error:
            skipped.append(Skip(f"line {number}", MALFORMED, str(error)))
    if len(skipped) > len(lines):
        raise UserError(
            f"{file}: {len(skipped)} of {len(skipped) + len(lines)} lines, such as {skipped[0].clip_id}, are neither"
            f' JSON with id and prediction nor id{_SEPARATOR}"""prediction"""{_SEPARATOR}score: {skipped[0].detail}'
        )
    seen: dict[str, int] = {}
    for line in lines:
        if line.id in seen:
            raise UserError(f"{file} has the id {line.id!r} in lines {seen[line.id]} and {line.number}")
        seen[line.id] = line.number
    return lines, skipped


def _authors(number: int, text: str) -> Line:
    name, said, score = text.split(_SEPARATOR)
    said = said.strip().removeprefix('"""').removesuffix('"""').replace("[NEW_LINE]", "\n")
    failed = said.strip() == _FAILED
    recorded = None if failed or score.strip() == "NA" else float(score)
    return Line(number, name.strip(), None if failed else said.strip(), score=recorded)


def _json(number: int, text: str) -> Line:
    values = json.loads(text)
    said, references, score = values["prediction"], values.get("reference"), values.get("score")
    if said is not None and not isinstance(said, str):
        raise ValueError("prediction is no text")
    if isinstance(references, str):
        references = [references]
    return Line(
        number,
        str(values["id"]),
        said,
        None if references is None else tuple(map(str, references)),
        None if score is None else float(score),
    )


def match(lines: Sequence[Line], samples: Sequence[Sample], file: Path, malformed: int = 0) -> list[Answer]:
    """An answer for every sample of the task, in the task's order. As many may be missing as there are malformed lines.

    Raises UserError if the file's ids are not exactly the task's, or a reference in the file is not the task's.
    """
    by_id = {line.id: line for line in lines}
    ids = {sample.id for sample in samples}
    for problem, names, allowed in (
        ("lacks samples of the task", ids - by_id.keys(), malformed),
        ("has ids that the task does not", by_id.keys() - ids, 0),
    ):
        if len(names) > allowed:
            few = ", ".join(sorted(names)[:3])
            raise UserError(f"{file} {problem}: {len(names)} of them, such as {few}; is it of another split?")
    answers = []
    for sample in samples:
        if sample.id not in by_id:
            continue
        line = by_id[sample.id]
        if line.references is not None and not set(line.references) & set(sample.references):
            raise UserError(
                f"{file}, line {line.number}: the reference of {sample.id} is {line.references[0]!r}, in the task it"
                f" is {sample.references[0]!r}: its ids are shuffled or shifted, or it is of another split"
            )
        answers.append(
            Answer(
                sample.id,
                line.prediction,
                sample.references,
                None if line.prediction is not None else _FAILED.lower(),
                sample.transcript,
                sample.group,
                line.score,
            )
        )
    return answers


def by_themselves(
    lines: Sequence[Line], labels: Mapping[str, str] | None, file: Path, judged: bool = True
) -> list[Answer]:
    """Answers with the file's own references, or with references that follow from its scores.

    With two labels, a score of 0 or 1 says which label is right. Raises UserError if neither is there, unless answers
    are not `judged` right or wrong.
    """
    answers = []
    for line in lines:
        references = line.references or _from_score(line, labels)
        if judged and not references and line.score is None and line.prediction is not None:
            raise UserError(
                f"{file}, line {line.number} says neither what is right nor how it was scored; score it against the"
                " task's data with references=task"
            )
        error = None if line.prediction is not None else _FAILED.lower()
        answers.append(Answer(line.id, line.prediction, references, error, score=line.score))
    return answers


def _from_score(line: Line, labels: Mapping[str, str] | None) -> tuple[str, ...]:
    if labels is None or len(labels) != 2 or line.prediction is None or line.score not in (0.0, 1.0):
        return ()
    said = which_label(line.prediction, list(labels))
    if said is None:
        return ()
    other = next(label for label in labels if label != said)
    return (labels[said if line.score else other],)


def check_scores(answers: Sequence[Answer], metrics: Sequence[Metric], file: Path) -> None:
    """Compare recorded scores with those of the first metric that scores each answer.

    Scores of PEDANTS are compared with word overlap. Raises UserError if scores
    differ, as in a file whose ids are shuffled or shifted by one.
    """
    scored = [a for a in answers if a.score is not None and a.prediction is not None]
    if any(isinstance(metric, Pedants) for metric in metrics):
        problem = mispairing(scored)
        if problem is not None:
            raise UserError(f"{file}: {problem}; or it is of another split")
    bare = [Answer(a.id, a.prediction, a.references, transcript=a.transcript) for a in scored]
    checkable = [metric for metric in metrics if metric.name in ("accuracy", "sentence_bleu")]
    if not scored or not checkable:
        return
    ours = checkable[0].measure(bare).rows[:, 0]
    scale = 100.0 if checkable[0].name == "sentence_bleu" else 1.0
    differ = [
        a for a, score in zip(scored, ours, strict=True) if abs(score - (a.score or 0.0)) > _TOLERANCE * scale
    ]
    allowed = 0.0 if scale == 1.0 else _MAY_DIFFER
    if len(differ) > allowed * len(scored):
        raise UserError(
            f"{file} records other scores than the task's data give for {len(differ)} of {len(scored)} samples, such"
            f" as {differ[0].id}: its ids are shuffled or shifted, task.labels is wrong, or it is of another split"
        )
