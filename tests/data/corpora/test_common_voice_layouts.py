"""Releases that differ from the official layout: folders, formats, Spontaneous Speech, escaped sentences."""

import tarfile
from pathlib import Path

import pytest
import soundfile
from releases import clip, locale_folder, row, tone

from diva.data.corpora.common_voice import CommonVoice
from diva.data.manifest import count_by_reason
from diva.errors import UserError

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("cache")]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_clips_in_folders_and_of_other_formats_are_found(tmp_path: Path, packed: bool):
    folder = locale_folder(
        tmp_path / "en",
        [
            row("0/a.mp3", "named with its folder"),
            row("1/deep/a.mp3", "of the same name"),
            row("b.mp3", "converted"),
            row("0/gone.mp3", "nowhere"),
            row("../en/clips/b.wav", "outside"),
        ],
    )
    clip(folder / "clips" / "0", "a.mp3", 0.5)
    clip(folder / "clips" / "1" / "deep", "a.mp3", 1.5)
    soundfile.write(folder / "clips" / "b.wav", tone(1.0), 16_000)
    root = folder
    if packed:
        root = tmp_path / "en.tar"
        with tarfile.open(root, "w") as tar:
            tar.add(folder, arcname="en")
    manifest = CommonVoice(root).manifest("train")
    assert [manifest.text(i) for i in range(3)] == ["named with its folder", "of the same name", "converted"]
    lengths = [len(manifest.waveform(i)) for i in range(3)]
    assert lengths == pytest.approx([8_000, 24_000, 16_000], abs=1_200)
    assert count_by_reason(manifest.skipped) == {"missing file": 2}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_a_release_of_spontaneous_speech_is_a_corpus(tmp_path: Path, packed: bool):
    folder = tmp_path / "sps-corpus-1.0-2025-09-05-aln"
    for name in ("a.mp3", "b.mp3", "c.mp3"):
        clip(folder / "audios", name, 1.0)
    (folder / "ss-corpus-aln.tsv").write_text(
        "client_id\taudio_id\taudio_file\tduration_ms\tprompt\ttranscription\tvotes\tsplit\n"
        "anna\t1\ta.mp3\t1000\tWhy?\tbecause\t2\ttrain\n"
        "bert\t2\tb.mp3\t1001\tWho?\tthe others\t2\tdev\n"
        "cleo\t3\tc.mp3\t1000\tWho?\t\t0\ttrain\n"
        "cleo\t4\td.mp3\t1000\tWho?\tnot split\t0\t\n"
    )
    root = folder
    if packed:
        root = tmp_path / "sps.tar"
        with tarfile.open(root, "w") as tar:
            tar.add(folder, arcname=folder.name)
    corpus = CommonVoice(root)
    assert corpus.splits() == ["dev", "train"]
    train, dev = corpus.manifest("train"), corpus.manifest("dev")
    assert [train.text(0), dev.text(0), len(train), len(dev)] == ["because", "the others", 1, 1]
    assert [train.column("speaker"), dev.column("prompt")] == [["anna"], ["Who?"]]
    assert dev.durations.tolist() == pytest.approx([1.001])
    assert len(dev.waveform(0)) == pytest.approx(16_000, abs=1_200)
    assert count_by_reason(train.skipped) == {"empty text": 1}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('"""x"" y"', '"x" y'),
        ('"say ""x"""', 'say "x"'),
        ('"one" and "two"', '"one" and "two"'),
        ('"Quoted"', '"Quoted"'),
        ('He said "hi', 'He said "hi'),
        ('say ""x""', 'say ""x""'),
        ("42", "42"),
        ("日本", "日本"),
    ],
)
def test_a_sentence_is_what_was_said(tmp_path: Path, written: str, said: str):
    folder = locale_folder(tmp_path / "en", [row("a.mp3", written)])
    clip(folder / "clips", "a.mp3")
    assert CommonVoice(folder).manifest("train").text(0) == said


@pytest.mark.parametrize("text", ["...", "—", "?!", "🙂", '""""'])
def test_a_transcript_without_a_letter_is_skipped(tmp_path: Path, text: str):
    folder = locale_folder(tmp_path / "en", [row("a.mp3", text), row("a.mp3", "word")])
    clip(folder / "clips", "a.mp3")
    manifest = CommonVoice(folder).manifest("train")
    assert [len(manifest), count_by_reason(manifest.skipped)] == [1, {"empty text": 1}]


def test_validated_alone_is_parted_by_speaker(tmp_path: Path):
    rows = [row("a.mp3", f"sentence {number}", client=f"speaker{number % 30}") for number in range(300)]
    folder = locale_folder(tmp_path / "en", rows, split="validated")
    clip(folder / "clips", "a.mp3")
    corpus = CommonVoice(folder)
    assert corpus.splits() == ["dev", "test", "train", "validated"]
    parts = {split: corpus.manifest(split) for split in ("train", "dev", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 260, "dev": 20, "test": 20}
    speakers = {split: {*part.column("speaker")} for split, part in parts.items()}
    assert len(set.union(*speakers.values())) == sum(map(len, speakers.values())) == 30
    assert CommonVoice(folder).manifest("dev").column("speaker") == parts["dev"].column("speaker")
    locale_folder(folder, rows[:1], split="train")
    with pytest.raises(UserError, match="no split 'dev'"):
        CommonVoice(folder).manifest("dev")
    (folder / "train.tsv").unlink()
    locale_folder(folder, [row("a.mp3", "x")], split="validated")
    with pytest.raises(UserError, match="1 speakers, too few to be parted"):
        CommonVoice(folder).manifest("dev")
