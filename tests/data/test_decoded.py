"""Decoding once: the same waveforms, found again in the cache, for as long as the files stay what they are."""

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from diva.data import decoded
from diva.data.decoded import DecodedAudio, build_once, decode_once
from diva.data.manifest import AudioFiles, Manifest, count_by_reason, sound_clips, write_skipped
from diva.errors import AudioFault, UserError

SECONDS = {"a.mp3": 0.4, "b.wav": 0.6, "c.flac": 0.5}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sound clips, and one of every fault that only decoding finds."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for seed, (name, seconds) in enumerate(SECONDS.items()):
        noise = np.random.default_rng(seed).uniform(-0.9, 0.9, int(seconds * 16_000))
        soundfile.write(folder / name, noise, 16_000)
    soundfile.write(folder / "silent.mp3", np.zeros(8_000), 16_000)
    soundfile.write(folder / "none.wav", np.zeros(0), 16_000)
    soundfile.write(folder / "long.mp3", np.full(40_000, 0.5), 16_000)
    (folder / "junk.mp3").write_bytes(b"junk" * 99)
    return folder


def manifest_of(folder: Path, names: list[str], durations: list[float] | None = None) -> Manifest:
    columns = {"clip_id": pa.chunked_array([names]), "text": pa.chunked_array([names])}
    columns["duration"] = pa.chunked_array([np.float32(durations or [np.nan] * len(names))])
    audio = AudioFiles(folder, columns["clip_id"], max_seconds=2.0)
    return sound_clips(columns, audio, 2.0, faults=[], skipped=[], origin=str(folder))


ALL = ["junk.mp3", "a.mp3", "silent.mp3", "b.wav", "none.wav", "gone.mp3", "c.flac", "long.mp3"]
FAULTS = {"damaged audio": 1, "silence": 1, "zero length": 1, "missing file": 1, "too long": 1}


def check_same_sound(result: Manifest, folder: Path) -> None:
    assert [result.text(i) for i in range(len(result))] == list(SECONDS)
    plain = manifest_of(folder, list(SECONDS))
    for index in range(len(result)):
        expected = plain.waveform(index)
        # Half a step of 16 bits, but for mp3, which overshoots full scale.
        np.testing.assert_allclose(
            result.waveform(index), expected.clip(-1, 32_767 / 32_768), atol=0.51 / 32_768
        )
        assert result.durations[index] == np.float32(len(expected) / 16_000)


def test_clips_are_decoded_and_faults_are_listed(folder: Path):
    result = decode_once(manifest_of(folder, ALL), max_gigabytes=1.0, num_workers=0)
    assert isinstance(result.audio, DecodedAudio)
    check_same_sound(result, folder)
    assert count_by_reason(result.skipped) == FAULTS
    assert {skip.clip_id for skip in result.skipped} == {*ALL} - {*SECONDS}
    assert result.waveform(0).dtype == np.float32


def test_the_second_call_takes_the_cache_until_a_file_changes(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    first = decode_once(manifest_of(folder, ALL), 1.0, 0)
    decode_all = decoded._decode_all
    monkeypatch.setattr(decoded, "_decode_all", lambda *_: pytest.fail("decoded again"))
    second = decode_once(manifest_of(folder, ALL), 1.0, 0)
    check_same_sound(second, folder)
    assert [second.skipped, second.clips] == [first.skipped, first.clips]
    monkeypatch.setattr(decoded, "_decode_all", decode_all)
    # Other texts need no other decoding, another file does.
    os.utime(folder / "a.mp3", ns=(1, 1))
    check_same_sound(decode_once(manifest_of(folder, ALL), 1.0, 0), folder)
    assert len([path for path in (cache / "decoded").iterdir() if path.is_dir()]) == 2


def test_a_selection_reads_its_own_clips(folder: Path):
    result = decode_once(manifest_of(folder, ALL), 1.0, 0)
    chosen = result.select([2, 0])
    np.testing.assert_array_equal(chosen.waveform(0), result.waveform(2))
    np.testing.assert_array_equal(chosen.waveform(1), result.waveform(0))
    assert decode_once(chosen, 1.0, 0) is chosen


def test_a_large_corpus_only_has_its_headers_read(folder: Path, cache: Path):
    listed = [np.nan, 1.5, *[np.nan] * 6]
    result = decode_once(manifest_of(folder, ALL, listed), max_gigabytes=1e-5, num_workers=0)
    assert isinstance(result.audio, AudioFiles)
    assert result.column("clip_id") == ["a.mp3", "silent.mp3", "b.wav", "c.flac"]
    np.testing.assert_allclose(result.durations, [1.5, 0.5, 0.6, 0.5], atol=0.08)
    assert count_by_reason(result.skipped) == {name: 1 for name in FAULTS if name != "silence"}
    assert len(result.waveform(2)) == 9_600
    assert not (cache / "decoded").exists()


@pytest.mark.parametrize(("listed", "fits"), [(None, True), ([0.5] * 3, True), ([1.2, 0.3, np.nan], False)])
def test_what_fits_is_judged_by_listed_or_sampled_durations(
    folder: Path, listed: list[float] | None, fits: bool
):
    gigabytes = 1.6 * 32_000 / 1e9  # the clips last 1.5 s
    result = decode_once(manifest_of(folder, list(SECONDS), listed), gigabytes, num_workers=0)
    assert isinstance(result.audio, DecodedAudio) == fits


def read(audio: DecodedAudio) -> np.ndarray:
    return audio.waveform(1)


def test_workers_map_the_file_for_themselves(folder: Path):
    result = decode_once(manifest_of(folder, list(SECONDS)), 1.0, 0)
    expected = result.waveform(1)
    pickled = pickle.dumps(result.audio)  # as a spawned worker receives it, after this process has mapped it
    assert len(pickled) < 1_000
    np.testing.assert_array_equal(pickle.loads(pickled).waveform(1), expected)
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        np.testing.assert_array_equal(pool.submit(read, result.audio).result(), expected)


@pytest.mark.integration
def test_a_process_of_its_own_decodes_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoded, "_POOL_CLIPS", 1)
    monkeypatch.setattr(decoded, "_CHUNK", 3)  # so that no two chunks are alike
    result = decode_once(manifest_of(folder, ALL * 6), max_gigabytes=1.0, num_workers=1)
    assert len(result) == 18
    assert count_by_reason(result.skipped) == dict.fromkeys(FAULTS, 6)
    for start in range(0, 18, 3):
        check_same_sound(result.select([start, start + 1, start + 2]), folder)


def test_decode_once_without_sound_clips_gives_an_empty_manifest(folder: Path):
    empty = manifest_of(folder, list(SECONDS)).select([])
    assert decode_once(empty, 1.0, 0) is empty
    for gigabytes in (1.0, 0.0):
        hopeless = decode_once(manifest_of(folder, ["junk.mp3"]), gigabytes, 0)
        assert [len(hopeless), count_by_reason(hopeless.skipped)] == [0, {"damaged audio": 1}]


def test_a_cut_cache_is_refused(folder: Path):
    result = decode_once(manifest_of(folder, list(SECONDS)), 1.0, 0)
    os.truncate(result.audio.file, 1_000)
    with pytest.raises(UserError, match="damaged: delete that folder"):
        decode_once(manifest_of(folder, list(SECONDS)), 1.0, 0)


def test_build_once_is_all_or_nothing(tmp_path: Path):
    target = tmp_path / "deep" / "target"
    leftover = tmp_path / "deep" / "target.partial" / "half"
    leftover.parent.mkdir(parents=True)
    leftover.touch()

    def interrupted(folder: Path) -> None:
        (folder / "file").touch()
        raise KeyboardInterrupt

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(KeyboardInterrupt):
        build_once(target, interrupted)
    with pytest.raises(UserError, match=r"target: No space left on device; make room, .* DIVA_CACHE"):
        build_once(target, full)
    assert [path for path in target.parent.iterdir() if path.is_dir()] == []
    build_once(target, lambda folder: (folder / "file").touch())
    assert build_once(target, interrupted) == target
    assert [path.name for path in target.iterdir()] == ["file"]


@pytest.mark.faults
def test_a_clip_much_shorter_than_listed_ends_early(folder: Path):
    """An mp3 without a header that breaks off between two frames looks whole; the corpus knows better."""
    manifest = manifest_of(folder, list(SECONDS), [0.4, 1.2, 0.55])
    for result in (decode_once(manifest, 1.0, 1), decode_once(manifest, 0.0, 1)):
        faults = {skip.clip_id: skip.reason for skip in result.skipped}
        for index in range(len(result)):
            try:
                result.waveform(index)
            except AudioFault as fault:
                faults[result.column("clip_id")[index]] = fault.reason
        assert faults == {"b.wav": "ends early"}


@pytest.mark.faults
def test_a_folder_whose_name_is_not_utf8_is_decoded_and_its_faults_are_listed(folder: Path, tmp_path: Path):
    odd = folder.rename(tmp_path / os.fsdecode(b"clips \xe9"))
    result = decode_once(manifest_of(odd, ALL), 1.0, 1)
    assert len(result) == len(SECONDS)
    write_skipped(tmp_path / "skipped.tsv", {"train": result.skipped})
    lines = (tmp_path / "skipped.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(ALL) - len(SECONDS)
    assert "clips \\udce9" in (tmp_path / "skipped.tsv").read_text(encoding="utf-8")
