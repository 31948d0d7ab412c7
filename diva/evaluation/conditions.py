"""Clips under conditions that a model meets outside a studio: noise, a telephone, codecs (`task=robustness`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from diva.audio.augmentation import (
    CODECS,
    COLOURS,
    add_noise,
    coloured_noise,
    telephone_band,
    transcode,
)
from diva.data.augment import Draw
from diva.data.manifest import AudioSource, Corpus, Manifest
from diva.errors import UserError

COLUMN = "condition"
CLEAN = "clean"
_TELEPHONE = "telephone"
_DECIBELS = " dB"


def is_snr(condition: str) -> bool:
    return condition.endswith(_DECIBELS)


@dataclass(frozen=True)
class Condition:
    """One condition; without SNR and channel, the clip as it is."""

    name: str
    detail: str  # all that its samples depend on besides the clip
    snr: float | None = None  # dB, over the speech
    channel: str | None = None  # telephone, or one of CODECS


class UnderConditions:
    """Each clip of a corpus once in every condition: clean, at each SNR, through each channel.

    The manifest has a column `condition`, and ids that name clip and condition. A clip has the same noise at every SNR
    and for every system.

    Args:
        corpus: makes the corpus.
        snr: decibels, over the speech without its pauses.
        noise: one of COLOURS.
        channels: some of telephone (300 to 3400 Hz) and CODECS.
        kilobits: a second, of Opus and mp3.

    Raises UserError for a name that does not exist.
    """

    def __init__(
        self,
        corpus: Callable[[], Corpus],
        snr: Sequence[float],
        noise: str,
        channels: Sequence[str],
        kilobits: float,
        seed: int,
    ):
        if noise not in COLOURS:
            raise UserError(f"task.corpus.noise={noise} is none of {', '.join(COLOURS)}")
        if unknown := set(channels) - {_TELEPHONE, *CODECS}:
            raise UserError(
                f"task.corpus.channels: {', '.join(sorted(unknown))} is none of {_TELEPHONE}, {', '.join(CODECS)}"
            )
        self.corpus = corpus
        self.noise = noise
        self.kilobits = kilobits
        self.seed = seed
        noises = [
            Condition(f"{of:g}{_DECIBELS}", f"{noise} noise {of:g}{_DECIBELS}, seed {seed}", snr=of)
            for of in snr
        ]
        through = [
            Condition(of, f"{of} {kilobits:g} kbit/s" if of in ("opus", "mp3") else of, channel=of)
            for of in channels
        ]
        self.conditions = [Condition(CLEAN, CLEAN), *noises, *through]

    def manifest(self, split: str) -> Manifest:
        """Clip after clip, each in all conditions. Raises UserError as the corpus does."""
        plain = self.corpus().manifest(split)
        clips = plain.clips.take(pa.array(np.repeat(np.arange(len(plain)), len(self.conditions))))
        names = plain.column("clip_id")
        ids = [f"{name} [{condition.detail}]" for name in names for condition in self.conditions]
        clips = clips.set_column(clips.column_names.index("clip_id"), "clip_id", pa.array(ids))
        labels = [condition.name for condition in self.conditions] * len(plain)
        audio = ConditionedAudio(plain.audio, plain.rows, names, self)
        return replace(
            plain,
            clips=clips.append_column(COLUMN, pa.array(labels)),
            audio=audio,
            rows=np.arange(len(clips)),
        )

    def change(self, waveform: np.ndarray, condition: Condition, clip_id: str) -> np.ndarray:
        """[S] -> [S] in this condition, in [-1, 1]."""
        changed = clean = torch.from_numpy(waveform)
        if condition.snr is not None:
            generator = Draw(self.seed, 0, clip_id).generator("noise")
            changed = add_noise(clean, coloured_noise(self.noise, len(clean), generator), condition.snr)
        elif condition.channel == _TELEPHONE:
            changed = telephone_band(clean)
        elif condition.channel is not None:
            changed = transcode(clean, condition.channel, self.kilobits)
        return (changed / changed.abs().max().clamp(min=1.0)).numpy()


@dataclass(frozen=True)
class ConditionedAudio:
    """Row r is clip r // c under condition r % c, of c conditions."""

    source: AudioSource
    rows: np.ndarray  # [n] int64, the source's row of each clip
    clip_ids: Sequence[str]  # [n]
    under: UnderConditions

    def waveform(self, row: int) -> np.ndarray:
        clip, number = divmod(row, len(self.under.conditions))
        waveform = self.source.waveform(int(self.rows[clip]))
        return self.under.change(waveform, self.under.conditions[number], self.clip_ids[clip])
