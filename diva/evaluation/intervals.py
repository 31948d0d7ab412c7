"""How sure a figure is: bootstrap, Wilson, sign test."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from diva.evaluation.metrics import Measure, mean

RESAMPLES = 1000
LEVEL = 0.95
Interval = tuple[float, float]


def bootstrap(measure: Measure, seed: int = 0) -> Interval | None:
    """95% percentile interval of a metric over resampled answers; None where there are fewer than two."""
    return _bootstrap(len(measure.rows), lambda chosen: measure.value(measure.rows[chosen]), seed)


@dataclass(frozen=True)
class Difference:
    """One system's metric minus another's on the same samples."""

    value: float
    interval: Interval | None  # 95%, paired bootstrap
    n: int


def paired_difference(ours: Measure, theirs: Measure, seed: int = 0) -> Difference:
    """`ours` minus `theirs`, whose rows are of the same n samples in the same order: both are resampled alike."""
    assert len(ours.rows) == len(theirs.rows), "rows of different samples"

    def difference(chosen: np.ndarray) -> float:
        return ours.value(ours.rows[chosen]) - theirs.value(theirs.rows[chosen])

    size = len(ours.rows)
    return Difference(difference(np.arange(size)), _bootstrap(size, difference, seed), size)


def _bootstrap(size: int, value: Callable[[np.ndarray], float], seed: int) -> Interval | None:
    if size < 2:
        return None
    found = stats.bootstrap(
        (np.arange(size),),
        value,
        vectorized=False,
        n_resamples=RESAMPLES,
        batch=100,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    low, high = float(found.low), float(found.high)
    return None if math.isnan(low) else (low, high)


def wilson(successes: int, n: int) -> Interval:
    """95% Wilson interval of a share of n."""
    found = stats.binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class WinRate:
    """How often one system was preferred to another."""

    value: float
    n: int
    wilson: Interval  # 95%
    bootstrap: Interval | None  # 95%
    sign_test: float  # two-sided p of votes that are even at heart


def win_rate(wins: int, losses: int, seed: int = 0) -> WinRate:
    """Win rate of preference votes (DiVA figure 6). Raises ValueError where nobody voted."""
    n = wins + losses
    votes = np.repeat([1.0, 0.0], [wins, losses]).reshape(-1, 1)
    interval = bootstrap(Measure(votes, mean), seed)
    return WinRate(wins / n, n, wilson(wins, n), interval, float(stats.binomtest(wins, n).pvalue))
