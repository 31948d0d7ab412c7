"""Spoken clips with the lengths of Common Voice's, joined from the short sentences of the spoken corpus."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from diva.audio.frames import SAMPLE_RATE
from diva.data.corpora.common_voice import CommonVoice
from diva.data.manifest import Manifest
from diva.errors import UserError
from diva.planning.lengths import COMMON_VOICE

# Lengths are log-normal, as diva.plan assumes them to be, and cut where few are left.
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 15.0
SPOKEN = "cv-corpus-spoken-mini"


def wanted_seconds(count: int, seed: int = 0) -> np.ndarray:
    """Lengths [count] in seconds, the same for the same seed."""
    median, spread = COMMON_VOICE["median_seconds"], COMMON_VOICE["spread"]
    drawn = np.random.default_rng(seed).lognormal(np.log(median), spread, count)
    return drawn.clip(SHORTEST_SECONDS, LONGEST_SECONDS)


def write_corpus(
    root: Path, folder: Path, counts: dict[str, int], most_sentences: int | None = None, seed: int = 0
) -> Path:
    """A corpus in `folder` for `diva.data.corpora.jsonl`, with so many mp3 clips in each split.

    `root` is what `data.root` is for the spoken corpus; with `most_sentences` the longest clips are shorter, and have
    shorter transcripts. Raises UserError where the spoken corpus is not there.
    """
    release = root / SPOKEN
    if not (release / "complete").is_file():
        raise UserError(
            f"{release} is no finished spoken corpus; `make corpus` makes one, --data names its root"
        )
    spoken = CommonVoice(release).manifest("train")
    (folder / "clips").mkdir(parents=True)
    seconds = iter(wanted_seconds(sum(counts.values()), seed))
    order = _forever(len(spoken), seed)
    for split, count in counts.items():
        lines = []
        for number in range(count):
            name = f"clips/{split}_{number:05d}.mp3"
            waveform, text = _join(spoken, order, float(next(seconds)), most_sentences)
            soundfile.write(folder / name, waveform, SAMPLE_RATE)
            row = {"audio": name, "text": text, "duration": len(waveform) / SAMPLE_RATE}
            lines.append(json.dumps(row))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _join(spoken: Manifest, order: Iterator[int], seconds: float, most: int | None) -> tuple[np.ndarray, str]:
    """Sentences one after the other, until they last about as long; never beyond the longest clip."""
    waveforms, texts, length = [], [], 0.0
    while True:
        clip = next(order)
        lasts = float(spoken.durations[clip])
        enough = length + lasts / 2 > seconds or length + lasts > LONGEST_SECONDS or len(texts) == most
        if waveforms and enough:
            return np.concatenate(waveforms), " ".join(texts)
        waveforms.append(spoken.waveform(clip))
        texts.append(spoken.text(clip))
        length += lasts


def _forever(count: int, seed: int) -> Iterator[int]:
    rng = np.random.default_rng([seed, 1])
    while True:
        yield from rng.permutation(count).tolist()
