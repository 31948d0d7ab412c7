"""The open corpus: sentences of any words, from WordNet's examples and the mini corpus's templates, spoken by flite.

`python -m diva.data.spoken_open [--root data] [--wordnet FOLDER]` makes it. Training also makes it on first use.
Its splits:
- `train`;
- `dev`, `test`: other sentences, of words that `train` has;
- `unseen_voice`: the same, in a voice that `train` does not have;
- `new_words`: sentences with words that no other split has; new_words.txt lists these words;
- `neural_voice`: the sentences of `dev` in the voice of a neural synthesiser, made when it is asked for.
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from diva.command import exit_codes
from diva.data.corpora.spoken import wordnet
from diva.data.corpora.spoken.release import (
    DEFAULT_SEED,
    SPEECH_VERSION,
    Splits,
    SpokenCorpus,
    cast,
    corpus_command,
    digest,
)
from diva.data.corpora.spoken.sentences import Sentence, sentences, words_of
from diva.data.corpora.spoken.voices import NEURAL, TRAINED, UNSEEN
from diva.data.manifest import Manifest
from diva.errors import UserError

RELEASE = "cv-corpus-spoken-open"
# Increase it if templates, filters or splits change: a complete corpus is not planned again.
PLAN_VERSION = 1
TEMPLATE_SENTENCES = 6_000
MINIMUM = 100
# Fractions of the sentences; the rest is for training.
DEV = TEST = UNSEEN_VOICE = 0.015
NEW_WORDS = 0.02
# Number of sentences in which a new word occurs, with all its forms. Training needs the words that are more frequent.
# Half of the words occur once, and many of them are odd.
NEW_WORD_SENTENCES = range(2, 11)
# Ranges of random factors on each voice's own tempo and pitch.
TEMPO_RANGE = (0.8, 1.25)
PITCH_RANGE = (0.85, 1.2)
NOTICE_FILE = "LICENSE.WordNet.txt"
WORDS_FILE = "new_words.txt"
NEURAL_SPLIT = "neural_voice"
_ENDING = re.compile(r"(?:ies|ied|ing|est|ed|es|er|s|e|y)$")


@dataclass(frozen=True)
class Plan:
    splits: Splits
    new_words: list[str]  # no sentence of any split but `new_words` has one


def plan(texts: Sequence[Sentence], seed: int, takes: int = 1) -> Plan:
    """The clips of each split, and the words that training does not have.

    A sentence of training is spoken `takes` times, by other voices or in other tempo and pitch.
    Raises UserError if there are too few sentences for all splits.
    """
    texts = sorted(texts, key=lambda text: digest(seed, text.text))
    new, texts, new_words = hold_out_words(texts, round(NEW_WORDS * len(texts)), seed)
    counts = {"dev": DEV, "test": TEST, "unseen_voice": UNSEEN_VOICE}
    total = len(new) + len(texts)
    held_out, train = hold_out_sentences(texts, {name: round(part * total) for name, part in counts.items()})
    parts = {"train": train, **held_out, "new_words": new}
    if not all(parts.values()):
        raise UserError(f"{total} sentences are too few for the splits of the open corpus")
    splits = {
        name: [
            cast(
                text,
                [UNSEEN] if name == "unseen_voice" else TRAINED,
                f"{seed}.{take}",
                TEMPO_RANGE,
                PITCH_RANGE,
            )
            for take in range(takes if name == "train" else 1)
            for text in part
        ]
        for name, part in parts.items()
    }
    return Plan(splits, new_words)


def hold_out_words(
    texts: Sequence[Sentence], count: int, seed: int
) -> tuple[list[Sentence], list[Sentence], list[str]]:
    """At least `count` sentences with new words, the sentences without any, and the new words.

    Forms of a word count as one word: if `bake` is new, so are `bakes`, `baked` and `baking`.
    """
    where: dict[str, set[int]] = defaultdict(set)
    for number, text in enumerate(texts):
        for word in words_of(text.text):
            where[stem(word)].add(number)
    new: set[int] = set()
    stems: set[str] = set()
    for candidate in sorted(where, key=lambda word: digest(seed, word)):
        if len(new) >= count:
            break
        if len(where[candidate]) in NEW_WORD_SENTENCES:
            stems.add(candidate)
            new |= where[candidate]
    words = {word for number in new for word in words_of(texts[number].text) if stem(word) in stems}
    chosen, rest = (
        [text for number, text in enumerate(texts) if (number in new) == wanted] for wanted in (True, False)
    )
    return chosen, rest, sorted(words)


def hold_out_sentences(
    texts: Sequence[Sentence], counts: Mapping[str, int]
) -> tuple[dict[str, list[Sentence]], list[Sentence]]:
    """For each name its count of sentences whose words all occur in the remaining sentences, and these."""
    left = Counter(word for text in texts for word in words_of(text.text))
    held_out: dict[str, list[Sentence]] = {name: [] for name in counts}
    rest = []
    for text in texts:
        words = words_of(text.text)
        name = next((name for name, count in counts.items() if len(held_out[name]) < count), None)
        if name is None or any(left[word] == 1 for word in words):
            rest.append(text)
        else:
            held_out[name].append(text)
            left.subtract(words)
    return held_out, rest


def stem(word: str) -> str:
    """The word without its regular ending: bakes, baked, baking -> bak; stopped, stops -> stop."""
    base = re.sub(r"(.)\1$", r"\1", _ENDING.sub("", word.removesuffix("'s")))
    return base if len(base) >= 3 else word


@lru_cache(maxsize=2)
def _plan(folder: Path, seed: int, limit: int | None, takes: int) -> Plan:
    texts = {text.text: text for text in sentences(TEMPLATE_SENTENCES, seed, vocabulary=None)}
    for example in wordnet.example_sentences(folder):
        texts.setdefault(example, Sentence(example, "wordnet", None))
    chosen = sorted(texts.values(), key=lambda text: digest(seed, text.text))[:limit]
    return plan(chosen, seed, takes)


class SpokenOpen(SpokenCorpus):
    """The corpus in ROOT/cv-corpus-spoken-open, made on first use.

    `wordnet` is the folder of WordNet's data files; None: where Debian's package has them. A complete corpus does not
    need them. `limit` is the number of sentences, `takes` the number of clips of each sentence of training. Other
    values have folders of their own. Raises UserError for values out of range.
    """

    def __init__(
        self,
        root: str | Path,
        wordnet: str | Path | None = None,
        seed: int = DEFAULT_SEED,
        limit: int | None = None,
        takes: int = 1,
    ):
        if limit is not None and limit < MINIMUM:
            raise UserError(f"the open corpus needs a limit of at least {MINIMUM} sentences, not {limit}")
        if takes < 1:
            raise UserError(f"data.takes={takes}: each sentence of training needs at least one clip")
        parts = {"seed": (seed, DEFAULT_SEED), "": (limit, None), "takes": (takes, 1)}
        name = "".join(f"-{key}{value}" for key, (value, default) in parts.items() if value != default)
        self.release = Path(root).expanduser() / (RELEASE + name)
        self.wordnet = wordnet
        self.seed = seed
        self.limit = limit
        self.takes = takes

    @property
    def identity(self) -> str:
        return digest(PLAN_VERSION, SPEECH_VERSION, self.seed, self.limit, self.takes)

    def splits(self) -> Splits:
        return self._planned().splits

    def texts(self) -> dict[str, str]:
        words = "".join(f"{word}\n" for word in self._planned().new_words)
        return {NOTICE_FILE: wordnet.notice(wordnet.folder_of(self.wordnet)), WORDS_FILE: words}

    def manifest(self, split: str) -> Manifest:
        return _Neural(self).manifest(split) if split == NEURAL_SPLIT else super().manifest(split)

    def _planned(self) -> Plan:
        return _plan(wordnet.folder_of(self.wordnet), self.seed, self.limit, self.takes)


class _Neural(SpokenCorpus):
    """The sentences of `dev` in a neural voice: a small corpus beside the open one, for tests only."""

    def __init__(self, spoken: SpokenOpen):
        self._open = spoken
        self.release = spoken.release.with_name(f"{spoken.release.name}-neural")

    @property
    def identity(self) -> str:
        return digest(self._open.identity, NEURAL.name)

    def splits(self) -> Splits:
        spoken = self._open.splits()["dev"]
        return {
            NEURAL_SPLIT: [
                replace(clip, voice=NEURAL, stretch=clip.stretch / clip.voice.stretch, pitch=1.0)
                for clip in spoken
            ]
        }

    def texts(self) -> dict[str, str]:
        return {NOTICE_FILE: self._open.texts()[NOTICE_FILE]}


@exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Make the corpus and print a summary of it."""
    parser = argparse.ArgumentParser(
        prog="python -m diva.data.spoken_open", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--root", default="data", help="folder that gets the corpus (default: data)")
    parser.add_argument(
        "--wordnet", help=f"folder of WordNet's data.noun, ... (default: {wordnet.DEBIAN_FOLDER})"
    )
    parser.add_argument("--limit", type=int, help="how many sentences, instead of all")
    parser.add_argument(
        "--takes", type=int, default=1, help="clips of each sentence of training (default: 1)"
    )
    parser.add_argument(
        "--neural", action="store_true", help="also the split neural_voice: needs diva[neural]"
    )
    splits = ["train", "dev", "test", "new_words", "unseen_voice"]
    neural = parser.parse_args(arguments).neural
    return corpus_command(
        parser,
        arguments,
        lambda options: SpokenOpen(options.root, options.wordnet, limit=options.limit, takes=options.takes),
        [*splits, NEURAL_SPLIT] if neural else splits,
    )
