"""Shards whole and broken: every sample is either in the manifest or in its list of skips."""

import io
import json
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch.utils.data import DataLoader

from diva.data.batch import BatchPlan, SpeechDataset
from diva.data.corpora import webdataset
from diva.data.corpora.webdataset import WebDataset
from diva.data.decoded import DecodedAudio, decode_once
from diva.data.manifest import Manifest, check_skipped
from diva.errors import AudioFault, UserError

pytestmark = pytest.mark.usefixtures("cache")


def speech(seconds: float = 0.5, ending: str = "wav", seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, int(seconds * 16_000))
    buffer = io.BytesIO()
    container, coding = {"opus": ("OGG", "OPUS"), "ogg": ("OGG", "VORBIS")}.get(
        ending, (ending.upper(), None)
    )
    soundfile.write(buffer, noise, 16_000, format=container, subtype=coding)
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            data = content.encode() if isinstance(content, str) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def clips(*keys: str) -> dict[str, bytes | str]:
    """Samples whose text is their key."""
    return {name: value for key in keys for name, value in ((f"{key}.wav", speech()), (f"{key}.txt", key))}


def texts(manifest: Manifest) -> list[str]:
    return [manifest.text(index) for index in range(len(manifest))]


def faults(manifest: Manifest) -> dict[str, str]:
    return {skip.clip_id: skip.reason for skip in manifest.skipped}


def test_audio_of_every_kind_with_text_of_either_kind(tmp_path: Path):
    members: dict[str, bytes | str] = {}
    for number, ending in enumerate(webdataset.AUDIO_ENDINGS):
        members[f"speech/{ending}.{ending.upper()}"] = speech(1.0, ending, number)
        members[f"speech/{ending}.json"] = json.dumps(
            {"text": f" in {ending}\n", "speaker": "anna", "duration": 1, "n": 3}
        )
    shard(tmp_path / "train" / "0.tar", members)
    shard(
        tmp_path / "train" / "1.tar",
        {"b.txt": "\ufeffboth", "b.json": '{"text": "no"}', "b.wav": speech(0.5)},
    )
    manifest = WebDataset(tmp_path).manifest("train")
    assert texts(manifest) == [f"in {ending}" for ending in webdataset.AUDIO_ENDINGS] + ["both"]
    assert manifest.column("clip_id")[0] == "0/speech/mp3"
    assert manifest.column("speaker") == ["anna"] * 5 + [""]
    np.testing.assert_array_equal(manifest.durations, np.float32([1] * 5 + [np.nan]))
    assert manifest.skipped == []
    manifest = pickle.loads(pickle.dumps(manifest))
    for index in reversed(range(6)):
        seconds = len(manifest.waveform(index)) / 16_000
        assert seconds == pytest.approx(manifest.audio.seconds(index), abs=0.1)
        assert seconds == pytest.approx(1.0 if index < 5 else 0.5, abs=0.1)
    lossless = manifest.waveform(webdataset.AUDIO_ENDINGS.index("flac"))
    np.testing.assert_allclose(lossless, np.random.default_rng(2).uniform(-0.3, 0.3, 16_000), atol=1e-4)


def test_every_sample_is_read_or_skipped_with_its_reason(tmp_path: Path):
    json_texts = {
        "no-object": "[1]",
        "no-json": "{",
        "no-key": '{"sentence": "x"}',
        "no-string": '{"text": 3}',
        "half": r'{"text": "\ud800"}',
        "deep": "[" * 100_000,
        "long-number": '{"text": "sound", "duration": 1' + "0" * 5_000 + "}",
        "speaker": '{"text": "sound", "speaker": 7, "duration": true}',
    }
    members = {
        f"{key}.{end}": value
        for key, text in json_texts.items()
        for end, value in (("wav", speech()), ("json", text))
    }
    members |= clips("sound") | {
        "mute.wav": speech(),
        "unheard.txt": "text alone",
        "other.m4a": b"x",
        "other.txt": "ending unknown",
        "blank.wav": speech(),
        "blank.txt": " \n",
        "latin.wav": speech(),
        "latin.txt": b"caf\xe9",
        "huge.wav": speech(),
        "huge.txt": "x" * (2 << 20),
        "a.b.wav": speech(),
        "a.b.txt": "two dots",
        "._sound.wav": b"of another file system",
        os.fsdecode(b"\xff.wav"): speech(),
        os.fsdecode(b"\xff.txt"): "odd name",
    }
    shard(tmp_path / "train-0.tar", members)
    manifest = WebDataset(tmp_path).manifest("train")
    assert texts(manifest) == ["sound", "sound", "odd name"]
    assert np.isnan(manifest.durations).all()
    assert {key.removeprefix("train-0/"): reason for key, reason in faults(manifest).items()} == {
        "no-object": "damaged row",
        "no-json": "damaged row",
        "no-key": "missing text",
        "no-string": "missing text",
        "half": "damaged row",
        "deep": "damaged row",
        "long-number": "too long",
        "mute": "missing text",
        "unheard": "missing file",
        "other": "missing file",
        "blank": "empty text",
        "latin": "damaged row",
        "huge": "damaged row",
        "a": "missing file",
    }
    details = {skip.clip_id: skip.detail for skip in manifest.skipped}
    assert "it has: b.wav, b.txt" in details["train-0/a"]
    assert "'text'" in details["train-0/no-key"]
    renamed = WebDataset(tmp_path, text_key="sentence").manifest("train")
    assert "x" in texts(renamed)


def test_damaged_audio_is_named_with_its_shard(tmp_path: Path):
    members = clips("good", "bad", "quiet", "long")
    members["bad.wav"], members["long.wav"] = b"junk" * 100, speech(3.0)
    members["quiet.wav"] = soundfile_zeros()
    path = shard(tmp_path / "train-0.tar", members)
    manifest = WebDataset(tmp_path, max_seconds=2.0).manifest("train")
    for index, (name, reason) in {
        1: ("bad", "damaged audio"),
        2: ("quiet", "silence"),
        3: ("long", "too long"),
    }.items():
        with pytest.raises(AudioFault) as fault:
            manifest.waveform(index)
        assert [fault.value.reason, fault.value.detail.startswith(f"{name}.wav in {path}")] == [reason, True]
        assert "bytes" not in fault.value.detail
    decoded = decode_once(manifest, 1.0, 1)
    assert isinstance(decoded.audio, DecodedAudio)
    assert [texts(decoded), len(decoded.skipped)] == [["good"], 3]


def soundfile_zeros() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(8_000), 16_000, format="WAV")
    return buffer.getvalue()


def tear(path: Path, how: str) -> None:
    """Damage the third of three samples of `path`, or what comes before it."""
    data = bytearray(path.read_bytes())
    third = data.index(b"third.wav")
    cuts = {"in a file": third + 1000, "in a header": third + 100, "between files": third}
    if how in cuts:
        data = data[: cuts[how]]
    elif how == "header flipped":
        data[third + 148] ^= 1
    elif how == "overwritten":
        data[third:] = b"\xa5" * (len(data) - third)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how", ["in a file", "in a header", "between files", "header flipped", "overwritten"]
)
def test_a_torn_shard_gives_what_lies_before_the_tear(tmp_path: Path, how: str):
    tear(shard(tmp_path / "train-0.tar", clips("first", "second", "third")), how)
    shard(tmp_path / "train-1.tar", clips("fourth"))
    manifest = WebDataset(tmp_path).manifest("train")
    assert texts(manifest) == ["first", "second", "fourth"]
    assert faults(manifest) == {"train-0.tar": "torn archive"}
    assert manifest.waveform(1).any()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", bytes(700), b"\x1f\x8b" * 600])
def test_a_shard_that_is_none_is_counted(tmp_path: Path, content: bytes):
    shard(tmp_path / "train-0.tar", clips("sound"))
    (tmp_path / "train-1.tar").write_bytes(content)
    (tmp_path / "train-2.tar").mkdir()
    manifest = WebDataset(tmp_path).manifest("train")
    assert texts(manifest) == ["sound"]
    expected = {} if content == bytes(700) else {"train-1.tar": "torn archive"}
    assert faults(manifest) == expected | {"train-2.tar": "missing file"}
    with pytest.raises(UserError, match=r"cannot be used: 1 .*missing file"):
        check_skipped({"train": manifest}, 0.05, "skipped.tsv")


def test_a_shard_that_changes_after_it_was_indexed(tmp_path: Path):
    path = shard(tmp_path / "train-0.tar", clips("a", "b"))
    manifest = WebDataset(tmp_path).manifest("train")
    before = manifest.audio.fingerprint(manifest.rows)
    os.utime(path, (1, 1))
    assert manifest.audio.fingerprint(manifest.rows) != before
    assert manifest.audio.fingerprint(manifest.rows[:1]) != manifest.audio.fingerprint(manifest.rows)
    path.write_bytes(path.read_bytes()[:4_000])
    with pytest.raises(AudioFault, match=r"damaged audio: b\.wav: .* was cut off"):
        manifest.waveform(1)
    path.unlink()
    with pytest.raises(AudioFault, match="missing file"):
        manifest.waveform(0)


def test_splits_are_folders_or_prefixes_or_where_a_pattern_says(tmp_path: Path):
    shard(tmp_path / "folders" / "train" / "b.tar", clips("b"))
    shard(tmp_path / "folders" / "train" / "a.tar", clips("a"))
    shard(tmp_path / "folders" / "dev" / "a.tar", clips("c"))
    folders = WebDataset(tmp_path / "folders")
    assert [texts(folders.manifest(split)) for split in ("train", "dev")] == [["a", "b"], ["c"]]
    for name, key in {"train-clean-001": "a", "train-clean-002": "b", "dev-000": "c"}.items():
        shard(tmp_path / "flat" / f"{name}.tar", clips(key))
    flat = WebDataset(tmp_path / "flat")
    assert [texts(flat.manifest(split)) for split in ("train", "dev")] == [["a", "b"], ["c"]]
    pattern = WebDataset(f"{tmp_path}/flat/SPLIT-*2.tar")
    assert texts(pattern.manifest("train")) == ["b"]
    with pytest.raises(UserError, match=r"test/\*\.tar or .*test-\*\.tar .* shards of: dev, train$"):
        folders.manifest("test")
    with pytest.raises(UserError, match=r"shards of: dev, train-clean$"):
        flat.manifest("test")
    with pytest.raises(UserError, match=r"no shard .*flat/dev-\*2\.tar for the split 'dev'$"):
        pattern.manifest("dev")
    with pytest.raises(UserError, match="no folder of shards, and no pattern with the word SPLIT"):
        WebDataset(f"{tmp_path}/flat/train-001.tar").manifest("train")


def test_shards_are_indexed_once_and_again_when_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shard(tmp_path / "train-0.tar", clips("a") | {"b.wav": speech()})
    first = WebDataset(tmp_path).manifest("train")
    with monkeypatch.context() as patch:
        patch.setattr(webdataset, "_index", lambda *_: pytest.fail("indexed again"))
        second = WebDataset(tmp_path).manifest("train")
    assert texts(second) == texts(first) == ["a"]
    assert second.skipped == first.skipped != []
    shard(tmp_path / "train-1.tar", clips("c"))
    assert texts(WebDataset(tmp_path).manifest("train")) == ["a", "c"]


def index(root: Path, barrier, results) -> None:
    barrier.wait()
    results.put(texts(WebDataset(root).manifest("train")))


@pytest.mark.integration
def test_two_processes_that_index_at_once_find_the_same(tmp_path: Path, cache: Path):
    for number in range(20):
        shard(tmp_path / f"train-{number:02}.tar", clips(*(f"{number}-{i}" for i in range(20))))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=index, args=(tmp_path, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = results.get(timeout=120), results.get(timeout=120)
    for process in processes:
        process.join()
    assert first == second == [f"{number}-{i}" for number in range(20) for i in range(20)]
    assert len([folder for folder in (cache / "shards").iterdir() if folder.is_dir()]) == 1


class ByteTokenizer:
    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(text.encode()) for text in texts]}


def test_workers_read_clips_in_any_order(tmp_path: Path):
    for number in range(3):
        members = {f"{i}.wav": speech(seed=10 * number + i) for i in range(4)}
        shard(tmp_path / f"train-{number}.tar", members | {f"{i}.txt": f"{number}{i}" for i in range(4)})
    manifest = WebDataset(tmp_path).manifest("train")
    dataset = SpeechDataset(manifest, ByteTokenizer(), max_tokens=4)
    order = np.random.default_rng(0).permutation(12)
    plans = [BatchPlan(order[start : start + 3].tolist(), 26_000) for start in range(0, 12, 3)]
    loaded = DataLoader(dataset, batch_size=None, sampler=plans, num_workers=2)
    for batch, plan in zip(loaded, plans, strict=True):
        assert batch.faults == []
        for row, position in enumerate(plan.clips):
            seed = 10 * (position // 4) + position % 4
            expected = np.random.default_rng(seed).uniform(-0.3, 0.3, 8_000)
            np.testing.assert_allclose(batch.waveforms[row, :8_000], expected, atol=1e-4)
            assert bytes(batch.token_ids[row, :2].tolist()).decode() == manifest.text(position)


@pytest.mark.faults
def test_samples_of_one_name_are_refused_and_counted(tmp_path: Path):
    """Two shards put together: what is read last would get the other's text."""
    path = tmp_path / "train-0.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in [
            ("a.wav", speech(0.5)),
            ("a.txt", b"first"),
            ("b.wav", speech(0.7)),
            ("b.txt", b"sound"),
            ("./a.WAV", speech(0.9)),
            ("a.txt", b"second"),
            ("c.txt", b"one"),
            ("c.txt", b"other"),
            ("c.wav", speech(0.5)),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    manifest = WebDataset(tmp_path).manifest("train")
    assert texts(manifest) == ["sound"]
    assert len(manifest.waveform(0)) == 11_200
    assert [(skip.clip_id, skip.reason) for skip in manifest.skipped] == [
        ("train-0/a", "double name"),
        ("train-0/a", "double name"),
        ("train-0/c", "double name"),
        ("train-0/c", "double name"),
    ]


@pytest.mark.faults
@pytest.mark.parametrize("key", ["offset", "start", "channel"])
def test_a_json_that_means_a_part_of_the_audio_is_refused_by_name(tmp_path: Path, key: str):
    shard(
        tmp_path / "train-0.tar",
        {"a.wav": speech(), "a.json": json.dumps({"text": "x", key: 1.5}), **clips("b")},
    )
    manifest = WebDataset(tmp_path).manifest("train")
    assert texts(manifest) == ["b"]
    assert [skip.reason for skip in manifest.skipped] == ["damaged row"]
    assert repr(key) in manifest.skipped[0].detail
