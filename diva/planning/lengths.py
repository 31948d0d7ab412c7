"""How long the clips of a corpus are: read where it is at hand, assumed where it is not. Nothing is made for it."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from scipy.stats import norm

from diva.audio.frames import SAMPLE_RATE, WHISPER_SECONDS, padded_samples, valid_frames
from diva.data.bucketing import assign_buckets, bucket_edges
from diva.data.corpora.common_voice import CommonVoice
from diva.data.corpora.spoken.corpus import SpokenMini
from diva.data.manifest import Corpus, Manifest, StoredAudio
from diva.errors import AudioFault, UserError

_CHARACTERS_PER_TOKEN = 4  # of English
_TOKENS_PER_SECOND = 3.5  # of read English: 2.5 words
# Common Voice 17 English, training split; the spread is that of the logarithm of the seconds.
COMMON_VOICE = {"clips": 1_100_000, "median_seconds": 5.0, "spread": 0.35}
_SPOKEN_MINI = {"clips": 5_220, "median_seconds": 2.2, "spread": 0.21}
_QUANTILES = 2_000
_HEADERS = 200  # clips whose headers are read where a corpus does not list durations


@dataclass(frozen=True)
class ClipLengths:
    """The clips of a training split, by what costs."""

    seconds: np.ndarray  # of clips that stand for all
    clips: int
    mean_tokens: float  # of a transcript
    origin: str  # what this rests on, for the eye

    @property
    def longest_seconds(self) -> float:
        return float(self.seconds.max())

    @property
    def mean_frames(self) -> float:
        """Encoder frames that speak for a clip."""
        samples = torch.from_numpy(self.seconds * SAMPLE_RATE).long()
        return float(valid_frames(samples).double().mean())

    def mean_padded_samples(self, num_buckets: int) -> int:
        """Samples of a waveform that is padded to its bucket, over the clips."""
        edges = bucket_edges(self.seconds, num_buckets)
        shapes = np.array([padded_samples(edge) for edge in edges])
        return round(float(shapes[assign_buckets(self.seconds, edges)].mean()))

    def tokens(self, seconds: float) -> int:
        """Transcript tokens of a clip of so many seconds, at the corpus's rate of speech."""
        return max(1, math.ceil(self.mean_tokens * seconds / float(self.seconds.mean())))


def clip_lengths(data: Any, median_seconds: float | None = None) -> ClipLengths:
    """The training clips of a data config; `median_seconds` replaces those of the corpus."""
    corpus = None if median_seconds else _at_hand(data)
    if corpus is None:
        return _assumed(data, median_seconds)
    found = lengths_of(corpus.manifest(data.train_split))
    return replace(found, clips=min(found.clips, data.max_train_clips or found.clips))


def lengths_of(manifest: Manifest) -> ClipLengths:
    """Those of a manifest; where the corpus does not list them, a sample of the headers is read."""
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


def _at_hand(data: Any) -> Corpus | None:
    """The corpus of a data config if reading it neither makes nor downloads it."""
    from diva.config import make

    if data.root is None or not Path(str(data.root)).expanduser().exists():
        return None
    corpus = make(data.corpus)
    if not isinstance(corpus, SpokenMini):
        return corpus
    # Its own manifest would speak what is missing.
    return CommonVoice(corpus.release) if (corpus.release / "complete").is_file() else None


def _header_seconds(audio: Any, rows: np.ndarray) -> np.ndarray:
    found = []
    for row in rows if isinstance(audio, StoredAudio) else ():
        try:
            found.append(audio.seconds(int(row)))
        except AudioFault:
            continue
    return np.array(found)


def _assumed(data: Any, median_seconds: float | None) -> ClipLengths:
    spoken = data.corpus._target_.endswith(SpokenMini.__name__)
    known = _SPOKEN_MINI if spoken else COMMON_VOICE
    median = median_seconds or known["median_seconds"]
    share = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    longest = data.get("max_seconds") or WHISPER_SECONDS
    seconds = np.minimum(median * np.exp(known["spread"] * norm.ppf(share)), longest)
    clips = min(int(known["clips"]), data.max_train_clips or int(known["clips"]))
    where = "the spoken corpus" if spoken else "Common Voice 17 English"
    origin = f"{clips} clips with a median of {median:g} s, as in {where}"
    return ClipLengths(seconds, clips, float(seconds.mean()) * _TOKENS_PER_SECOND, f"assumed: {origin}")
