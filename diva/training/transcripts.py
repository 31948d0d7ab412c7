"""The distinct transcripts of a split, and the cache keys of what is computed from them."""

import hashlib
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from diva.data.batch import transcript_tokens
from diva.data.manifest import Manifest

_FORMAT = "3"


@dataclass(frozen=True)
class Transcripts:
    """Token ids of each distinct transcript of a split. Their order depends on the transcripts only."""

    distinct: list[tuple[int, ...]]
    numbers: dict[str, int]  # clip id -> index into `distinct`

    @classmethod
    def of(cls, manifest: Manifest, tokenizer: PreTrainedTokenizerBase) -> "Transcripts":
        read = [tuple(ids) for ids in transcript_tokens(tokenizer, manifest.clips["text"].to_pylist())]
        distinct = sorted(set(read), key=lambda ids: (len(ids), ids))
        number = {ids: number for number, ids in enumerate(distinct)}
        clip_ids = manifest.clips["clip_id"].to_pylist()
        return cls(distinct, {clip_id: number[ids] for clip_id, ids in zip(clip_ids, read, strict=True)})


def weights_digest(module: nn.Module) -> str:
    """A digest of the weights, from a slice of every parameter, its type and its shape."""
    found = hashlib.sha256()
    for name, weight in sorted(module.named_parameters()):
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        values = weight.detach().flatten()[:: max(1, weight.numel() // 64)][:64]
        found.update(values.float().cpu().numpy().tobytes())
    return found.hexdigest()


def digest(*parts: object) -> str:
    """A digest of `parts`: the cache key of anything that depends on them only."""

    return hashlib.sha256(repr((_FORMAT, *parts)).encode()).hexdigest()[:32]
