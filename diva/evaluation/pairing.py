"""Checks whether recorded scores belong to their samples, for scores that cannot be computed again."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from diva.evaluation.metrics import normalise, overlap
from diva.evaluation.samples import Answer

_PERMUTATIONS = 100
# In standard deviations of shuffled pairings. Below the first, a pairing is no better than chance. Above the second, it
# is not by chance.
_CHANCE, _NO_ACCIDENT = 2.0, 5.0
# Number of answers that are enough. With 250, a right file whose scores have a correlation of 0.3 with word overlap
# lies 4.7 deviations above chance. So it falls below _CHANCE once in 300 times. Scores of qa-metrics have a higher
# correlation, because they are computed from that overlap.
_ENOUGH = 250
# A correlation needs at least this number of answers with scores above one half, and of answers below.
_OF_EACH = 10


def mispairing(answers: Sequence[Answer]) -> str | None:
    """A message if the recorded scores do not fit the references, else None. Answers are in the task's order.

    Any good score of an answer is higher if the answer shares words with the reference. So scores must correlate with
    token F1 more than they do with shuffled references. Small files are not refused for that, because the difference is
    not significant there. But scores that fit the references of the line before or after are found in small files too.
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
