"""Answers restricted to labels, by the first token of each label (SALT-NLP/DiVA-Eval, classification_eval.py)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from diva.errors import UserError


class NoLabel(RuntimeError):
    """An answer that is none of the labels. The system works; only this sample has failed."""


def label_tokens(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> dict[int, str]:
    """First token id of each label -> the label.

    Raises UserError if two labels begin with the same token, because one token cannot distinguish them.
    """
    first: dict[int, str] = {}
    for label in labels:
        ids = tokenizer(label, add_special_tokens=False)["input_ids"]
        if not ids:
            raise UserError(f"the label {label!r} is empty to the tokenizer of {tokenizer.name_or_path}")
        if ids[0] in first:
            token = tokenizer.decode([ids[0]])
            raise UserError(
                f"the labels {first[ids[0]]!r} and {label!r} both begin with the token {token!r} of"
                f" {tokenizer.name_or_path}: rename one of them in task.labels"
            )
        first[ids[0]] = label
    return first


class OnlyTokens(LogitsProcessor):
    """Allows only these next tokens."""

    def __init__(self, token_ids: Sequence[int]):
        self.token_ids = list(token_ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Ids [B, L], scores [B, V] -> scores [B, V], minus infinity for every other token."""
        allowed = torch.full_like(scores, -torch.inf)
        allowed[:, self.token_ids] = scores[:, self.token_ids]
        return allowed


def which_label(said: str, labels: Sequence[str]) -> str | None:
    """The label that a text means. A text means a label that it equals, abbreviates ("H" for Happiness) or begins with
    ("Yes, it is").

    None if no label or more than one fits.
    """
    text = said.strip().lower()
    if not text:
        return None
    for fits in (
        lambda label: label == text,
        lambda label: label.startswith(text),
        lambda label: text.startswith(label) and not text[len(label)].isalnum(),
    ):
        found = [label for label in labels if fits(label.lower())]
        if found:
            return found[0] if len(found) == 1 else None
    return None
