"""What the demo shows of a training."""

import shutil
from pathlib import Path

import pytest
import soundfile
from omegaconf import OmegaConf

from diva.audio.decoding import decode
from diva.data.corpora.common_voice import CommonVoice
from diva.serving.held_out import CLIPS, about, held_out_clips


@pytest.fixture
def run(tiny_release, tmp_path) -> Path:
    """The folder of a run on the tiny corpus, as far as the demo looks at it."""
    corpus = {"_target_": "diva.data.corpora.common_voice.CommonVoice", "root": "${data.root}"}
    splits = {"val": "dev", "val_train": "train"}
    config = {"data": {"root": str(tiny_release), "corpus": corpus, "val_splits": splits}}
    (tmp_path / "run" / "export").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(config), tmp_path / "run" / "config.yaml")
    return tmp_path / "run"


@pytest.mark.parametrize("part", [".", "export"])
def test_clips_of_each_validation_set_come_with_their_transcripts(run, tiny_release, tmp_path, part):
    found = held_out_clips(str(run / part), tmp_path)
    assert len(found) == 2 * CLIPS
    for (file, text), (split, row) in zip(
        found, [("dev", 0), ("dev", 2), ("dev", 4), ("train", 0), ("train", 7), ("train", 14)], strict=True
    ):
        manifest = CommonVoice(tiny_release).manifest(split)
        assert text == manifest.text(row)
        assert len(soundfile.read(file)[0]) == len(manifest.waveform(row))
        assert decode(file) == pytest.approx(manifest.waveform(row), abs=1e-4)


def test_a_corpus_that_is_gone_or_a_model_without_a_run_has_no_clips(run, tmp_path):
    assert held_out_clips("someone/model", tmp_path) == []
    config = OmegaConf.load(run / "config.yaml")
    for root in (tmp_path / "gone", tmp_path):  # no folder, and a folder that is no corpus
        config.data.root = str(root)
        OmegaConf.save(config, run / "config.yaml")
        assert held_out_clips(str(run), tmp_path) == []


def test_a_damaged_clip_is_not_shown(run, tiny_release, tmp_path):
    copy = tmp_path / "release"
    shutil.copytree(tiny_release, copy)
    config = OmegaConf.load(run / "config.yaml")
    config.data.root = str(copy)
    OmegaConf.save(config, run / "config.yaml")
    manifest = CommonVoice(copy).manifest("dev")
    manifest.audio.path(int(manifest.rows[2])).write_bytes(b"no audio")
    texts = [text for _, text in held_out_clips(str(run), tmp_path)]
    assert len(texts) == 2 * CLIPS - 1
    assert manifest.text(2) not in texts[:2]


def test_the_corpus_is_named_with_its_words():
    said = about({"corpus": "spoken_mini", "clips": 5220, "words": 400})
    assert (
        said == "Trained on `spoken_mini`: 5,220 clips with 400 distinct words. Other words it hears badly."
    )
    assert about(None) == "This model does not say what it was trained on."
