"""The distinct transcripts of a split, as the teacher reads them, and the cache keys of what is computed from them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from diva.data.batch import transcript_tokens
from diva.data.manifest import Manifest
from diva.models.lora import frozen_weights

_FORMAT = "3"


@dataclass(frozen=True)
class Transcripts:
    """Token ids of each distinct text that the teacher reads in a split. Their order depends on the texts only."""

    distinct: list[tuple[int, ...]]
    numbers: dict[str, int]  # clip id -> index into `distinct`

    @classmethod
    def of(cls, manifest: Manifest, tokenizer: PreTrainedTokenizerBase) -> "Transcripts":
        read = [tuple(ids) for ids in transcript_tokens(tokenizer, manifest.teacher_texts.to_pylist())]
        distinct = sorted(set(read), key=lambda ids: (len(ids), ids))
        number = {ids: number for number, ids in enumerate(distinct)}
        clip_ids = manifest.clips["clip_id"].to_pylist()
        return cls(distinct, {clip_id: number[ids] for clip_id, ids in zip(clip_ids, read, strict=True)})

    def of_clips(self, clip_ids: Sequence[str]) -> list[tuple[int, ...]]:
        """The token ids of each clip; none for an empty row."""
        return [self.distinct[self.numbers[clip_id]] if clip_id else () for clip_id in clip_ids]

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.distinct), default=0)


def weights_digest(module: nn.Module) -> str:
    """A digest of the weights, from a slice of every parameter, its type and its shape.

    That of an LLM with LoRA is that of the LLM alone: the teacher is the same.
    """
    found = hashlib.sha256()
    for name, weight in sorted(frozen_weights(module.named_parameters()).items()):
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        values = weight.detach().flatten()[:: max(1, weight.numel() // 64)][:64]
        found.update(values.float().cpu().numpy().tobytes())
    return found.hexdigest()


def digest(*parts: object) -> str:
    """A digest of `parts`: the cache key of anything that depends on them only."""

    return hashlib.sha256(repr((_FORMAT, *parts)).encode()).hexdigest()[:32]
