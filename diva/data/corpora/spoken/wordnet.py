"""The example sentences in WordNet's data files. Their format: wndb(5WN) in WordNet's manual.

A line of data.noun, data.verb, data.adj and data.adv is a synset, a set of words with one meaning:
`offset file type count(hex) word id ... pointers p (symbol offset type source/target) ... | gloss; "example"; ...`.
The lines of the licence notice at the head of each file begin with two spaces and a number.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from diva.data.corpora.spoken.sentences import MAX_WORDS, MIN_WORDS
from diva.errors import UserError

DEBIAN_FOLDER = Path("/usr/share/wordnet")  # of the package wordnet-base
# The slowest voice needs about five seconds for this number of characters.
MAX_CHARACTERS = 60
_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_WORD = r"[A-Za-z]+(?:['-][A-Za-z]+)*"
_SENTENCE = re.compile(rf"{_WORD}(?:,? {_WORD})*[.?!]?")
# flite reads them as other words.
_ABBREVIATIONS = {"jr", "sr", "mr", "mrs", "dr", "st"}
# A synset that one of these marks, by a pointer of the kind "usage", is not a subject for a demo.
_CRUDE = {"obscenity", "ethnic_slur", "disparagement"}


class Synset(NamedTuple):
    offset: str
    words: list[str]
    usages: list[str]  # offsets of the synsets, all nouns, that say how the words are used
    examples: list[str]


def folder_of(given: str | Path | None) -> Path:
    """The folder with the data files: the given one, `dict/` in it, or Debian's. Raises UserError if there is none."""
    candidates = (
        [DEBIAN_FOLDER] if given is None else [Path(given).expanduser() / part for part in (".", "dict")]
    )
    for folder in candidates:
        if all((folder / name).is_file() for name in _FILES):
            return folder
    raise UserError(
        f"data=spoken_open needs WordNet's data files (data.noun, ...), and {candidates[0]} does not have them:"
        " apt-get install wordnet-base, or data.wordnet=FOLDER of WordNet 3.0 from elsewhere"
    )


def notice(folder: Path) -> str:
    """The licence notice of WordNet: the head of its data files. Raises UserError if there is none."""
    with (folder / _FILES[0]).open(encoding="latin-1") as file:
        lines = []
        for line in file:
            if not line.startswith("  "):
                break
            lines.append(re.sub(r"^ +\d+ ?", "", line.rstrip()) + "\n")
    if not lines:
        raise UserError(
            f"{folder / _FILES[0]} does not begin with WordNet's licence notice: give WordNet's own files"
        )
    return "".join(lines)


def example_sentences(folder: Path) -> list[str]:
    """The examples that are plain sentences or phrases, in the files' order, as sentences; none twice."""
    synsets = [synset for name in _FILES for synset in _synsets(folder / name)]
    crude = _crude_words(synsets)
    found: dict[tuple[str, ...], str] = {}
    for synset in synsets:
        for example in synset.examples:
            words = tuple(word.lower() for word in re.findall(_WORD, example))
            if crude.isdisjoint(words) and (text := sentence(example)) is not None:
                found.setdefault(words, text)
    return list(found.values())


def sentence(example: str) -> str | None:
    """The example with a capital and a full stop; None if flite may read it differently, or it is too short or long."""
    words = example.split()
    if not _SENTENCE.fullmatch(example) or not MIN_WORDS <= len(words) <= MAX_WORDS:
        return None
    for part in re.findall("[A-Za-z']+", example):
        spelt = sum(map(str.isupper, part)) > 1 or (len(part) == 1 and part not in "aAI")
        if spelt or part.lower() in _ABBREVIATIONS:
            return None
    text = example[0].upper() + example[1:] + ("" if example[-1] in ".?!" else ".")
    return text if len(text) <= MAX_CHARACTERS else None


def _synsets(file: Path) -> list[Synset]:
    with file.open(encoding="latin-1", newline="\n") as lines:
        try:
            return [_synset(line) for line in lines if not line.startswith("  ")]
        except (IndexError, ValueError) as error:
            raise UserError(f"{file} is not a data file of WordNet 3.0: {error}") from error


def _synset(line: str) -> Synset:
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    pointers = 4 + 2 * int(fields[3], 16)
    words = [word.lower() for word in fields[4:pointers:2]]
    named = zip(fields[pointers + 1 :: 4], fields[pointers + 2 :: 4], strict=False)
    usages = [offset for symbol, offset in named if symbol == ";u"]
    return Synset(fields[0], words, usages, [text.strip() for text in re.findall('"([^"]+)"', gloss)])


def _crude_words(synsets: list[Synset]) -> set[str]:
    """The words of which at least half of the meanings are marked as crude."""
    marks = {synset.offset for synset in synsets if not _CRUDE.isdisjoint(synset.words)}
    meanings = Counter(word for synset in synsets for word in synset.words)
    marked = Counter(word for synset in synsets if marks & {*synset.usages} for word in synset.words)
    return {word for word, count in marked.items() if 2 * count >= meanings[word]}
