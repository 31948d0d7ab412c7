"""Outputs of the frozen parts, cached on disk: the same as computed for each batch."""

from pathlib import Path

import pytest
import soundfile
import torch
from tiny import noise, write_release

from diva.audio.frames import pad_clips
from diva.data.batch import SpeechBatch
from diva.data.corpora.common_voice import CommonVoice
from diva.data.decoded import decode_once
from diva.data.manifest import Manifest
from diva.training.frozen import FrameTable, FrozenParts, Precompute, TeacherTable
from diva.training.transcripts import Transcripts


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """Five clips, one of them as long as Whisper's window has room for."""
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    release = write_release(tmp_path / "release", {"train": 5}) / "en"
    long = release / "clips" / "common_voice_en_000002.mp3"
    soundfile.write(long, noise(29.9, 7), 16_000)
    listed = (release / "clip_durations.tsv").read_text().splitlines()
    listed[3] = f"{long.name}\t29900"
    (release / "clip_durations.tsv").write_text("\n".join(listed) + "\n")
    return decode_once(CommonVoice(release).manifest("train"), 1.0, 1)


def batch_of(manifest: Manifest, clips: list[int | None]) -> SpeechBatch:
    """A batch that holds ids and no waveforms; None is an empty row."""
    ids = ["" if clip is None else manifest.clips["clip_id"][clip].as_py() for clip in clips]
    none = torch.zeros(len(clips), dtype=torch.long)
    return SpeechBatch(torch.zeros(len(clips), 0), none, none.unsqueeze(1), none, none, ids, 0)


@pytest.mark.parametrize("read_again", [False, True])
def test_frames_of_a_batch_are_those_of_the_encoder(tiny_model, manifest, read_again):
    if read_again:
        FrameTable.build(tiny_model, manifest)
    table = FrameTable.build(tiny_model, manifest)
    assert len(manifest) == 5
    for clip in range(5):
        frames, mask = table(batch_of(manifest, [clip]))
        padded, samples = pad_clips([manifest.waveform(clip)])
        expected, valid = tiny_model.encoder(padded, samples)
        assert mask.all()
        torch.testing.assert_close(frames[0], expected[0][valid[0]], atol=1e-4, rtol=1e-4)
    assert frames.shape[1] < 1500
    assert table(batch_of(manifest, [2]))[0].shape[1] == 1500


def test_an_empty_row_has_one_frame(tiny_model, manifest):
    frames, mask = FrameTable.build(tiny_model, manifest)(batch_of(manifest, [0, None]))
    assert mask.sum(dim=1).tolist() == [frames.shape[1], 1]
    assert not frames[1].any()


def test_teacher_states_are_those_of_the_teacher(tiny_model, manifest):
    table = TeacherTable.build(tiny_model, Transcripts.of(manifest, tiny_model.processor.tokenizer))
    clips = [3, 0, 4]
    for clip, state in zip(clips, table(batch_of(manifest, clips)), strict=True):
        ids = torch.tensor(
            [tiny_model.processor.tokenizer(manifest.text(clip), add_special_tokens=False).input_ids]
        )
        expected = tiny_model.teacher_states(ids, torch.tensor([ids.shape[1]]))[0]
        torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)


def test_tables_are_looked_up_by_clip_id_in_any_order_of_the_manifest(tiny_model, manifest):
    frames, teacher = (
        FrameTable.build(tiny_model, manifest),
        TeacherTable.build(tiny_model, Transcripts.of(manifest, tiny_model.processor.tokenizer)),
    )
    turned = manifest.select([4, 3, 2, 1, 0])
    batch = batch_of(turned, [0, 3])
    assert batch.clip_ids == batch_of(manifest, [4, 1]).clip_ids
    assert torch.equal(frames(batch)[0], frames(batch_of(manifest, [4, 1]))[0])
    assert torch.equal(teacher(batch), teacher(batch_of(manifest, [4, 1])))


def test_frames_that_take_more_than_the_limit_are_computed_with_each_batch(tiny_model, manifest):
    limits = ((1.0, False), (1e-6, True))
    for gigabytes, needed in limits:
        frozen = FrozenParts.of_split(
            tiny_model, manifest, tiny_model.processor.tokenizer, Precompute(False, gigabytes)
        )
        assert frozen.need_waveforms is needed
        assert frozen.cached_teacher is None
