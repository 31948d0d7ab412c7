"""The mini corpus: sentences that people say to an assistant, spoken by flite, in Common Voice's layout.

`python -m diva.data.spoken_mini [--root data]` makes it. Training also makes it on first use.
"""

import argparse
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

from diva.command import exit_codes
from diva.data.corpora.spoken.release import (
    DEFAULT_SEED,
    Clip,
    Splits,
    SpokenCorpus,
    cast,
    corpus_command,
    digest,
)
from diva.data.corpora.spoken.sentences import Sentence, sentences
from diva.data.corpora.spoken.voices import TRAINED, UNSEEN, Voice
from diva.errors import UserError

RELEASE = "cv-corpus-spoken-mini"
MINIMUM = 20  # sentences; with fewer a split could be empty
SENTENCES = 6_000
# Fractions of the corpus; the rest is for training.
DEV = 0.04
SEEN_VOICE_TEST = 0.05
UNSEEN_VOICE_TEST = 0.04
# Ranges of random factors on each voice's own tempo and pitch.
TEMPO_RANGE = (0.85, 1.15)
PITCH_RANGE = (0.92, 1.08)


@lru_cache(maxsize=4)  # it takes a second, and the manifest of every split calls it
def plan(seed: int, limit: int | None = None) -> Splits:
    """The clips of each split: sentence, voice, tempo and pitch.

    `unseen_voice` is the part of `test` whose voice is not in the training split.
    All random choices depend on the sentence itself. So most clips stay the same if templates or the number of
    sentences change.
    """
    texts = sorted(sentences(limit or SENTENCES, seed), key=lambda sentence: digest(seed, sentence.text))
    total = len(texts)
    held_out = [round(total * part) for part in (UNSEEN_VOICE_TEST, SEEN_VOICE_TEST, DEV)]
    first, second, third = accumulate(held_out)

    def spoken(part: Sequence[Sentence], voices: Sequence[Voice]) -> list[Clip]:
        return [cast(text, voices, seed, TEMPO_RANGE, PITCH_RANGE) for text in part]

    unseen = spoken(texts[:first], [UNSEEN])
    test, dev, train = (
        spoken(part, TRAINED) for part in (texts[first:second], texts[second:third], texts[third:])
    )
    return {"train": train, "dev": dev, "test": test + unseen, "unseen_voice": unseen}


class SpokenMini(SpokenCorpus):
    """The corpus in ROOT/cv-corpus-spoken-mini, made on first use. The same seed gives the same corpus.

    Its splits are `train`, `dev`, `test` and `unseen_voice`. `limit` is the number of sentences. Another seed or a
    limit has its own folder. Raises UserError for a limit below MINIMUM.
    """

    def __init__(self, root: str | Path, seed: int = DEFAULT_SEED, limit: int | None = None):
        if limit is not None and limit < MINIMUM:
            raise UserError(f"the spoken corpus needs a limit of at least {MINIMUM} sentences, not {limit}")
        name = RELEASE + (f"-seed{seed}" if seed != DEFAULT_SEED else "") + (f"-{limit}" if limit else "")
        self.release = Path(root).expanduser() / name
        self.seed = seed
        self.limit = limit

    def splits(self) -> Splits:
        return plan(self.seed, self.limit)

    @cached_property
    def identity(self) -> str:
        """It changes with the templates and the voices."""
        splits = self.splits()
        return digest(*(clip.row() for split in ("train", "dev", "test") for clip in splits[split]))


@exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Make the corpus and print a summary of it."""
    parser = argparse.ArgumentParser(
        prog="python -m diva.data.spoken_mini", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--root", default="data", help="folder that gets the corpus (default: data)")
    parser.add_argument("--limit", type=int, help=f"how many sentences, instead of {SENTENCES:,}")
    splits = "train", "dev", "test", "unseen_voice"
    return corpus_command(
        parser, arguments, lambda options: SpokenMini(options.root, limit=options.limit), splits
    )
