"""What the frozen parts say about a corpus, kept on disk: the same as when it is computed for each batch."""

from pathlib import Path

import pytest
import soundfile
import torch
from tiny import noise, write_release

from diva.audio.frames import pad_clips
from diva.data.corpora.common_voice import CommonVoice
from diva.data.decoded import decode_once
from diva.data.manifest import Manifest
from diva.models.build import build, load_tokenizer
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.training.frozen import FrameTable, TeacherTable


@pytest.fixture
def model(tiny_whisper: Path, tiny_llm: Path) -> DivaForConditionalGeneration:
    config = DivaConfig(
        EncoderConfig(str(tiny_whisper)),
        AdapterConfig(num_query_tokens=12),
        LLMConfig(str(tiny_llm)),
        frozen_dtype="float32",
    )
    torch.manual_seed(0)
    return build(config, load_tokenizer(str(tiny_llm)))


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


@pytest.mark.parametrize("read_again", [False, True])
def test_frames_of_a_batch_are_those_of_the_encoder(model, manifest, read_again):
    if read_again:
        FrameTable.build(model, manifest, 1.0)
    table = FrameTable.build(model, manifest, 1.0)
    assert len(manifest) == 5
    for clip in range(5):
        frames, mask = table(torch.tensor([clip]))
        padded, samples = pad_clips([manifest.waveform(clip)])
        expected, valid = model.encoder(padded, samples)
        assert mask.all()
        torch.testing.assert_close(frames[0], expected[0][valid[0]], atol=1e-4, rtol=1e-4)
    assert frames.shape[1] < 1500
    assert table(torch.tensor([2]))[0].shape[1] == 1500


def test_an_empty_row_has_one_frame(model, manifest):
    frames, mask = FrameTable.build(model, manifest, 1.0)(torch.tensor([0, -1]))
    assert mask.sum(dim=1).tolist() == [frames.shape[1], 1]
    assert not frames[1].any()


def test_teacher_states_are_those_of_the_teacher(model, manifest):
    table = TeacherTable.build(model, manifest, model.processor.tokenizer)
    clips = torch.tensor([3, 0, 4])
    for clip, state in zip(clips.tolist(), table(clips), strict=True):
        ids = torch.tensor(
            [model.processor.tokenizer(manifest.text(clip), add_special_tokens=False).input_ids]
        )
        expected = model.teacher_states(ids, torch.tensor([ids.shape[1]]))[0]
        torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)


def test_what_is_too_large_is_not_kept(model, manifest):
    assert FrameTable.build(model, manifest, 1e-6) is None
