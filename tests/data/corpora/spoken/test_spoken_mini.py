import csv
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from diva.audio.decoding import decode
from diva.audio.frames import SAMPLE_RATE
from diva.data.corpora.spoken import release
from diva.data.corpora.spoken.corpus import MINIMUM, SpokenMini, main, plan
from diva.data.corpora.spoken.release import COLUMNS
from diva.errors import UserError

LIMIT = 100
SPLITS = ("train", "dev", "test")
OFFICIAL_COLUMNS = (
    "client_id path sentence_id sentence sentence_domain up_votes "
    "down_votes age gender accents variant locale segment"
)


def rows(corpus: SpokenMini, split: str) -> list[dict[str, str]]:
    with (corpus.release / "en" / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def clips(corpus: SpokenMini) -> dict[str, Path]:
    return {path.name: path for path in (corpus.release / "en" / "clips").iterdir()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> SpokenMini:
    corpus = SpokenMini(tmp_path_factory.mktemp("spoken"), limit=LIMIT)
    corpus.prepare()
    return corpus


@pytest.fixture
def spoken(monkeypatch) -> list[str]:
    """The names of the clips that are spoken from here on."""
    names: list[str] = []
    speak = release._speak

    def counting(clip, folder):
        names.append(clip.file)
        speak(clip, folder)

    monkeypatch.setattr(release, "_speak", counting)
    return names


def test_the_plan_of_the_whole_corpus():
    splits = plan(seed=1)
    texts = {split: [clip.sentence.text for clip in splits[split]] for split in SPLITS}
    every = [text for of_split in texts.values() for text in of_split]
    assert len(set(every)) == len(every) >= 3_200
    assert len({clip.sentence.template for split in SPLITS for clip in splits[split]}) >= 40
    assert len(texts["dev"]) >= 200
    assert len(texts["test"]) >= 500
    voices = {split: {clip.voice.name for clip in splits[split]} for split in splits}
    assert voices["train"] == voices["dev"] == {"slt", "rms", "kal16"}
    assert voices["test"] == {"slt", "rms", "kal16", "awb"}
    assert voices["unseen_voice"] == {"awb"}
    assert splits["unseen_voice"] == [clip for clip in splits["test"] if clip.voice.name == "awb"]
    tempo = [clip.stretch / clip.voice.stretch for clip in splits["train"]]
    assert min(tempo) == pytest.approx(0.85, abs=0.02)
    assert max(tempo) == pytest.approx(1.15, abs=0.02)


def test_most_clips_stay_when_the_number_of_sentences_changes():
    fewer, more = ({clip.file for clip in plan(1, limit)["train"]} for limit in (4_000, 4_400))
    assert len(fewer & more) > 0.8 * len(fewer)


def test_spoken_corpus_has_the_layout_of_a_release(corpus):
    folder = corpus.release / "en"
    assert " ".join(COLUMNS) == f"{OFFICIAL_COLUMNS} answer template"
    assert {path.name for path in folder.iterdir()} == {
        "clips",
        "clip_durations.tsv",
        *(f"{split}.tsv" for split in (*SPLITS, "unseen_voice", "validated")),
    }
    for split in SPLITS:
        assert list(rows(corpus, split)[0]) == COLUMNS
    every = [row for split in SPLITS for row in rows(corpus, split)]
    assert {row["path"] for row in every} == set(clips(corpus))
    assert rows(corpus, "validated") == every
    assert len({row["sentence"] for row in every}) == len(every) == LIMIT
    unseen = rows(corpus, "unseen_voice")
    assert unseen
    assert unseen == [row for row in every if row["client_id"] == "awb"]
    assert all(row in rows(corpus, "test") for row in unseen)


def test_the_manifest_reads_it_whole(corpus):
    for split in (*SPLITS, "unseen_voice"):
        manifest = corpus.manifest(split)
        assert manifest.skipped == []
        planned = [clip.sentence for clip in plan(1, LIMIT)[split]]
        assert [manifest.text(index) for index in range(len(manifest))] == [each.text for each in planned]
        assert manifest.column("answer") == [each.answer or "" for each in planned]
        assert manifest.column("template") == [each.template for each in planned]
    assert any(corpus.manifest("train").column("answer"))


def test_listed_durations_are_those_of_the_audio(corpus):
    with (corpus.release / "en" / "clip_durations.tsv").open() as file:
        listed = {row["clip"]: int(row["duration[ms]"]) for row in csv.DictReader(file, delimiter="\t")}
    assert set(listed) == set(clips(corpus))
    for name, path in clips(corpus).items():
        seconds = len(decode(path)) / SAMPLE_RATE
        assert listed[name] == pytest.approx(1000 * seconds, abs=1)
        assert 0.7 < seconds < 4.5


def test_the_same_seed_gives_the_same_corpus(corpus, tmp_path):
    again = SpokenMini(tmp_path, limit=LIMIT)
    again.prepare()
    for table in (corpus.release / "en").glob("*.tsv"):
        assert (again.release / "en" / table.name).read_bytes() == table.read_bytes()
    for name, path in clips(corpus).items():
        np.testing.assert_array_equal(decode(path), decode(clips(again)[name]))


def test_another_seed_or_size_does_not_touch_the_corpus(tmp_path):
    releases = {
        SpokenMini(tmp_path, seed, limit).release for seed, limit in ((1, None), (2, None), (1, 50), (2, 50))
    }
    assert len(releases) == 4
    assert SpokenMini(tmp_path).release == tmp_path / "cv-corpus-spoken-mini"


def test_what_is_there_is_not_spoken_again(corpus, spoken):
    corpus.prepare()
    assert spoken == []


def test_what_is_damaged_is_spoken_again_and_what_is_stale_goes(tmp_path, spoken):
    corpus = SpokenMini(tmp_path, limit=20)
    corpus.prepare()
    before, tables = clips(corpus), (corpus.release / "en" / "train.tsv").read_bytes()
    lost, empty, garbled, *_ = before
    spoken.clear()
    before[lost].unlink()
    before[empty].write_bytes(b"")
    before[garbled].write_bytes(b"no sound at all")
    (corpus.release / "en" / "clips" / "stale.mp3").write_bytes(b"of another plan")
    corpus.prepare()
    assert sorted(spoken) == sorted([lost, empty, garbled])
    assert set(clips(corpus)) == set(before)
    assert (corpus.release / "en" / "train.tsv").read_bytes() == tables


def test_two_processes_at_once_speak_each_clip_once(tmp_path, spoken):
    threads = [threading.Thread(target=SpokenMini(tmp_path, limit=20).prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spoken) == 20


@pytest.mark.integration
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_goes_on_after_an_interruption(name, tmp_path):
    limit = 80  # enough that the signal comes long before the end
    corpus = SpokenMini(tmp_path, limit=limit)
    folder = corpus.release / "en" / "clips"
    command = [sys.executable, "-m", "diva.data.spoken_mini", "--root", str(tmp_path), "--limit", str(limit)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while len(list(folder.glob("*.mp3"))) < 10:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=30)
    if name == "SIGINT":
        assert process.returncode == 130
        assert said.strip().splitlines()[-1] == "interrupted; the next call goes on from here"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.mp3")}
    assert 10 <= len(before) < limit
    assert not list(folder.parent.glob("*.tsv"))

    corpus.prepare()
    after = {path.name: path.stat().st_mtime_ns for path in clips(corpus).values()}
    assert len(after) == limit
    assert before.items() <= after.items()
    assert all(decode(path).size for path in clips(corpus).values())


def test_without_flite_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="apt-get install flite"):
        SpokenMini(tmp_path, limit=20).manifest("train")
    with pytest.raises(SystemExit, match="2"):
        main(["--root", str(tmp_path), "--limit", "20"])
    said = capsys.readouterr().err
    assert "brew install flite" in said
    assert said.count("\n") == 1


def test_a_complete_corpus_needs_neither_flite_nor_a_lock(corpus, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delattr(release, "FileLock")
    assert len(corpus.manifest("validated")) == LIMIT


def test_a_flite_that_fails_is_named(tmp_path, monkeypatch):
    flite = tmp_path / "bin" / "flite"
    flite.parent.mkdir()
    flite.write_text("#!/bin/sh\necho no such voice >&2\nexit 1\n")
    flite.chmod(0o755)
    monkeypatch.setenv("PATH", str(flite.parent), prepend=":")
    with pytest.raises(UserError, match=r"flite cannot speak as \w+.*no such voice"):
        SpokenMini(tmp_path, limit=20).prepare()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the spoken corpus to .*file"):
        SpokenMini(tmp_path / "file", limit=20).prepare()


def test_a_limit_that_leaves_a_split_empty_is_refused(tmp_path):
    assert all(plan(1, MINIMUM).values())
    with pytest.raises(UserError, match="at least 20 sentences, not 19"):
        SpokenMini(tmp_path, limit=19)


def test_the_command_says_what_there_is(corpus, capsys):
    assert main(["--root", str(corpus.release.parent), "--limit", str(LIMIT)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(corpus.release)
    assert [line.split()[:2] for line in lines[1:]] == [
        [split, str(len(rows(corpus, split)))] for split in (*SPLITS, "unseen_voice")
    ]
    assert all(float(line.split()[3]) > 0 for line in lines[1:])
