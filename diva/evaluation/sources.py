"""Benchmarks of the hub, whose answers are often lists, classes or booleans instead of plain strings."""

from collections.abc import Sequence

from datasets import ClassLabel, Dataset, Value

from diva.data.corpora.hub import HubDataset

# What a DiVA listens to at most (DivaProcessor); longer than one of Whisper's windows, unlike in training.
LONGEST_SECONDS = 600.0


class HubBenchmark(HubDataset):
    """A HubDataset in which every column but audio is text, with a column `row` that counts from 0.

    Lists become lines: ["Paris", "paris"] is "Paris\\nparis". `list_field` is what to take of lists of objects,
    such as SQuAD's {"text": ..., "answer_start": ...}. Classes become their names, booleans "true" and "false".
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        audio_column: str = "audio",
        text_column: str = "sentence",
        max_seconds: float = LONGEST_SECONDS,
        list_field: str | None = None,
    ):
        super().__init__(path, name, audio_column, text_column, max_seconds)
        self.list_field = list_field

    def _load(self, split: str) -> Dataset:
        dataset = super()._load(split)
        for name, feature in dataset.features.items():
            if isinstance(feature, ClassLabel):
                values = [feature.int2str(value) if value is not None else "" for value in dataset[name]]
            elif _is_list(feature, self.list_field):
                values = [self._lines(value) for value in dataset[name]]
            else:
                continue
            dataset = dataset.remove_columns(name).add_column(name, values)
        return dataset.add_column("row", [str(row) for row in range(len(dataset))])

    def _lines(self, values: Sequence | dict | None) -> str:
        if isinstance(values, dict):  # a list of objects, turned inside out by older versions of the library
            values = values.get(self.list_field, [])
        found = [value[self.list_field] if isinstance(value, dict) else value for value in values or []]
        return "\n".join(" ".join(str(value).split()) for value in found)


def _is_list(feature: object, list_field: str | None) -> bool:
    """Lists of texts or numbers; lists of objects, and objects of lists, where they have that field."""
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if isinstance(feature, dict):
        return list_field in feature and _is_list(feature[list_field], None)
    if isinstance(inner, dict):
        return list_field in inner
    return isinstance(inner, Value) and inner.dtype.startswith(("string", "large_string", "int"))
