"""JSONL manifests, with every way that a line can be damaged."""

import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from diva.data.corpora.jsonl import UNREAD, JsonlCorpus, _block, _rows
from diva.data.decoded import decode_once
from diva.data.manifest import Skip, check_skipped, count_by_reason
from diva.errors import AudioFault, UserError


def clip(path: Path, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, int(seconds * 16_000))
    soundfile.write(path, noise, 16_000)
    return path


def test_every_line_is_read_or_skipped_with_its_number(tmp_path: Path):
    clip(tmp_path / "corpus" / "a.mp3")
    clip(tmp_path / "corpus" / "sub" / "b.flac")
    elsewhere = clip(tmp_path / "elsewhere" / "c.wav")
    (tmp_path / "corpus" / "loop.mp3").symlink_to("loop.mp3")
    sound = [
        {"audio": "a.mp3", "text": " hello\tyou ", "duration": 0.5, "speaker": "anna", "answer": "42"},
        {"audio": "sub/b.flac", "text": "two", "duration": "unknown", "tags": ["x", 1], "clip_id": "b"},
        {"audio": str(elsewhere), "text": "three", "duration": None, "answer": None, "checked": True},
    ]
    faulty = [
        {"audio": "a.mp3", "text": " "},
        {"audio": "a.mp3", "text": "x", "duration": 0},
        {"audio": "a.mp3", "text": "x", "duration": 31},
        {"audio": "a.mp3", "text": "x", "duration": 1e300},
        {"audio": "gone.mp3", "text": "x"},
        {"audio": "sub", "text": "x"},
        {"audio": "nul\0/a.mp3", "text": "x"},
    ]
    damaged = [
        '{"audio": "a.mp3", "text": "cut o',
        '{"audio": "a.mp3", "text": "x", "duration": ' + "9" * 400 + "}",
        '["a.mp3", "x"]',
        '{"audio": "a.mp3"}',
        '{"audio": 1, "text": "x"}',
        '{"audio": "a.mp3", "text": "half a \\ud800 pair"}',
        "[" * 100_000,
        "",
    ]
    lines = [*map(json.dumps, sound), *map(json.dumps, faulty), *damaged]
    file = tmp_path / "corpus" / "train.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b'{"audio": "a.mp3", "text": "\xff"}\n')

    manifest = JsonlCorpus(tmp_path / "corpus").manifest("train")

    assert [manifest.text(i) for i in range(len(manifest))] == ["hello\tyou", "two", "three"]
    assert manifest.column("clip_id") == ["a.mp3", "sub/b.flac", str(elsewhere)]
    assert manifest.column("speaker") == ["anna", "", ""]
    assert manifest.column("answer") == ["42", "", ""]
    assert manifest.column("tags") == ["", '["x", 1]', ""]
    assert manifest.column("checked") == ["", "", "true"]
    assert manifest.column("corpus_clip_id") == ["", "b", ""]
    np.testing.assert_array_equal(manifest.durations, np.float32([0.5, np.nan, np.nan]))
    assert [len(manifest.waveform(i)) for i in (1, 2)] == [8_000, 8_000]
    assert count_by_reason(manifest.skipped) == {
        "damaged row": 8,
        "missing file": 3,
        "empty text": 1,
        "zero length": 1,
        "too long": 2,
    }
    numbers = [skip.clip_id for skip in manifest.skipped if skip.reason == "damaged row"]
    assert numbers == [f"train.jsonl:{number}" for number in range(11, 19)]


def test_splits_are_files_by_name_or_as_given(tmp_path: Path):
    clip(tmp_path / "a.mp3")
    for name in ("train.jsonl", "mine.txt"):
        (tmp_path / name).write_text('{"audio": "a.mp3", "text": "hello"}\n')
    assert len(JsonlCorpus(str(tmp_path)).manifest("train")) == 1
    corpus = JsonlCorpus({"dev": tmp_path / "mine.txt", "test": tmp_path / "gone.jsonl"})
    assert len(corpus.manifest("dev")) == 1
    with pytest.raises(UserError, match="no split 'train' in this corpus, there are: dev, test"):
        corpus.manifest("train")
    with pytest.raises(UserError, match=r"no file .*gone\.jsonl, given for the split 'test'"):
        corpus.manifest("test")
    with pytest.raises(UserError, match=r"is no folder that holds a file SPLIT.jsonl"):
        JsonlCorpus(tmp_path / "mine.txt")


def test_an_empty_file_is_an_empty_manifest(tmp_path: Path):
    (tmp_path / "train.jsonl").touch()
    manifest = JsonlCorpus(tmp_path).manifest("train")
    assert [len(manifest), manifest.skipped, manifest.clips.column_names[:3]] == [
        0,
        [],
        ["clip_id", "text", "duration"],
    ]


def test_the_fast_reader_sees_what_the_careful_one_sees(tmp_path: Path):
    """Blocks of lines at random, of values that JSON libraries treat differently."""
    rng = random.Random(0)
    texts = [
        "a.mp3",
        "",
        "žluťoučký",
        "2020-01-01 00:00:00",
        "half \\ud800",
        "\\ud83d\\ude00",
        "tab\\t",
        "\\u00e9",
    ]
    odd = [
        *map(json.dumps, [None, True, 3, -0.5, [1], {"a": 1}]),
        "-0",
        "1e999",
        "NaN",
        "12345678901234567890",
    ]
    whole = [
        "",
        "   ",
        "\t\r",
        "{}",
        "[]",
        "{",
        '{"audio": "a", "text": "b"} {"audio": "c", "text": "d"}',
        "\xa0",
    ]

    def line(wild: float, durations: list[str]) -> str:
        if rng.random() < wild:
            return rng.choice(whole)
        strings = [f'"{rng.choice(texts)}"' for _ in range(4)]
        keys = ["audio", "text", rng.choice([*["speaker"] * 9, "audio"]), "answer"]
        values = [rng.choice(odd) if rng.random() < wild else value for value in strings]
        pairs = [*zip(keys, values, strict=True), ("duration", rng.choice(durations))]
        if rng.random() < 0.2:
            pairs.append(
                (rng.choice(["offset", "start", "channel", "audio_filepath"]), rng.choice(["0", "-1", '"x"']))
            )
        kept = pairs if rng.random() < 0.9 else pairs[:-1]
        return "{" + ", ".join(f'"{key}": {value}' for key, value in kept) + "}"

    fast = 0
    for _ in range(3000):
        wild = rng.choice([0, 0, 0.05])
        durations = ["1", "2.5", "null", "-3e2"] if wild == 0 else ["1", '"x"', "true", "NaN"]
        lines = [line(wild, durations).encode() + b"\n" for _ in range(rng.randint(1, 4))]
        skipped: list[Skip] = []
        careful, quick = _rows(tmp_path, 1, lines, skipped), _block(lines)
        if quick is not None:
            fast += 1
            assert skipped == []
            for name in careful.column_names:
                ours, theirs = (
                    ["" if x is None else str(x) for x in t[name].to_pylist()] for t in (quick, careful)
                )
                assert ours == theirs, (name, lines)
            assert set(quick.column_names) == set(careful.column_names)
    assert fast > 100


def rows(file: Path, *lines: dict) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def stairs(path: Path) -> Path:
    """Ten seconds, each louder than the one before."""
    samples = np.repeat(np.arange(1, 11) / 20, 16_000) * np.tile([1, -1], 80_000)
    soundfile.write(path, samples, 16_000)
    return path


@pytest.mark.faults
@pytest.mark.parametrize("gigabytes", [0.0, 1.0])
def test_rows_with_an_offset_are_segments_of_their_file(tmp_path: Path, gigabytes: float, monkeypatch):
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    stairs(tmp_path / "long.wav")
    rows(
        tmp_path / "train.jsonl",
        {"audio": "long.wav", "text": "third and fourth", "offset": 2, "duration": 2.0},
        {"audio": "long.wav", "text": "last", "offset": 9.0},
        {"audio": "long.wav", "text": "first", "offset": 0, "duration": 1},
        {"audio": "long.wav", "text": "all"},
        {"audio": "long.wav", "text": "behind the end", "offset": 9.5, "duration": 3},
        {"audio": "long.wav", "text": "x", "offset": -1, "duration": 3},
        {"audio": "long.wav", "text": "x", "offset": "2", "duration": 3},
    )
    manifest = JsonlCorpus(tmp_path).manifest("train")
    assert manifest.column("clip_id")[:3] == ["long.wav@2", "long.wav@9", "long.wav@0"]
    manifest = decode_once(manifest, gigabytes, 1)
    heard, faults = {}, {skip.reason for skip in manifest.skipped}
    for index in range(len(manifest)):
        try:
            waveform = np.abs(manifest.waveform(index))
        except AudioFault as fault:
            faults.add(fault.reason)
        else:
            heard[manifest.text(index)] = (len(waveform), waveform.min(), waveform.max())
    assert faults == {"damaged row", "ends early"}
    expected = {
        "third and fourth": (32_000, 0.15, 0.2),
        "last": (16_000, 0.5, 0.5),
        "first": (16_000, 0.05, 0.05),
        "all": (160_000, 0.05, 0.5),
    }
    assert heard.keys() == expected.keys()
    for text, values in expected.items():
        assert heard[text] == pytest.approx(values, abs=1e-3)
    assert sum(skip.reason == "damaged row" for skip in manifest.skipped) == 2


@pytest.mark.faults
@pytest.mark.parametrize("key", UNREAD)
def test_a_key_that_means_a_part_of_the_audio_is_refused_by_name(tmp_path: Path, key: str):
    clip(tmp_path / "a.wav")
    rows(
        tmp_path / "train.jsonl",
        {"audio": "a.wav", "text": "x", key: 1},
        {"audio": "a.wav", "text": "x", key: None},
    )
    manifest = JsonlCorpus(tmp_path).manifest("train")
    assert len(manifest) == 1
    assert [skip.reason for skip in manifest.skipped] == ["damaged row"]
    assert f"'{key}' says which part of the audio is meant" in manifest.skipped[0].detail


@pytest.mark.faults
def test_manifests_as_others_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    clip(tmp_path / "home" / "a.wav")
    clip(tmp_path / "my clips" / "b.wav")
    decomposed, composed = (unicodedata.normalize(form, "für/größe.wav") for form in ("NFD", "NFC"))
    clip(tmp_path / decomposed)
    (tmp_path / "NFC").mkdir()
    clip(tmp_path / "NFC" / unicodedata.normalize("NFC", "é.wav"))
    given = [
        "~/a.wav",
        f"file://{tmp_path}/my%20clips/b.wav",
        composed,
        unicodedata.normalize("NFD", "NFC/é.wav"),
    ]
    rows(
        tmp_path / "train_manifest.json",
        *({"audio_filepath": path, "text": path, "duration": 0.5} for path in given),
    )
    manifest = JsonlCorpus(tmp_path).manifest("train")
    assert [skip.detail for skip in manifest.skipped] == []
    assert manifest.column("clip_id") == given
    for index in range(len(given)):
        assert len(manifest.waveform(index)) == 8_000


@pytest.mark.faults
def test_a_missing_key_is_named_where_the_corpus_is_refused(tmp_path: Path):
    rows(tmp_path / "train.jsonl", *({"path": "a.wav", "text": "x"} for _ in range(3)))
    with pytest.raises(
        UserError, match=r"3 damaged row, such as .*line 1: no text under 'audio', there are: 'path', 't"
    ):
        check_skipped({"train": JsonlCorpus(tmp_path).manifest("train")}, 0.05, "skipped.tsv")
