"""The manifest as the rest of the code sees it, and the refusal of corpora of which too much is missing."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from diva.audio.decoding import duration_of
from diva.data.manifest import (
    AudioFiles,
    Manifest,
    Skip,
    StoredAudio,
    check_skipped,
    count_by_reason,
    named_columns,
    sound_clips,
    write_skipped,
)
from diva.errors import AudioFault, UserError


class Ramp:
    """Audio whose samples tell the row."""

    def waveform(self, row: int) -> np.ndarray:
        return np.full(16_000, row, dtype=np.float32)


def strings(*values: str) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.string())])


def made(texts: list[str], durations: list[float] | None = None, **further: pa.ChunkedArray) -> Manifest:
    columns = {"clip_id": strings(*(f"c{i}" for i in range(len(texts)))), "text": strings(*texts), **further}
    if durations is not None:
        columns["duration"] = pa.chunked_array([np.float32(durations)])
    return sound_clips(columns, Ramp(), 30.0, faults=[], skipped=[], origin="here")


def test_a_clip_stays_with_its_audio_through_faults_and_selections():
    manifest = made(["a", " ", "b", "c", "d"], [1, 1, 0, 31, np.nan])
    assert [manifest.text(i) for i in range(len(manifest))] == ["a", "d"]
    assert [manifest.waveform(i)[0] for i in range(2)] == [0, 4]
    chosen = manifest.select(np.array([1, 0, 1]))
    assert chosen.column("clip_id") == ["c4", "c0", "c4"]
    assert [chosen.waveform(i)[0] for i in range(3)] == [4, 0, 4]
    assert chosen.skipped == manifest.skipped
    assert len(manifest.select([])) == 0
    assert [(skip.clip_id, skip.reason) for skip in manifest.skipped] == [
        ("c1", "empty text"),
        ("c2", "zero length"),
        ("c3", "too long"),
    ]


def test_a_row_with_several_faults_counts_once_under_the_first():
    columns = {
        "clip_id": strings("x"),
        "text": strings(""),
        "duration": pa.chunked_array([np.zeros(1, "f4")]),
    }
    fault = ("missing file", "gone", np.array([True]))
    manifest = sound_clips(columns, Ramp(), 30.0, [fault], [Skip("", "damaged row", "line 3")], "here")
    assert count_by_reason(manifest.skipped) == {"damaged row": 1, "missing file": 1}


def test_columns_have_the_contracts_types_and_names():
    named = named_columns(
        {"path": strings("p"), "sentence": strings("s"), "text": strings("t"), "age": strings("9")},
        clip_id="path",
        text="sentence",
        speaker=None,
    )
    manifest = sound_clips(named, Ramp(), 30.0, [], [], "here")
    assert manifest.clips.column_names == ["clip_id", "text", "duration", "speaker", "corpus_text", "age"]
    assert manifest.clips.schema.field("duration").type == pa.float32()
    assert [manifest.column("speaker"), manifest.column("corpus_text")] == [[""], ["t"]]
    assert manifest.durations.dtype == np.float32
    assert manifest.rows.dtype == np.int64
    with pytest.raises(UserError, match="here has no column 'answer'"):
        manifest.column("answer")


def test_check_skipped_refuses_above_the_fraction_and_not_at_it():
    manifests = {"train": made(["a"] * 19 + [""]), "dev": made(["b"] * 20)}
    check_skipped(manifests, 1 / 40, "run/skipped.tsv")
    with pytest.raises(UserError) as refusal:
        check_skipped(manifests, 0.02, "run/skipped.tsv")
    assert str(refusal.value) == (
        "1 of 40 clips (2.5%) cannot be used: 1 empty text; they are listed in run/skipped.tsv;"
        " correct them, or accept the loss with data.max_skipped_fraction=0.03 (now 0.02)"
    )
    with pytest.raises(UserError, match=r"'dev' of here has no clip that can be used \(2 empty text\)"):
        check_skipped({"train": made(["a"] * 98), "dev": made(["", ""])}, 1.0, "skipped.tsv")


def test_skipped_tsv_is_a_table_whatever_the_detail_says(tmp_path: Path):
    skips = {
        "train": [Skip("a.mp3", "damaged audio", "two\nlines\tand a tab")],
        "dev": [Skip("ü", "silence", "")],
    }
    write_skipped(tmp_path / "new" / "skipped.tsv", skips)
    assert (tmp_path / "new" / "skipped.tsv").read_text(encoding="utf-8").splitlines() == [
        "split\tclip_id\treason\tdetail",
        "train\ta.mp3\tdamaged audio\ttwo lines and a tab",
        "dev\tü\tsilence\t",
    ]


def test_audio_files_are_distinguished_by_place_size_and_time(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.tile([0.5, -0.5], 4_000), 16_000)
    soundfile.write(tmp_path / "b.flac", np.tile([0.5, -0.5, -0.5, 0.5], 1_000), 8_000)
    audio = AudioFiles(tmp_path, strings("a.wav", "b.flac", "gone.opus"))
    assert isinstance(audio, StoredAudio)
    assert not isinstance(Ramp(), StoredAudio)
    assert [audio.seconds(0), audio.seconds(1)] == [0.5, 0.5]
    assert len(pickle.loads(pickle.dumps(audio)).waveform(1)) == 8_000
    before = audio.fingerprint(np.array([0, 1, 2]))
    assert AudioFiles(tmp_path, strings("a.wav", "b.flac", "gone.opus")).fingerprint([0, 1, 2]) == before
    assert audio.fingerprint(np.array([1, 0, 2])) != before
    assert AudioFiles(tmp_path, audio.paths, max_seconds=1.0).fingerprint([0, 1, 2]) != before
    (tmp_path / "gone.opus").touch()
    assert audio.fingerprint(np.array([0, 1, 2])) != before


def test_a_duration_names_what_is_wrong(tmp_path: Path):
    soundfile.write(tmp_path / "long.ogg", np.full(32_000, 0.5), 16_000, format="OGG", subtype="OPUS")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    (tmp_path / "junk.mp3").write_bytes(b"junk" * 100)
    for name, reason in {
        "long.ogg": "too long",
        "none.wav": "zero length",
        "junk.mp3": "damaged audio",
        "gone.mp3": "missing file",
    }.items():
        with pytest.raises(AudioFault) as fault:
            duration_of(tmp_path / name, max_seconds=1.0)
        assert fault.value.reason == reason
    assert duration_of((tmp_path / "long.ogg").read_bytes(), max_seconds=2.0) == 2.0
