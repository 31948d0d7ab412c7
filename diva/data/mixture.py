"""Mixtures: several corpora in one run, each drawn by its weight."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diva.data.decoded import DecodedAudio
from diva.data.manifest import TEACHER_TEXT, AudioSource, Corpus, Manifest, Skip, count_by_reason
from diva.errors import UserError

# Columns of the union. Other columns need not be in all parts, and nothing reads them after `data.teacher_text`.
_COLUMNS = ("clip_id", "text", "duration", "speaker", TEACHER_TEXT)
# A row of the union has the number of its part, and in the lower bits the row of that part's audio.
_ROW_BITS = 40


@dataclass(frozen=True)
class Part:
    """One corpus of a mixture.

    `corpus` makes it. Its share of the drawn clips is `weight`, divided by the sum of the weights. `limit` is the
    number of its clips to train on, the same ones for every seed; None for all.
    """

    corpus: Callable[[], Corpus]
    train_split: str = "train"
    weight: float = 1.0
    limit: int | None = None


@contextmanager
def naming(part: str) -> Iterator[None]:
    """Inside, a UserError also names the part."""
    try:
        yield
    except UserError as error:
        raise UserError(f"data.parts.{part}: {error}") from error


class Mixture:
    """Corpora by name. Each has its own splits: `en/dev` is the split `dev` of the part `en`.

    The order of the parts in a config has no effect: they are sorted by name.
    """

    def __init__(self, parts: Mapping[str, Part]):
        self.parts = dict(sorted(parts.items()))

    def manifest(self, split: str) -> Manifest:
        """The clips of PART/SPLIT. Raises UserError as the part's corpus does; the message names the part."""
        part, _, of_part = split.partition("/")
        with naming(part):
            manifest = self.parts[part].corpus().manifest(of_part)
        return replace(manifest, origin=f"{manifest.origin} (data.parts.{part})")

    @property
    def limits(self) -> dict[str, int | None]:
        """The number of clips to train on of each part's training split; None for all."""
        return {self._train_split(name): part.limit for name, part in self.parts.items()}

    def train(self, splits: Mapping[str, Manifest]) -> tuple[Manifest, "Shares"]:
        """The union of the parts' training splits, and what an epoch has of each."""
        of_parts = {name: splits[self._train_split(name)] for name in self.parts}
        clips = {name: len(part) for name, part in of_parts.items()}
        weights = {name: part.weight for name, part in self.parts.items()}
        return union(of_parts), Shares.by_weight(clips, weights)

    def of_part(self, fault: Skip) -> tuple[str, Skip]:
        """The split of a clip of the union, and the fault with the clip's id in that split."""
        part, _, clip_id = fault.clip_id.partition("/")
        return self._train_split(part), replace(fault, clip_id=clip_id)

    def _train_split(self, part: str) -> str:
        return f"{part}/{self.parts[part].train_split}"

    def summary(
        self, splits: Mapping[str, Manifest], skipped: Mapping[str, Sequence[Skip]], shares: "Shares"
    ) -> dict[str, Any]:
        """Of each part: weight, share of the drawn clips, drawn clips of an epoch, and its splits' clips and hours."""
        found = {}
        for name, drawn in zip(shares.names, shares.drawn, strict=True):
            found[name] = {
                "weight": self.parts[name].weight,
                "share": round(drawn / sum(shares.drawn), 6),
                "drawn_per_epoch": drawn,
                "splits": {
                    split.partition("/")[2]: {
                        "clips": len(manifest),
                        "hours": round(float(manifest.durations.sum(dtype=np.float64)) / 3600, 4),
                        "skipped": count_by_reason(skipped[split]),
                    }
                    for split, manifest in splits.items()
                    if split.partition("/")[0] == name
                },
            }
        return found

    def describe(self, summary: Mapping[str, Any]) -> list[str]:
        """A line of text for each part of a `summary`."""
        lines = []
        for name, part in summary.items():
            train = part["splits"][self.parts[name].train_split]
            skips = ", ".join(f"{count} {reason}" for reason, count in train["skipped"].items())
            lines.append(
                f"part {name}: {train['clips']} clips, {train['hours']:.2f} h, {part['share']:.1%} of the drawn clips,"
                f" each {part['drawn_per_epoch'] / train['clips']:.3g} times an epoch; skipped: {skips or 'none'}"
            )
        return lines


@dataclass(frozen=True)
class Shares:
    """What an epoch of a mixture has of each part.

    An epoch has as many clips as all parts together. Of them each part has its share, rounded to whole clips. A part
    draws its clips in passes over all of them, each pass in an order of its own and without replacement. The next epoch
    goes on where the last one ended. So a small part is repeated within an epoch, and of a large part no clip comes a
    second time before each came once, which may take several epochs.
    With one part, an epoch is one pass over its clips.
    """

    names: tuple[str, ...]
    clips: tuple[int, ...]  # of each part
    drawn: tuple[int, ...]  # of each part in an epoch; the sum is that of `clips`

    @classmethod
    def by_weight(cls, clips: Mapping[str, int], weights: Mapping[str, float]) -> "Shares":
        """Shares by weight, of parts with these numbers of clips. Raises UserError if an epoch had no clip of a part.

        The clips that remain after rounding down go to the parts with the largest remainders.
        """
        total, of = sum(clips.values()), np.array([weights[name] for name in clips], dtype=np.float64)
        exact = total * of / of.sum()
        drawn = np.floor(exact).astype(np.int64)
        drawn[np.argsort(drawn - exact, kind="stable")[: total - drawn.sum()]] += 1
        for name, count in zip(clips, drawn, strict=True):
            if count == 0:
                raise UserError(
                    f"data.parts.{name}.weight={weights[name]:g} is less than one clip of the {total} of an epoch:"
                    " raise it, or remove the part"
                )
        return cls(tuple(clips), tuple(clips.values()), tuple(drawn.tolist()))

    def draw(self, seed: int, epoch: int) -> np.ndarray:
        """The clips of an epoch, indices into the union, int64 ascending. A repeated clip occurs several times."""
        times = [
            self._times(part, (epoch + 1) * drawn, seed) - self._times(part, epoch * drawn, seed)
            for part, drawn in enumerate(self.drawn)
        ]
        return np.repeat(np.arange(sum(self.clips)), np.concatenate(times))

    def _times(self, part: int, draws: int, seed: int) -> np.ndarray:
        """How often each clip of a part is among the first `draws` that are drawn of it, int64 [clips]."""
        size = self.clips[part]
        passes, rest = divmod(draws, size)
        times = np.full(size, passes)
        if rest:
            order = np.random.default_rng([seed, passes, *self.names[part].encode()]).permutation(size)
            times[order[:rest]] += 1
        return times

    def identity(self) -> dict[str, int]:
        """All values that decide, together with the seed, what is drawn."""
        found: dict[str, int] = {}
        for name, clips, drawn in zip(self.names, self.clips, self.drawn, strict=True):
            found |= {f"parts.{name}.clips": clips, f"parts.{name}.drawn": drawn}
        return found


@dataclass(frozen=True)
class MixedAudio:
    """The audio of a union. The upper bits of a row are the number of its part."""

    parts: tuple[AudioSource, ...]

    def waveform(self, row: int) -> np.ndarray:
        return self.parts[row >> _ROW_BITS].waveform(row & ((1 << _ROW_BITS) - 1))


def union(parts: Mapping[str, Manifest]) -> Manifest:
    """The clips of all parts, part by part. A clip's id is PART/ID, so clips of two parts never share one.

    Skipped clips stay with the parts.
    """
    tables, rows = [], []
    for number, (name, part) in enumerate(parts.items()):
        columns = {key: part.clips[key] for key in _COLUMNS if key in part.clips.column_names}
        columns["clip_id"] = pc.binary_join_element_wise(name, columns["clip_id"].cast(pa.string()), "/")
        columns["speaker"] = columns["speaker"].dictionary_encode()
        tables.append(pa.table(columns))
        rows.append(part.rows + (number << _ROW_BITS))
    # One chunk: the durations are then a view, and need not be copied each time.
    clips = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    audio = MixedAudio(tuple(part.audio for part in parts.values()))
    return Manifest(clips, audio, np.concatenate(rows), origin="the mixture")


def decoded_files(audio: AudioSource) -> list[Path]:
    """The files of decoded audio; none if clips are decoded one by one."""
    if isinstance(audio, MixedAudio):
        files = [decoded_files(part) for part in audio.parts]
        return [file for of_part in files for file in of_part] if all(files) else []
    return [audio.file] if isinstance(audio, DecodedAudio) else []
