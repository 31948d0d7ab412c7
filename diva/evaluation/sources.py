"""Benchmarks of the hub. Their answers are often lists, classes or booleans instead of strings."""

from collections.abc import Sequence

from datasets import ClassLabel, Dataset, Value

from diva.data.corpora.hub import HubDataset

# The maximum length of a clip for a DiVA (DivaProcessor). Unlike in training, it is longer than Whisper's window.
LONGEST_SECONDS = 600.0


class HubBenchmark(HubDataset):
    """A HubDataset in which every column but audio is text, with a column `row` that counts from 0.

    Lists become lines: ["Paris", "paris"] becomes "Paris\\nparis". For lists of objects, such as SQuAD's
    {"text": ..., "answer_start": ...}, `list_field` names the field to use. Classes become their names, booleans "true"
    and "false".
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
        if isinstance(
            values, dict
        ):  # a list of objects, which older versions of the library give as a dict of lists
            values = values.get(self.list_field, [])
        found = [value[self.list_field] if isinstance(value, dict) else value for value in values or []]
        return "\n".join(" ".join(str(value).split()) for value in found)


def _is_list(feature: object, list_field: str | None) -> bool:
    """Whether it is a list of texts or numbers, or a list of objects (or object of lists) that has that field."""
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if isinstance(feature, dict):
        return list_field in feature and _is_list(feature[list_field], None)
    if isinstance(inner, dict):
        return list_field in inner
    return isinstance(inner, Value) and inner.dtype.startswith(("string", "large_string", "int"))
