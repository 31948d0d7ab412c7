"""Votes of people: which of two systems' answers they prefer (DiVA figure 6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diva.errors import UserError
from diva.evaluation.intervals import sign_test
from diva.evaluation.metrics import Measure, Unavailable, mean
from diva.evaluation.samples import Answer


@dataclass(frozen=True)
class WinRate:
    """Share of votes for one of two systems; `prediction` is the system that a vote is for.

    A vote for neither (null) is excluded and counted as failed. Votes are assumed to be independent. If one person
    gives many votes, the intervals are too narrow.
    """

    of: str
    name: str = "win_rate"

    def measure(self, answers: Sequence[Answer]) -> Measure:
        voted = [a.prediction for a in answers if a.prediction is not None]
        others = sorted(set(voted) - {self.of})
        if not voted:
            raise Unavailable("nobody voted for either")
        if len(others) > 1:
            raise UserError(
                f"the votes are for {', '.join(sorted(set(voted)))}: a win rate is of one of two, and name={self.of}"
                " says which"
            )
        rows = [np.nan if a.prediction is None else float(a.prediction == self.of) for a in answers]
        wins = voted.count(self.of)
        other = others[0] if others else "nobody"
        note = f"{wins} of {len(voted)} votes against {other}; sign test p = {sign_test(wins, len(voted) - wins):.2g}"
        return Measure(np.array(rows).reshape(-1, 1), mean, note, is_share=True)
