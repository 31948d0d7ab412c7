"""Datasets of the `datasets` library on local disk, without the hub and without torchcodec."""

import io
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, DatasetDict, Features, List, Value

from diva.data.corpora.hub import HubDataset
from diva.errors import AudioFault, UserError

ENCODED = {"bytes": Value("binary"), "path": Value("string")}


@pytest.fixture(autouse=True)
def library_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def encoded(seconds: float, rate: int = 16_000, file_format: str = "MP3") -> bytes:
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, int(seconds * rate))
    buffer = io.BytesIO()
    soundfile.write(buffer, noise, rate, format=file_format)
    return buffer.getvalue()


def speech(**columns: list) -> Dataset:
    """Four clips: one at 48 kHz, junk, nothing at all, and one without text that lasts 2 s."""
    audio = [
        {"bytes": encoded(0.5, 48_000), "path": "a.mp3"},
        {"bytes": b"junk" * 50, "path": "b.mp3"},
        None,
        {"bytes": encoded(2.0, file_format="FLAC"), "path": None},
    ]
    texts = ["one", "two", "three", None]
    further = {"speaker_id": [1, 2, 3, 4], "tags": [["x"]] * 4, "duration": [1.0] * 4}
    data = {"audio": audio, "sentence": texts} | further | columns
    plain = Dataset.from_dict({name: values for name, values in data.items() if name != "audio"})
    features = Features({"audio": ENCODED} | plain.features)
    return Dataset.from_dict(data, features=features).cast_column("audio", Audio())


def test_a_saved_dataset_is_a_corpus(tmp_path: Path):
    DatasetDict({"train": speech(), "validation": speech()}).save_to_disk(tmp_path / "saved")
    corpus = HubDataset(str(tmp_path / "saved"), splits={"dev": "validation"}, max_seconds=1.0)
    manifest = corpus.manifest("dev")
    assert manifest.column("clip_id") == ["dev-0", "dev-1", "dev-2"]
    assert manifest.column("speaker") == ["1", "2", "3"]
    assert manifest.clips.column_names == ["clip_id", "text", "duration", "speaker", "corpus_duration"]
    assert np.isnan(manifest.durations).all()
    assert [(skip.clip_id, skip.reason) for skip in manifest.skipped] == [("dev-3", "empty text")]
    assert len(manifest.waveform(0)) == pytest.approx(8_000, abs=1_200)
    assert manifest.audio.seconds(0) == pytest.approx(0.5, abs=0.08)
    for index, reason in {1: "damaged audio", 2: "missing file"}.items():
        for ask in (manifest.waveform, manifest.audio.seconds):
            with pytest.raises(AudioFault) as fault:
                ask(index)
            assert fault.value.reason == reason
    with pytest.raises(AudioFault, match="too long"):
        manifest.audio.seconds(3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(manifest)).waveform(0), manifest.waveform(0))
    with pytest.raises(UserError, match=r"no split 'test' in .* there are: train, validation"):
        corpus.manifest("test")


def test_a_single_saved_dataset_is_the_train_split(tmp_path: Path):
    speech().save_to_disk(tmp_path / "saved")
    assert len(HubDataset(str(tmp_path / "saved")).manifest("train")) == 3
    with pytest.raises(UserError, match=r"no split 'dev' in .* there are: train"):
        HubDataset(str(tmp_path / "saved")).manifest("dev")


def test_a_saved_folder_has_a_dataset_for_each_name(tmp_path: Path):
    """One path for all pairs of a benchmark, as the command for CoVoST 2 has it: each gets its own data."""
    for name, words in {"en_de": ["eins", "zwei"], "en_tr": ["bir", "iki"]}.items():
        part = speech(sentence=[*words, "x", "y"])
        DatasetDict({"validation": part}).save_to_disk(tmp_path / "pairs" / name)
    speech(sentence=["ein"] * 4).save_to_disk(tmp_path / "one")
    for name, first in {"en_de": "eins", "en_tr": "bir"}.items():
        manifest = HubDataset(str(tmp_path / "pairs"), name).manifest("validation")
        assert manifest.text(0) == first
    with pytest.raises(UserError, match=r"no 'en_ja' in .*pairs, there are: en_de, en_tr"):
        HubDataset(str(tmp_path / "pairs"), "en_ja").manifest("validation")
    with pytest.raises(UserError, match=r"one is one dataset and has no 'en_de': .* name=null"):
        HubDataset(str(tmp_path / "one"), "en_de").manifest("train")
    assert HubDataset(str(tmp_path / "one")).manifest("train").text(0) == "ein"


def test_a_folder_of_parquet_files(tmp_path: Path):
    (tmp_path / "parquet").mkdir()
    speech().rename_column("audio", "speech").to_parquet(
        tmp_path / "parquet" / "train-00000-of-00001.parquet"
    )
    corpus = HubDataset(str(tmp_path / "parquet"), audio_column="speech")
    manifest = corpus.manifest("train")
    assert len(manifest.waveform(0)) == pytest.approx(8_000, abs=1_200)
    again, rows = corpus.manifest("train"), manifest.rows
    assert again.audio.fingerprint(rows) == manifest.audio.fingerprint(rows)
    assert again.audio.fingerprint(rows[1:]) != manifest.audio.fingerprint(rows)
    with pytest.raises(UserError, match=r"Unknown split \"dev\". Should be one of \['train'\]"):
        corpus.manifest("dev")


def test_columns_that_name_files(tmp_path: Path):
    (tmp_path / "a.mp3").write_bytes(encoded(0.5))
    audio = [{"bytes": None, "path": str(tmp_path / name)} for name in ("a.mp3", "gone.mp3")]
    features = Features({"audio": ENCODED, "sentence": Value("string")})
    dataset = Dataset.from_dict({"audio": audio, "sentence": ["one", "two"]}, features=features)
    dataset.save_to_disk(tmp_path / "saved")
    manifest = HubDataset(str(tmp_path / "saved")).manifest("train")
    assert manifest.waveform(0).any()
    with pytest.raises(AudioFault, match="missing file"):
        manifest.waveform(1)


def test_a_wrong_column_names_the_nearest_right_one(tmp_path: Path):
    speech(text=["x"] * 4).save_to_disk(tmp_path / "saved")
    for options, message in {
        ("audio_column", "audoi"): "'audoi', given as audio_column, is not there; did you mean 'audio'?",
        (
            "audio_column",
            "text",
        ): "'text', given as audio_column, holds something else; did you mean 'audio'?",
        ("text_column", "sentences"): "is not there; did you mean 'sentence'? There are: sentence, ",
        ("text_column", "tags"): "'tags', given as text_column, holds something else",
    }.items():
        with pytest.raises(UserError) as refusal:
            HubDataset(str(tmp_path / "saved"), **dict([options])).manifest("train")
        assert message in str(refusal.value)


def test_a_folder_that_is_no_dataset_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "state.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path, tmp_path / "empty", tmp_path / "gone"):
        with pytest.raises(UserError, match="cannot load the dataset") as refusal:
            HubDataset(str(path)).manifest("train")
        assert "\n" not in str(refusal.value)


def test_columns_of_samples_become_clips_or_faults(tmp_path: Path):
    wave = (0.5 * np.sin(np.arange(8_000) * 0.1)).astype(np.float32)
    samples = {
        "mono": (wave.tolist(), 16_000),
        "half rate": (wave.tolist(), 8_000),
        "none": ([], 16_000),
        "no rate": (wave.tolist(), None),
        "no number": ([None, 0.1], 16_000),
        "nothing": (None, 16_000),
        "long": (np.tile(wave, 4).tolist(), 16_000),
    }
    rows = [{"array": array, "sampling_rate": rate} for array, rate in samples.values()]
    features = Features(
        {
            "audio": {"array": List(Value("float32")), "sampling_rate": Value("int64")},
            "sentence": Value("string"),
        }
    )
    Dataset.from_dict({"audio": rows, "sentence": list(samples)}, features=features).save_to_disk(
        tmp_path / "d"
    )
    manifest = HubDataset(str(tmp_path / "d"), max_seconds=1.5).manifest("train")
    np.testing.assert_array_equal(manifest.waveform(0), wave)
    assert [len(manifest.waveform(1)), manifest.audio.seconds(1)] == [16_000, 1.0]
    for index, reason in enumerate(["zero length", *["damaged audio"] * 3, "too long"], start=2):
        with pytest.raises(AudioFault) as fault:
            manifest.waveform(index)
        assert fault.value.reason == reason, manifest.text(index)


def test_decoded_integers_and_channels_are_scaled_and_mixed(tmp_path: Path):
    wave = np.tile([16_384, -16_384, 0, 0], 400)
    stereo = np.stack([wave, np.roll(wave, 2)]).astype(np.int16)
    rows = [{"array": array.tolist(), "sampling_rate": 16_000} for array in (stereo, stereo.T)]
    features = Features(
        {
            "audio": {"array": List(List(Value("int16"))), "sampling_rate": Value("int64")},
            "sentence": Value("string"),
        }
    )
    Dataset.from_dict({"audio": rows, "sentence": ["a", "b"]}, features=features).save_to_disk(tmp_path / "d")
    manifest = HubDataset(str(tmp_path / "d")).manifest("train")
    for index in range(2):
        np.testing.assert_array_equal(
            manifest.waveform(index), np.tile([0.25, -0.25], 800).astype(np.float32)
        )


@pytest.mark.faults
def test_a_folder_of_an_old_script_is_one_line(tmp_path: Path):
    folder = tmp_path / "speech"
    folder.mkdir()
    (folder / "speech.py").write_text("import datasets\n")
    with pytest.raises(UserError, match=r"cannot load the dataset .*Dataset scripts are no longer supported"):
        HubDataset(str(folder)).manifest("train")


@pytest.mark.faults
def test_the_cause_of_what_the_library_raises_is_said(monkeypatch: pytest.MonkeyPatch):
    def load(*_, **__):
        try:
            raise ImportError("To support encoding audio data, please install 'torchcodec'.")
        except ImportError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    monkeypatch.setattr("diva.data.corpora.hub.load_dataset", load)
    with pytest.raises(UserError, match=r"while generating the dataset: .*install 'torchcodec'"):
        HubDataset("any/thing").manifest("train")


@pytest.mark.faults
def test_a_column_of_offsets_is_refused_by_name(tmp_path: Path):
    speech(offset=[0.0, 1.5, 2.0, 3.0]).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="the column 'offset' says which part of the audio is meant"):
        HubDataset(str(tmp_path / "saved")).manifest("train")
    speech(offset=[0.0] * 4).save_to_disk(tmp_path / "cut")
    assert len(HubDataset(str(tmp_path / "cut"), max_seconds=1.0).manifest("train")) == 3
