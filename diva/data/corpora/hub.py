"""A dataset of the Hugging Face hub, or a local folder of the `datasets` library."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, Dataset, DatasetDict, Value, load_dataset, load_from_disk
from datasets.features.features import FeatureType

from diva.audio.decoding import decode, duration_of, to_mono_16khz, whole_numbers_to_float
from diva.audio.frames import WHISPER_SECONDS
from diva.data.manifest import Manifest, named_columns, sound_clips
from diva.errors import AudioFault, UserError

# Names of the speaker column in well-known datasets. The first one that exists is used.
_SPEAKER_COLUMNS = ("client_id", "speaker_id", "speaker")
_NO_OFFSET = pa.array(["", "0", "0.0"])
_PLAIN_TYPES = ("string", "large_string", "int", "uint", "float", "bool")


class HubDataset:
    """A dataset with an audio column and a text column.

    Args:
        path: name on the hub; or a folder, written by `save_to_disk` or with parquet, arrow or audio files.
        name: configuration, if the dataset has several. For data of `save_to_disk` it is the folder `path/name`.
        audio_column: encoded audio (bytes or files), or waveforms as {array, sampling_rate}.
        text_column: transcripts.
        max_seconds: longer clips are skipped.
        splits: our name of a split -> the dataset's name, if they differ.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        audio_column: str = "audio",
        text_column: str = "sentence",
        max_seconds: float = WHISPER_SECONDS,
        splits: Mapping[str, str] | None = None,
    ):
        self.path = path
        self.name = name
        self.audio_column = audio_column
        self.text_column = text_column
        self.max_seconds = max_seconds
        self.splits = dict(splits or {})

    def manifest(self, split: str) -> Manifest:
        """The clips of a split. Raises UserError if the dataset, the split or a column does not exist."""
        origin = f"{self.path}, split {self.splits.get(split, split)}"
        dataset = self._load(self.splits.get(split, split))
        plain = [name for name, feature in dataset.features.items() if _is_plain(feature)]
        audible = [name for name, feature in dataset.features.items() if _holds_audio(feature)]
        _check_column(origin, dataset, "audio_column", self.audio_column, audible)
        _check_column(origin, dataset, "text_column", self.text_column, plain)
        columns = {name: _strings(dataset, name) for name in plain}
        if "offset" in columns and pc.any(pc.invert(pc.is_in(columns["offset"], _NO_OFFSET))).as_py():
            raise UserError(
                f"{origin}: the column 'offset' says which part of the audio is meant, and is not read; remove it where"
                " the audio is cut already, or write a JSONL manifest (data=jsonl), where it is read"
            )
        speaker = next((name for name in _SPEAKER_COLUMNS if name in columns), None)
        columns = named_columns(columns, text=self.text_column, speaker=speaker)
        columns["clip_id"] = pa.chunked_array(
            [[f"{split}-{row}" for row in range(len(dataset))]], pa.string()
        )
        audio = DatasetAudio(_audio_only(dataset, self.audio_column), self.max_seconds)
        return sound_clips(columns, audio, self.max_seconds, faults=[], skipped=[], origin=origin)

    def _load(self, split: str) -> Dataset:
        folder = Path(self.path).expanduser()
        written = _written(folder, self.name)
        try:
            if written is None:
                return load_dataset(str(folder) if folder.is_dir() else self.path, self.name, split=split)
            saved = load_from_disk(str(written))
        # It can raise anything: RuntimeError for a script, ImportError for a package, KeyError for a feature.
        except Exception as error:
            # The library's message lists the existing splits and configurations. Its first error names the cause.
            said = dict.fromkeys(" ".join(str(one).split()) for one in (error, _first_cause(error)))
            raise UserError(
                f"cannot load the dataset {self.path!r}, split {split!r}: {': '.join(said)}"
            ) from error
        parts = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
        if split not in parts:
            raise UserError(f"no split {split!r} in {written}, there are: {', '.join(parts)}")
        return parts[split]


def _first_cause(error: BaseException) -> BaseException:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _written(folder: Path, name: str | None) -> Path | None:
    """The folder that `save_to_disk` wrote: FOLDER, or with a name FOLDER/NAME; None if it wrote neither.

    Raises UserError if FOLDER/NAME does not exist but FOLDER is a dataset. Another configuration must not be used in
    its place.
    """
    if name is None:
        return folder if _is_written(folder) else None
    if _is_written(folder / name):
        return folder / name
    if _is_written(folder):
        raise UserError(
            f"{folder} is one dataset and has no {name!r}: save that one as {folder / name}, or say that this is it"
            " with name=null"
        )
    others = sorted(child.name for child in folder.iterdir() if _is_written(child)) if folder.is_dir() else []
    if others:
        raise UserError(f"no {name!r} in {folder}, there are: {', '.join(others)}")
    return None


def _is_written(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json"))


@dataclass(frozen=True)
class DatasetAudio:
    """The audio of a dataset. The library does not decode it."""

    dataset: Dataset  # with the single column `audio`, in arrow format
    max_seconds: float

    def waveform(self, row: int) -> np.ndarray:
        audio = self._audio(row)
        if isinstance(audio, bytes | Path):
            return decode(audio, self.max_seconds)
        samples, rate = audio
        self._check_length(samples, rate, row)
        return to_mono_16khz(samples, rate, f"row {row}")

    def seconds(self, row: int) -> float:
        audio = self._audio(row)
        if isinstance(audio, bytes | Path):
            return duration_of(audio, self.max_seconds)
        return self._check_length(*audio, row)

    def fingerprint(self, rows: np.ndarray) -> str:
        # The library's fingerprint changes with the files and with every transformation.
        return sha256(f"{self.dataset._fingerprint} {self.max_seconds}".encode() + rows.tobytes()).hexdigest()

    def _check_length(self, samples: np.ndarray, rate: int, row: int) -> float:
        seconds = len(samples) / rate
        if seconds == 0:
            raise AudioFault("zero length", f"row {row} holds no samples")
        if seconds > self.max_seconds:
            raise AudioFault(
                "too long", f"row {row} lasts {seconds:.1f} s, the limit is {self.max_seconds:g} s"
            )
        return seconds

    def _audio(self, row: int) -> bytes | Path | tuple[np.ndarray, int]:
        """Encoded bytes, a file, or samples [S] or [S, channels] with their rate. Raises AudioFault."""
        value = self.dataset[int(row)]["audio"][0]
        fields = dict(value) if value.is_valid else {}
        if "array" in fields:
            return _samples(fields["array"], fields["sampling_rate"].as_py(), row)
        found = {name: field.as_py() for name, field in fields.items()}
        if found.get("bytes"):
            return found["bytes"]
        if found.get("path"):
            return Path(found["path"])
        raise AudioFault("missing file", f"row {row} has no audio")


def _samples(values: pa.ListScalar, rate: int | float | None, row: int) -> tuple[np.ndarray, int]:
    if not rate or rate < 0 or not values.is_valid:
        raise AudioFault("damaged audio", f"row {row} lacks samples or their sampling rate")
    kind = values.type
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    try:
        samples = np.asarray(values.as_py(), dtype=kind.to_pandas_dtype())
    except (ValueError, TypeError) as error:  # nulls in the samples, or channels of unequal length
        raise AudioFault("damaged audio", f"row {row}: {error}") from error
    if samples.ndim > 2 or not np.issubdtype(samples.dtype, np.number):
        raise AudioFault("damaged audio", f"row {row} holds {samples.dtype} {samples.shape}, no waveform")
    if np.issubdtype(samples.dtype, np.integer):
        samples = whole_numbers_to_float(samples)
    # Some datasets have the channels first. There are always fewer channels than samples.
    return samples.T if samples.ndim == 2 and samples.shape[0] < samples.shape[1] else samples, int(rate)


def _holds_audio(feature: FeatureType) -> bool:
    if isinstance(feature, dict):
        return {"array", "sampling_rate"} <= {*feature} or {"bytes", "path"} <= {*feature}
    return isinstance(feature, Audio)


def _is_plain(feature: FeatureType) -> bool:
    """Whether a feature is a single value that can be written as a string."""
    return isinstance(feature, Value) and feature.dtype.startswith(_PLAIN_TYPES)


def _audio_only(dataset: Dataset, column: str) -> Dataset:
    audio = dataset.select_columns([column])
    if column != "audio":
        audio = audio.rename_column(column, "audio")
    if isinstance(audio.features["audio"], Audio):
        # Decoded by diva: the library's decoding needs torchcodec, and does not report what is wrong with a clip.
        audio = audio.cast_column("audio", Audio(decode=False))
    return audio.with_format("arrow")


def _strings(dataset: Dataset, column: str) -> pa.ChunkedArray:
    values = dataset.select_columns([column]).with_format("arrow")[:][column]
    return pc.fill_null(values.cast(pa.string()), "")


def _check_column(origin: str, dataset: Dataset, option: str, column: str, usable: list[str]) -> None:
    if column in usable:
        return
    problem = "holds something else" if column in dataset.column_names else "is not there"
    nearest = difflib.get_close_matches(column, usable, n=1, cutoff=0.0)
    hint = f"did you mean {nearest[0]!r}? There are: {', '.join(usable)}" if nearest else "no other would do"
    raise UserError(f"{origin}: the column {column!r}, given as {option}, {problem}; {hint}")
