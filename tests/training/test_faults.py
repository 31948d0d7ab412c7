"""Corpora with faults through a whole run: nothing crashes, nothing is dropped in silence."""

import csv
import json
import re
from pathlib import Path

import pytest
import soundfile
from command_line import metrics, run, run_ranks
from tiny import noise, write_release

pytestmark = pytest.mark.integration
SHORT = ["max_steps=6", "val_every=6", "sample_responses=2", "objective.distill_from_step=2"]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Path:
    """40 training clips of which nine are at fault, each in its way, two of them found by decoding alone; 6 held out,
    the first of them damaged."""
    root = write_release(tmp_path_factory.mktemp("faulty"), {"train": 40, "dev": 6})
    locale = root / "en"
    clips = [locale / "clips" / f"common_voice_en_{number:06d}.mp3" for number in range(46)]
    for number in (0, 1, 40):
        clips[number].write_bytes(b"no mp3 at all")
    for number in (2, 3):
        clips[number].unlink()
    soundfile.write(clips[4], 0 * noise(1.0, 4), 16_000)
    soundfile.write(clips[5], noise(31.0, 5), 16_000)
    tsv = locale / "train.tsv"
    lines = tsv.read_text().splitlines()
    for row in (7, 8):
        lines[row] = re.sub(r"(\.mp3\t)[^\t]+", r"\1 ", lines[row])
    lines[9] = "half a row"
    tsv.write_text("\n".join(lines) + "\n")
    durations = locale / "clip_durations.tsv"
    durations.write_text(re.sub(r"(000005\.mp3\t)\d+", r"\g<1>31000", durations.read_text()))
    return root


REASONS = {
    "damaged audio": 2,
    "missing file": 2,
    "silence": 1,
    "too long": 1,
    "empty text": 2,
    "damaged row": 1,
}


def skipped(folder: Path, split: str) -> list[str]:
    with (folder / "skipped.tsv").open() as file:
        return [row["reason"] for row in csv.DictReader(file, delimiter="\t") if row["split"] == split]


@pytest.mark.parametrize("decoded", [True, False])
@pytest.mark.parametrize("hardware", ["cpu", "cpu_ddp"])
def test_every_clip_is_trained_on_or_counted(faulty, tiny_run, shared_cache, tmp_path, decoded, hardware):
    folder = tmp_path / "run"
    given = [
        *tiny_run,
        *SHORT,
        f"data.root={faulty}",
        "data.max_skipped_fraction=0.3",
        f"hardware={hardware}",
    ]
    # An epoch and more, so that every clip is met also where they are decoded as they are needed.
    given += [
        "max_steps=12",
        "val_every=12",
        f"data.decoded_cache_gb={int(decoded)}",
        f"hydra.run.dir={folder}",
    ]
    start = run_ranks if hardware == "cpu_ddp" else lambda *a, **k: run("diva.train", *a, **k)
    done = start(*given, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["clips_skipped"] == {"train": REASONS, "dev": {"damaged audio": 1}}
    assert sorted(skipped(folder, "train")) == sorted(r for r, n in REASONS.items() for _ in range(n))
    assert skipped(folder, "dev") == ["damaged audio"]
    assert len(summary["responses"]) == 2, "a damaged question gives way to the next"
    rows = [row for row in metrics(folder) if row["train/padding_fraction"]]
    assert len(rows) == 12
    assert all(0 <= float(row["train/padding_fraction"]) < 1 for row in rows)


def test_too_many_faults_are_refused_before_training_or_as_they_come(
    faulty, tiny_run, shared_cache, tmp_path
):
    given = [*tiny_run, *SHORT, f"data.root={faulty}", "hydra.run.dir=run"]
    known = run("diva.train", *given, cache=shared_cache, cwd=tmp_path)
    assert known.returncode == 2
    assert "10 of 46 clips (21.7%) cannot be used" in known.stderr
    assert not (tmp_path / "run" / "metrics.csv").exists()
    # Seven faults are in the tables; the others show when their clips are decoded, the last in an epoch.
    limits = ["data.decoded_cache_gb=0", "data.max_skipped_fraction=0.16", "max_steps=12"]
    late = run_ranks(*given, *limits, "hardware=cpu_ddp", cache=shared_cache, cwd=tmp_path)
    assert late.returncode == 2, late.stderr
    assert "data.max_skipped_fraction=0.16" in late.stderr
    assert (tmp_path / "run" / "metrics.csv").exists()


def test_a_limit_on_the_clips_does_not_make_the_faulty_ones_a_larger_share(
    faulty, tiny_run, shared_cache, tmp_path
):
    given = [*tiny_run, *SHORT, f"data.root={faulty}", "data.max_skipped_fraction=0.22", "hydra.run.dir=run"]
    done = run("diva.train", *given, "data.max_train_clips=8", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["clips_in_corpus"]["train"] <= 8
