"""The corpus of a run, if it is on this machine."""

from pathlib import Path
from typing import Any

from diva.config import make
from diva.data.corpora.common_voice import CommonVoice
from diva.data.corpora.spoken.release import SpokenCorpus
from diva.data.manifest import Corpus


def present_corpus(data: Any) -> Corpus | None:
    """The corpus of a data config; None if reading it would make or download it."""
    root = data.get("root")
    if root is None or not Path(str(root)).expanduser().exists():
        return None
    corpus = make(data.corpus)
    if not isinstance(corpus, SpokenCorpus):
        return corpus
    # The manifest of a spoken corpus would synthesize missing clips.
    return CommonVoice(corpus.release) if (corpus.release / "complete").is_file() else None
