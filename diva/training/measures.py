"""The names of the metrics of validation, such as `val/kl`, and for which of them lower is better."""

MEASURES = ("alignment_accuracy", "first_token_agreement", "kl")
# Further metrics over all positions of the answers, if validation compares answers.
ANSWER_MEASURES = ("answer_agreement", "answer_kl")
# For the greedy answers of student and teacher: the number of equal first tokens, and whether all tokens are equal.
SHARED_MEASURES = ("shared_tokens", "same_answer")


def measures(answer_tokens: int) -> tuple[str, ...]:
    """The metrics that validation logs if it compares answers of `answer_tokens` tokens."""
    return MEASURES + (ANSWER_MEASURES + SHARED_MEASURES if answer_tokens else ())


def lower_is_better(metric: str) -> bool:
    """Whether lower is better: true for divergences. For all other metrics higher is better."""
    return metric.endswith("kl")
