"""Lengths of the clips of a corpus: read if the corpus is on this machine, otherwise assumed.

Reading them neither makes nor downloads a corpus.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from omegaconf import DictConfig, OmegaConf
from scipy.stats import norm

from diva.audio.frames import WHISPER_SECONDS, padded_samples
from diva.config.mixture import part_configs
from diva.data.bucketing import assign_buckets, bucket_edges
from diva.data.corpora.present import present_corpus
from diva.data.corpora.spoken.corpus import SpokenMini
from diva.data.corpora.spoken.open_vocabulary import SpokenOpen
from diva.data.manifest import Manifest, StoredAudio
from diva.data.mixture import Shares, naming
from diva.errors import AudioFault, UserError

_CHARACTERS_PER_TOKEN = 4  # for English
_TOKENS_PER_SECOND = 3.5  # for read English: 2.5 words per second
# Common Voice 17 English, training split. The spread is the standard deviation of the logarithm of the seconds.
COMMON_VOICE = {"clips": 1_100_000, "median_seconds": 5.0, "spread": 0.35}
_SPOKEN = {
    SpokenMini.__name__: {"clips": 5_220, "median_seconds": 2.2, "spread": 0.21},
    SpokenOpen.__name__: {"clips": 39_000, "median_seconds": 2.4, "spread": 0.3},
}
_QUANTILES = 2_000
_HEADERS = 200  # number of headers to read if a corpus does not list durations


@dataclass(frozen=True)
class ClipLengths:
    """The lengths of the clips of a training split, which decide the cost of a run."""

    seconds: np.ndarray  # durations of a sample of the clips
    clips: int
    mean_tokens: float  # per transcript
    origin: (
        str  # where the lengths come from, for the output of `diva.plan`; a line for each part of a mixture
    )

    @property
    def longest_seconds(self) -> float:
        return float(self.seconds.max())

    def mean_padded_samples(self, num_buckets: int) -> int:
        """Mean number of samples of a waveform that is padded to its bucket."""
        edges = bucket_edges(self.seconds, num_buckets)
        shapes = np.array([padded_samples(edge) for edge in edges])
        return round(float(shapes[assign_buckets(self.seconds, edges)].mean()))

    def tokens(self, seconds: float) -> int:
        """Transcript tokens of a clip of `seconds`, at the corpus's mean rate of tokens per second."""
        return max(1, math.ceil(self.mean_tokens * seconds / float(self.seconds.mean())))


def clip_lengths(data: Any, median_seconds: float | None = None) -> ClipLengths:
    """The lengths of the training clips of a data config. `median_seconds` replaces the lengths of the corpus."""
    if parts := part_configs(data):
        return _mixed(parts, median_seconds)
    corpus = None if median_seconds else present_corpus(data)
    if corpus is None:
        return _assumed(data, median_seconds)
    found = lengths_of(corpus.manifest(data.train_split))
    return replace(found, clips=min(found.clips, data.max_train_clips or found.clips))


def val_lengths(data: Any, split: str, median_seconds: float | None = None) -> ClipLengths:
    """The lengths of the clips of a data config that are validated on, of this one of its `val_splits`."""
    of, limit = data, data.max_val_clips
    if parts := part_configs(data):
        part, _, split = split.partition("/")
        of = parts[part]
    return clip_lengths(OmegaConf.merge(of, {"train_split": split, "max_train_clips": limit}), median_seconds)


def _mixed(parts: dict[str, DictConfig], median_seconds: float | None) -> ClipLengths:
    """The lengths of the clips that a mixture draws. `clips` has each clip of each part once, as the tables have."""
    found = {}
    for name, part in parts.items():
        with naming(name):
            found[name] = clip_lengths(part, median_seconds)
    weights = {name: part.weight for name, part in parts.items()}
    shares = Shares.by_weight({name: lengths.clips for name, lengths in found.items()}, weights)
    seconds, tokens, origins = [], 0.0, []
    for (name, lengths), drawn in zip(found.items(), shares.drawn, strict=True):
        share = drawn / sum(shares.drawn)
        points = max(1, round(share * _QUANTILES))
        # The longest clip of each part, because the memory depends on it.
        seconds += [
            np.quantile(lengths.seconds, (np.arange(points) + 0.5) / points),
            [lengths.longest_seconds],
        ]
        tokens += share * lengths.mean_tokens
        origins.append(f"part {name}, {share:.1%} of the drawn clips: {lengths.origin}")
    return ClipLengths(np.concatenate(seconds), sum(shares.clips), tokens, "\n".join(origins))


def lengths_of(manifest: Manifest) -> ClipLengths:
    """The lengths of a manifest's clips. If the corpus does not list them, a sample of the headers is read."""
    seconds = manifest.durations.astype(np.float64)
    unknown = np.flatnonzero(np.isnan(seconds))
    if len(unknown):
        asked = unknown[:: max(1, len(unknown) // _HEADERS)]
        found = _header_seconds(manifest.audio, manifest.rows[asked])
        seconds = np.concatenate([seconds[~np.isnan(seconds)], found])
    if not len(seconds):
        raise UserError(f"{manifest.origin or 'the corpus'} has no clip whose length can be read")
    characters = float(pc.mean(pc.utf8_length(manifest.clips["text"])).as_py())
    origin = f"{len(manifest)} clips of {manifest.origin or 'the corpus'}"
    return ClipLengths(seconds, len(manifest), characters / _CHARACTERS_PER_TOKEN, origin)


def _header_seconds(audio: Any, rows: np.ndarray) -> np.ndarray:
    found = []
    for row in rows if isinstance(audio, StoredAudio) else ():
        try:
            found.append(audio.seconds(int(row)))
        except AudioFault:
            continue
    return np.array(found)


def _assumed(data: Any, median_seconds: float | None) -> ClipLengths:
    spoken = data.corpus._target_.rpartition(".")[2]
    known = _SPOKEN.get(spoken, COMMON_VOICE)
    median = median_seconds or known["median_seconds"]
    share = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    longest = data.get("max_seconds") or WHISPER_SECONDS
    seconds = np.minimum(median * np.exp(known["spread"] * norm.ppf(share)), longest)
    clips = min(int(known["clips"]), data.max_train_clips or int(known["clips"]))
    where = "the spoken corpus" if spoken in _SPOKEN else "Common Voice 17 English"
    origin = f"{clips} clips with a median of {median:g} s, as in {where}"
    return ClipLengths(seconds, clips, float(seconds.mean()) * _TOKENS_PER_SECOND, f"assumed: {origin}")
