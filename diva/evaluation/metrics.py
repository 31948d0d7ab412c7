"""Metrics as pure functions of answers. Every metric gives a `Measure`, so intervals are computed in one place.

Failed answers are not part of means (question answering, BLEU, language). In F1 and accuracy they count as a given
class or as wrong. This is what the authors did (SALT-NLP/DiVA-Eval, qa_eval.py, translation_eval.py, f1_scores.py).
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import py3langid
from sacrebleu.metrics.bleu import BLEU, BLEUScore
from sklearn.metrics import f1_score

from diva.errors import UserError
from diva.evaluation.labels import which_label
from diva.evaluation.samples import Answer

RECORDED = "scores as recorded beside the answers"
WITHOUT_REFERENCES = "the predictions file holds scores and no references"


@dataclass(frozen=True)
class Measure:
    """A metric of n answers, in a form that can be resampled."""

    rows: np.ndarray  # [n, k]: all that `value` needs of each answer; NaN for an excluded answer
    value: Callable[[np.ndarray], float]  # rows [m, k] -> the metric; NaN if all rows are excluded
    note: str = ""  # how the number was made, if its name does not say it
    is_share: bool = False  # of answers that are right or wrong, 1 or 0


class Unavailable(UserError):
    """A metric that cannot be computed here; the message says why. Results name it, and the others are computed."""


class Metric(Protocol):
    @property
    def name(self) -> str: ...

    def measure(self, answers: Sequence[Answer]) -> Measure:
        """Raises Unavailable, and UserError for answers that do not fit the metric."""
        ...


def mean(rows: np.ndarray) -> float:
    """Mean of [m, 1] without NaN values; NaN if there are no others."""
    kept = rows[~np.isnan(rows)]
    return float(kept.mean()) if len(kept) else float("nan")


def per_answer(
    answers: Sequence[Answer], score: Callable[[str, tuple[str, ...]], float], is_share: bool = False
) -> Measure:
    """Mean over the answers of a score against their references. Failed answers are excluded.

    Raises Unavailable if there are no references.
    """
    if _only_recorded(answers):
        raise Unavailable(WITHOUT_REFERENCES)
    rows = [float("nan") if a.prediction is None else score(a.prediction, _references(a)) for a in answers]
    return Measure(np.array(rows, dtype=float).reshape(-1, 1), mean, is_share=is_share)


def recorded(answers: Sequence[Answer], failed: float = float("nan"), is_share: bool = False) -> Measure:
    """Mean of the scores that came with the predictions; `failed` is the score of a failed answer."""
    rows = np.array([failed if a.prediction is None else a.score for a in answers], dtype=float)
    return Measure(rows.reshape(-1, 1), mean, RECORDED, is_share)


def _only_recorded(answers: Sequence[Answer]) -> bool:
    """Whether the predictions came with scores and without references."""
    answered = [a for a in answers if a.prediction is not None]
    return bool(answered) and all(a.score is not None and not a.references for a in answered)


def _references(answer: Answer) -> tuple[str, ...]:
    if not answer.references:
        raise UserError(f"sample {answer.id} has no reference to be scored against")
    return answer.references


# ---- short answers to questions


def words(text: str) -> list[str]:
    """Words and numbers in lower case; "twenty-two" and "don't" are one word each."""
    return re.findall(r"\w+(?:[-'’.,]\w+)*", unicodedata.normalize("NFKC", text).lower())


def contains_answer(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the prediction contains a reference as whole words in a row.

    Lenient: a sentence that names the right answer and then denies it counts as right.
    """
    said = words(prediction)
    for reference in references:
        wanted = words(reference)
        if wanted and any(
            said[start : start + len(wanted)] == wanted for start in range(len(said) - len(wanted) + 1)
        ):
            return 1.0
    return 0.0


def normalise(text: str) -> str:
    """As in SQuAD's evaluation: lower case, without punctuation and articles, single spaces.

    An answer that is only an article ("A") is not changed.
    """
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split()) or " ".join(plain.split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the normalised prediction is one of the normalised references (SQuAD)."""
    return float(any(normalise(prediction) == normalise(reference) for reference in references))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over normalised words, for the best reference (SQuAD)."""
    said = Counter(normalise(prediction).split())
    return max(overlap(said, Counter(normalise(r).split())) for r in references)


def overlap(said: Counter[str], wanted: Counter[str]) -> float:
    """F1 of two bags of words."""
    if not said or not wanted:
        return float(said == wanted)
    return 2 * (said & wanted).total() / (said.total() + wanted.total())


@dataclass(frozen=True)
class ContainsAnswer:
    """Share of answers that contain a reference as whole words."""

    name: str = "contains_answer"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        return per_answer(answers, contains_answer, is_share=True)


@dataclass(frozen=True)
class ExactMatch:
    """Share of answers that equal a reference, normalised as for SQuAD."""

    name: str = "exact_match"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        return per_answer(answers, exact_match, is_share=True)


@dataclass(frozen=True)
class TokenF1:
    """Mean word overlap with the best reference, normalised as for SQuAD."""

    name: str = "token_f1"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        return per_answer(answers, token_f1)


@dataclass(frozen=True)
class Pedants:
    """PEDANTS (Li et al. 2024): mean of the scores that the package qa-metrics gives the answers (`Answer.score`).

    qa-metrics pins versions that diva cannot run with, and it unpickles a file that it downloads. So
    experiments/fig2_qa/pedants.py computes the scores in an environment of its own.
    """

    name: str = "pedants"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        answered = [a for a in answers if a.prediction is not None]
        without = sum(a.score is None for a in answered)
        if without:
            raise Unavailable(
                f"{without} of {len(answered)} answers are not scored by qa-metrics yet: experiments/fig2_qa/README.md"
            )
        return recorded(answers)


# ---- labels


def label_rows(answers: Sequence[Answer], labels: dict[str, str], failed_as: str | None) -> np.ndarray:
    """[n, 2] of (reference, prediction) as indices into `labels`.

    labels: the model's word for a class -> the data's name of the class.
    failed_as: the data's name of the class that failed answers count as. Without it their prediction is -1.

    The reference is NaN if it is not known, which is allowed for failed answers only. Raises UserError for a reference
    or a prediction that is none of the labels.
    """
    classes = list(labels.values())
    said = list(labels)
    rows = np.empty((len(answers), 2))
    for row, answer in enumerate(answers):
        if answer.prediction is None:
            heard = -1 if failed_as is None else classes.index(failed_as)
        else:
            label = which_label(answer.prediction, said)
            if label is None:
                raise UserError(
                    f"the prediction {answer.prediction!r} for sample {answer.id} is none of the labels"
                    f" {', '.join(said)}; mend task.labels or the predictions"
                )
            heard = said.index(label)
        rows[row] = _right(answer, classes), heard
    return rows


def _right(answer: Answer, classes: Sequence[str]) -> float:
    """Index of the reference's class; NaN for a failed answer whose reference is not known."""
    if answer.prediction is None and not answer.references:
        return float("nan")
    wanted = _references(answer)[0]
    if wanted not in classes:
        raise UserError(
            f"sample {answer.id} is {wanted!r} in the data, which is not among the task's labels"
            f" ({', '.join(classes)}); mend task.labels"
        )
    return classes.index(wanted)


def _of_unknown(rows: np.ndarray, counts: str) -> str:
    """A note on failed answers whose reference is not known."""
    unknown = int(np.isnan(rows[:, 0]).sum())
    return f"what is right is not known of {unknown} failed answers, which {counts}" if unknown else ""


def _f1(rows: np.ndarray, **options: Any) -> float:
    """F1 of rows [m, 2] of (reference, prediction), without rows with a NaN."""
    kept = rows[~np.isnan(rows).any(axis=1)].astype(int)
    if not len(kept):
        return float("nan")
    return float(f1_score(kept[:, 0], kept[:, 1], zero_division=0, **options))


@dataclass(frozen=True)
class Accuracy:
    """Share of right labels. A failed answer is wrong, unless it counts as a class that is known to be right."""

    labels: dict[str, str]
    failed_as: str | None = None
    name: str = "accuracy"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        if _only_recorded(answers):
            return recorded(answers, failed=0.0, is_share=True)
        rows = label_rows(answers, self.labels, self.failed_as)
        right = (rows[:, :1] == rows[:, 1:]).astype(float)
        return Measure(right, mean, _of_unknown(rows, "count as wrong"), is_share=True)


@dataclass(frozen=True)
class WeightedF1:
    """F1 of each class, weighted by the number of its references. A failed answer counts as `failed_as`."""

    labels: dict[str, str]
    failed_as: str | None = None
    name: str = "weighted_f1"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        if _only_recorded(answers):
            raise Unavailable(WITHOUT_REFERENCES)
        rows = label_rows(answers, self.labels, self.failed_as)
        return Measure(rows, lambda r: _f1(r, average="weighted"), _of_unknown(rows, "are not scored"))


@dataclass(frozen=True)
class F1:
    """F1 of one class, given by the model's word for it. A failed answer is not of that class."""

    labels: dict[str, str]
    positive: str
    failed_as: str | None = None

    @property
    def name(self) -> str:
        return f"f1_{self.positive.lower()}"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        if _only_recorded(answers):
            raise Unavailable(WITHOUT_REFERENCES)
        rows = label_rows(answers, self.labels, self.failed_as)
        positive = np.where(np.isnan(rows), np.nan, rows == list(self.labels).index(self.positive))
        return Measure(positive, _f1, _of_unknown(rows, "are not scored"))


# ---- translations


@lru_cache(maxsize=16)
def _bleu(language: str) -> BLEU:
    return BLEU(trg_lang=language)


def sentence_bleu(prediction: str, references: Sequence[str], language: str) -> BLEUScore:
    """BLEU of one sentence, 0 to 100, as the authors computed it (translation_eval.py): corpus BLEU of one sentence.

    Exponential smoothing; the target language's tokenizer: MeCab for Japanese, characters for Chinese, else 13a.
    """
    return _bleu(language.split("-")[0]).corpus_score([prediction], [[r] for r in references])


@dataclass(frozen=True)
class SentenceBleu:
    """Mean of `sentence_bleu` over the answers."""

    language: str
    name: str = "sentence_bleu"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        if _only_recorded(answers):
            return recorded(answers)
        return per_answer(answers, lambda said, right: sentence_bleu(said, right, self.language).score)


@dataclass(frozen=True)
class CorpusBleu:
    """BLEU over all answers together, 0 to 100."""

    language: str
    name: str = "corpus_bleu"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        if _only_recorded(answers):
            raise Unavailable(WITHOUT_REFERENCES)
        rows = np.full((len(answers), 10), np.nan)
        for row, a in enumerate(answers):
            if a.prediction is not None:
                score = sentence_bleu(a.prediction, _references(a), self.language)
                rows[row] = [*score.counts, *score.totals, score.sys_len, score.ref_len]
        return Measure(rows, corpus_bleu)


def corpus_bleu(rows: np.ndarray) -> float:
    """Rows [m, 10] -> BLEU, 0 to 100.

    A row has 4 counts of matches and 4 of n-grams (n = 1 to 4), the prediction's length and the reference's length.
    """
    kept = rows[~np.isnan(rows[:, 0])]
    if not len(kept):
        return float("nan")
    total = kept.sum(axis=0).astype(int).tolist()
    return BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9], smooth_method="exp").score


def language_of(text: str) -> str:
    """The language of a text as a two-letter code, by py3langid (97 languages, offline)."""
    return str(py3langid.classify(text)[0])


@dataclass(frozen=True)
class TargetLanguage:
    """Share of answers in the language that was asked for (DiVA table 2)."""

    language: str
    name: str = "target_language"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        wanted = self.language.split("-")[0]
        rows = [
            float("nan") if a.prediction is None else float(language_of(a.prediction) == wanted)
            for a in answers
        ]
        return Measure(np.array(rows).reshape(-1, 1), mean, "language identified by py3langid", is_share=True)
