"""The names of what validation measures for each set of clips (`val/kl`), and which of them are better when lower."""

MEASURES = ("alignment_accuracy", "first_token_agreement", "kl")
# Where validation compares answers, too, over all their positions.
ANSWER_MEASURES = ("answer_agreement", "answer_kl")
# Of greedy answers: tokens that both begin with in common, and whether all are equal.
SHARED_MEASURES = ("shared_tokens", "same_answer")


def measures(answer_tokens: int) -> tuple[str, ...]:
    """What validation logs where it compares answers of so many tokens."""
    return MEASURES + (ANSWER_MEASURES + SHARED_MEASURES if answer_tokens else ())


def lower_is_better(metric: str) -> bool:
    """Divergences are better the lower they are, all else the higher."""
    return metric.endswith("kl")
