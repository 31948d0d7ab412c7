"""Whether recorded scores belong to the samples that they are filed under, where they cannot be computed again."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from diva.evaluation.metrics import normalise, overlap
from diva.evaluation.samples import Answer

_PERMUTATIONS = 100
# In standard deviations of shuffled pairings: what is below the first is no better than chance, what is above the
# second is no accident.
_CHANCE, _NO_ACCIDENT = 2.0, 5.0
# A right file whose scores correlate 0.3 with word overlap lies 4.7 deviations above chance with so many answers, and
# so falls below _CHANCE once in 300 times; scores of qa-metrics correlate more, being made from that overlap.
_ENOUGH = 250
# Answers of either kind, scored above and below one half, that a correlation needs to say anything.
_OF_EACH = 10


def mispairing(answers: Sequence[Answer]) -> str | None:
    """What is wrong with scored answers (their `score` was given by others) in the task's order; None: nothing.

    Whoever scores answers to questions gives more to those that share words with the reference. So scores have to
    correlate with token F1 more than they do where the references are shuffled. Where that cannot be told, as in
    small files, nothing is said; references that fit the scores one line further on are told in small files too.
    """
    scores = np.array([a.score for a in answers], dtype=float)
    if min((scores >= 0.5).sum(), (scores < 0.5).sum()) < _OF_EACH:
        return None
    said = [_words(a.prediction or "") for a in answers]
    right = [[_words(reference) for reference in a.references] for a in answers]

    def correlation(of: np.ndarray) -> float:
        found = [max(overlap(s, r) for r in right[place]) for s, place in zip(said, of, strict=True)]
        return float(np.corrcoef(scores, found)[0, 1]) if np.std(found) > 0 else 0.0

    own = np.arange(len(answers))
    rng = np.random.default_rng(0)
    shuffled = np.array([correlation(rng.permutation(own)) for _ in range(_PERMUTATIONS)])
    if shuffled.std() == 0:  # no answer has a word of any reference
        return None

    def above_chance(of: np.ndarray) -> float:
        return (correlation(of) - shuffled.mean()) / shuffled.std()

    if above_chance(own) >= _CHANCE:
        return None
    for step, where in ((1, "before"), (-1, "after")):
        if above_chance(np.roll(own, step)) >= _NO_ACCIDENT:
            return f"its scores fit the references of the sample {where} each: it is off by one line"
    if len(answers) >= _ENOUGH:
        return "its scores fit the task's references no better than shuffled ones: its ids are shuffled or shifted"
    return None


def _words(text: str) -> Counter[str]:
    return Counter(normalise(text).split())
