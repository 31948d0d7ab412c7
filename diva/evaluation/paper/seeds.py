"""Systems that were trained several times: means over seeds, and their intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diva.errors import UserError
from diva.evaluation.intervals import LEVEL, RESAMPLES, Difference, Interval

# Bootstrap draws that are in memory at a time.
_AT_ONCE = 50


@dataclass(frozen=True)
class Runs:
    """The seeds of one system on the n samples of a task."""

    label: str
    seeds: tuple[int, ...]  # empty for a system that has none, such as the text LLM
    scores: np.ndarray  # [S, n]; one row if there are no seeds; NaN for a failed answer
    training: Sequence[Mapping[str, Any]] = ()  # the summary.json of each seed that has one

    @property
    def mean(self) -> float:
        return float(mean_of_seeds(self.scores))

    @property
    def each_seed(self) -> list[float]:
        return [float(value) for value in np.nanmean(self.scores, axis=1)]

    @property
    def interval(self) -> Interval | None:
        return interval(self.scores.shape, lambda *drawn: mean_of_seeds(_taken(self.scores, *drawn)))

    def among(self, chosen: np.ndarray) -> "Runs":
        """The runs on the chosen samples only, bool [n]."""
        return Runs(self.label, self.seeds, self.scores[:, chosen], self.training)


def mean_of_seeds(scores: np.ndarray) -> np.ndarray:
    """[..., S, n] -> [...]: the mean over seeds of each seed's mean score.

    Failed answers are excluded. NaN if all answers of a seed have failed.
    """
    with np.errstate(invalid="ignore"):
        each = np.nansum(scores, axis=-1) / (~np.isnan(scores)).sum(axis=-1)
    return each.mean(axis=-1)


def interval(
    shape: tuple[int, ...], value: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Interval | None:
    """95% percentile bootstrap over seeds and samples; None if there are fewer than two samples, or none is answered.

    `value` gets R draws as indices into a table of `shape` [S, n]: seeds [R, S] and samples [R, n]. It returns [R].
    Every seed answers the same samples, so one draw of samples is used for all seeds. With as few as three seeds the
    interval is probably too narrow.
    """
    seeds, samples = shape
    if samples < 2:
        return None
    rng = np.random.default_rng(0)
    drawn = [
        value(rng.integers(seeds, size=(_AT_ONCE, seeds)), rng.integers(samples, size=(_AT_ONCE, samples)))
        for _ in range(RESAMPLES // _AT_ONCE)
    ]
    found = np.concatenate(drawn)
    found = found[~np.isnan(found)]  # draws with failed answers only have no value
    if not len(found):
        return None
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _taken(scores: np.ndarray, seeds: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """[S, n] at seeds [R, S] and samples [R, n] -> [R, S, n]."""
    return scores[seeds[:, :, None], samples[:, None, :]]


def difference(ours: Runs, theirs: Runs) -> Difference:
    """`ours` minus `theirs` on the same samples, seed k with seed k. A system without seeds is compared with each seed.

    A sample on which one of the two has failed is excluded. Raises UserError if they have no seed in common.
    """
    if theirs.seeds:
        common = [seed for seed in ours.seeds if seed in theirs.seeds]
        if not common:
            raise UserError(f"{ours.label} and {theirs.label} have no seed in common")
        left, right = (runs.scores[[runs.seeds.index(seed) for seed in common]] for runs in (ours, theirs))
    else:
        left, right = ours.scores, np.repeat(theirs.scores, len(ours.scores), axis=0)
    failed = np.isnan(left) | np.isnan(right)
    left, right = np.where(failed, np.nan, left), np.where(failed, np.nan, right)

    def value(seeds: np.ndarray, samples: np.ndarray) -> np.ndarray:
        return mean_of_seeds(_taken(left, seeds, samples)) - mean_of_seeds(_taken(right, seeds, samples))

    whole = float(mean_of_seeds(left) - mean_of_seeds(right))
    return Difference(whole, interval(left.shape, value), left.shape[1])
