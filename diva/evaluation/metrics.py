"""Metrics as pure functions of answers. Every one gives a `Measure`, so intervals are made in one place.

Failed answers: left out of means (question answering, BLEU, language), counted as a given class or as wrong in F1
and accuracy. So did the authors (SALT-NLP/DiVA-Eval, qa_eval.py, translation_eval.py, f1_scores.py).
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

    rows: np.ndarray  # [n, k]: all that `value` needs of each answer; NaN for one that is left out
    value: Callable[[np.ndarray], float]  # rows [m, k] -> the metric; NaN where nothing is left
    note: str = ""  # what the number rests on, where that is not plain
    is_share: bool = False  # of answers that are right or wrong, 1 or 0


class Unavailable(UserError):
    """A metric that cannot be had here; the message says why. Results name it, and go on without."""


class Metric(Protocol):
    @property
    def name(self) -> str: ...

    def measure(self, answers: Sequence[Answer]) -> Measure:
        """Raises Unavailable, and UserError for answers that do not fit the metric."""
        ...


def mean(rows: np.ndarray) -> float:
    """Mean of [m, 1] without the NaN; NaN where there is nothing else."""
    kept = rows[~np.isnan(rows)]
    return float(kept.mean()) if len(kept) else float("nan")


def per_answer(
    answers: Sequence[Answer], score: Callable[[str, tuple[str, ...]], float], is_share: bool = False
) -> Measure:
    """The mean of a score of each answer against its references; failed answers are left out.

    Raises Unavailable where there are no references.
    """
    if _only_recorded(answers):
        raise Unavailable(WITHOUT_REFERENCES)
    rows = [float("nan") if a.prediction is None else score(a.prediction, _references(a)) for a in answers]
    return Measure(np.array(rows, dtype=float).reshape(-1, 1), mean, is_share=is_share)


def recorded(answers: Sequence[Answer], failed: float = float("nan"), is_share: bool = False) -> Measure:
    """The mean of the scores that came with the predictions; `failed` is that of an answer that failed."""
    rows = np.array([failed if a.prediction is None else a.score for a in answers], dtype=float)
    return Measure(rows.reshape(-1, 1), mean, RECORDED, is_share)


def _only_recorded(answers: Sequence[Answer]) -> bool:
    """Whether the predictions came with scores and without what they were scored against."""
    answered = [a for a in answers if a.prediction is not None]
    return bool(answered) and all(a.score is not None and not a.references for a in answered)


def _references(answer: Answer) -> tuple[str, ...]:
    if not answer.references:
        raise UserError(f"sample {answer.id} has no reference to be scored against")
    return answer.references


# ---- short answers to questions


def words(text: str) -> list[str]:
    """Lower-case words and numbers; twenty-two and don't are one word each."""
    return re.findall(r"\w+(?:[-'’.,]\w+)*", unicodedata.normalize("NFKC", text).lower())


def contains_answer(prediction: str, references: Sequence[str]) -> float:
    """1.0 where a reference is in the prediction as a run of whole words.

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

    An answer that is nothing but an article ("A") stays what it is.
    """
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split()) or " ".join(plain.split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the normalised prediction is one of the normalised references (SQuAD)."""
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
    """Share of answers with a reference in them as whole words."""

    name: str = "contains_answer"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        return per_answer(answers, contains_answer, is_share=True)


@dataclass(frozen=True)
class ExactMatch:
    """Share of answers that are a reference, normalised as for SQuAD."""

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
    """PEDANTS (Li et al. 2024): the mean of what the qa-metrics package says of each answer, which comes as `score`.

    The package pins what this one cannot run on and unpickles what it fetches: experiments/fig2_qa/pedants.py scores
    in an environment of its own.
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
    """[n, 2] of (what is right, what was said) as places in `labels`.

    -1 is what was said by a failed answer without a class; NaN what is right where that is not known, which only
    a failed answer may have. `labels` is what a model says -> what the data call it; `failed_as` is one of the
    latter. Raises UserError for a reference or a prediction that is none of them.
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
    """The place of what is right, NaN for a failed answer of which that is not known."""
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
    """A note on failed answers of which it is not known what is right."""
    unknown = int(np.isnan(rows[:, 0]).sum())
    return f"what is right is not known of {unknown} failed answers, which {counts}" if unknown else ""


def _f1(rows: np.ndarray, **options: Any) -> float:
    """F1 of rows [m, 2] of (right, said), without those that hold a NaN."""
    kept = rows[~np.isnan(rows).any(axis=1)].astype(int)
    if not len(kept):
        return float("nan")
    return float(f1_score(kept[:, 0], kept[:, 1], zero_division=0, **options))


@dataclass(frozen=True)
class Accuracy:
    """Share of right labels; a failed answer is wrong unless it counts as a class and that is known to be right."""

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
    """F1 of each class, weighted by how often it is right; a failed answer counts as `failed_as`."""

    labels: dict[str, str]
    failed_as: str | None = None
    name: str = "weighted_f1"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        if _only_recorded(answers):
            raise Unavailable(WITHOUT_REFERENCES)
        rows = label_rows(answers, self.labels, self.failed_as)
        return Measure(rows, lambda r: _f1(r, average="weighted"), _of_unknown(rows, "are left out"))


@dataclass(frozen=True)
class F1:
    """F1 of one class, named as models say it; a failed answer is not of that class."""

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
        return Measure(positive, _f1, _of_unknown(rows, "are left out"))


# ---- translations


@lru_cache(maxsize=16)
def _bleu(language: str) -> BLEU:
    return BLEU(trg_lang=language)


def sentence_bleu(prediction: str, references: Sequence[str], language: str) -> BLEUScore:
    """BLEU of one sentence as the authors computed it (translation_eval.py): corpus BLEU of a corpus of one.

    0 to 100, the tokenizer of the target language (Japanese MeCab, Chinese characters, 13a), exponential smoothing.
    """
    return _bleu(language.split("-")[0]).corpus_score([prediction], [[r] for r in references])


@dataclass(frozen=True)
class SentenceBleu:
    """Mean over the answers of `sentence_bleu`."""

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
    """Rows [m, 10] of matches and n-grams for n = 1 to 4, length said, length wanted -> BLEU, 0 to 100."""
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
