"""What the demo shows of a model's training: its corpus, and clips that were held out from it."""

from pathlib import Path
from typing import Any

import soundfile
from omegaconf import OmegaConf

from diva.audio.frames import SAMPLE_RATE
from diva.data.corpora.present import present_corpus
from diva.errors import UserError

CLIPS = 3  # of each validation set


def about(trained_on: dict[str, Any] | None) -> str:
    """One line on the corpus of a model, from its config."""
    if trained_on is None:
        return "This model does not say what it was trained on."
    corpus, clips, words = (trained_on[key] for key in ("corpus", "clips", "words"))
    return (
        f"Trained on `{corpus}`: {clips:,} clips with {words:,} distinct words. Other words it hears badly."
    )


def held_out_clips(model: str, folder: Path) -> list[list[str]]:
    """[audio file, transcript] of a few validation clips of a run, written to `folder`.

    `model` is a run's folder or its export. Empty if it is neither, or if its corpus is no longer on this machine.
    """
    runs = [Path(model), Path(model).parent]
    run = next((run for run in runs if (run / "config.yaml").is_file()), None)
    if run is None:
        return []
    data = OmegaConf.load(run / "config.yaml").data
    try:
        corpus = present_corpus(data)
        manifests = [corpus.manifest(split) for split in data.val_splits.values()] if corpus else []
    except UserError:  # the corpus has changed since
        return []
    found = []
    for number, manifest in enumerate(manifests):
        for row in range(0, len(manifest), max(1, len(manifest) // CLIPS))[:CLIPS]:
            file = folder / f"{number}_{row}.wav"
            try:
                soundfile.write(file, manifest.waveform(row), SAMPLE_RATE)
            except UserError:
                continue
            found.append([str(file), manifest.text(row)])
    return found
