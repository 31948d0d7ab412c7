"""JSONL manifests, with every way that a line can be damaged."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from diva.data.corpora.jsonl import JsonlCorpus, _block, _rows
from diva.data.manifest import Skip, count_by_reason
from diva.errors import UserError


def clip(path: Path, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, int(seconds * 16_000))
    soundfile.write(path, noise, 16_000)
    return path


def test_every_line_is_kept_or_skipped_with_its_number(tmp_path: Path):
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
