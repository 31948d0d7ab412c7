"""Confidence of a metric: bootstrap, Wilson, sign test."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from diva.evaluation.metrics import Measure

RESAMPLES = 1000
LEVEL = 0.95
Interval = tuple[float, float]


def bootstrap(measure: Measure, seed: int = 0) -> Interval | None:
    """95% percentile interval of a metric over resampled answers; None if there are fewer than two answers."""
    return _bootstrap(len(measure.rows), lambda chosen: measure.value(measure.rows[chosen]), seed)


@dataclass(frozen=True)
class Difference:
    """One system's metric minus another's on the same samples."""

    value: float  # NaN if no sample has been answered by both
    interval: Interval | None  # 95%, paired bootstrap
    n: int  # samples that both have answered


def paired_difference(ours: Measure, theirs: Measure, seed: int = 0) -> Difference:
    """`ours` minus `theirs`. Their rows are of the same samples in the same order, and both are resampled together.

    A sample without a value in one of them is excluded from both.
    """
    assert len(ours.rows) == len(theirs.rows), "rows of different samples"
    kept = ~(np.isnan(ours.rows.astype(float)).any(axis=1) | np.isnan(theirs.rows.astype(float)).any(axis=1))
    left, right, size = ours.rows[kept], theirs.rows[kept], int(kept.sum())

    def difference(chosen: np.ndarray) -> float:
        return ours.value(left[chosen]) - theirs.value(right[chosen])

    if not size:
        return Difference(float("nan"), None, 0)
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


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p value; the null hypothesis is that both are equally likely. Raises ValueError without votes."""
    if wins + losses == 0:
        raise ValueError("no votes to test")
    return float(stats.binomtest(wins, wins + losses).pvalue)
