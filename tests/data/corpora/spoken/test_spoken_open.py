import os
import random
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diva.data.corpora.spoken import open_vocabulary, release, voices, wordnet
from diva.data.corpora.spoken.open_vocabulary import (
    MINIMUM,
    NOTICE_FILE,
    WORDS_FILE,
    SpokenOpen,
    main,
    plan,
    stem,
)
from diva.data.corpora.spoken.sentences import Sentence, sentences, words_of
from diva.data.corpora.spoken.vocabulary import words
from diva.errors import UserError

NOTICE = "  1 WordNet 3.0 is free to use.  \n  2   \n  3 Keep this notice.  \n"
NOUNS = words(
    "dog farmer river window teacher garden letter storm bridge kitchen sailor forest engine mirror"
)
VERBS = words("finds leaves paints fears follows mends guards praises")
HELD_OUT = "dev", "test", "unseen_voice", "new_words"


def synset(words: str, gloss: str, offset: int = 1, pointers: str = "000") -> str:
    named = words.split()
    return f"{offset:08d} 03 n {len(named):02x} {' '.join(f'{word} 0' for word in named)} {pointers} | {gloss}  \n"


def write_wordnet(folder: Path, glosses: list[str], more: str = "") -> Path:
    """The four data files, one synset for each gloss."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("noun", "verb", "adj", "adv"):
        lines = [
            synset("word", gloss, number)
            for number, gloss in enumerate(glosses[:: 1 if kind == "noun" else -1])
        ]
        (folder / f"data.{kind}").write_text(NOTICE + "".join(lines) + (more if kind == "noun" else ""))
    return folder


def made_up(count: int) -> list[str]:
    chance = random.Random(0)
    found: dict[str, None] = {}
    while len(found) < count:
        found[f"the {chance.choice(NOUNS)} {chance.choice(VERBS)} the {chance.choice(NOUNS)}"] = None
    return list(found)


TEXTS = [Sentence(f"{text.capitalize()}.", "wordnet", None) for text in made_up(300)]
TEXTS += sentences(600, seed=1, vocabulary=None)


def words_in(clips) -> set[str]:
    return set().union(*(words_of(clip.sentence.text) for clip in clips))


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    glosses = [f'a definition; "{text}"; "not, (this) one"' for text in made_up(MINIMUM - 40)]
    return write_wordnet(tmp_path_factory.mktemp("wordnet"), glosses)


@pytest.fixture(scope="module", autouse=True)
def _few_templates():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_vocabulary, "TEMPLATE_SENTENCES", 40)
        yield


@pytest.fixture(scope="module")
def corpus(examples, tmp_path_factory) -> SpokenOpen:
    corpus = SpokenOpen(tmp_path_factory.mktemp("spoken"), examples)
    corpus.prepare()
    return corpus


# ---- WordNet's examples


@pytest.mark.parametrize(
    ("example", "text"),
    [
        ("the roof leaks badly", "The roof leaks badly."),
        ("Who, if anyone, knows it?", "Who, if anyone, knows it?"),
        ("a do-it-yourself man's job", "A do-it-yourself man's job."),
        ("I am a man", "I am a man."),
        ("too short", None),
        ("one two three four five six seven eight nine ten eleven twelve thirteen", None),
        ("extraordinarily incomprehensible counterrevolutionary institutions", None),
        ("it costs 5 dollars", None),
        ("a land of silver (or silvern) rivers", None),
        ("he said `come along'", None),
        ("she works for NATO now", None),
        ("the letter B comes next", None),
        ("he is Smith Jr", None),
        ("wait -- not now", None),
        ("an idea, however , small", None),
    ],
)
def test_an_example_becomes_a_sentence_only_if_it_is_plain(example, text):
    assert wordnet.sentence(example) == text


def test_examples_are_read_from_all_files_and_none_twice(tmp_path):
    glosses = ["no example", '"The dog barks loudly"; or so; "a second one here"', '"the dog barks loudly!"']
    write_wordnet(tmp_path, glosses)
    (tmp_path / "data.verb").write_text(NOTICE + synset("x", '"only in this file"'))
    assert sorted(wordnet.example_sentences(tmp_path)) == [
        "A second one here.",
        "Only in this file.",
        "The dog barks loudly.",
    ]


def test_words_that_are_mostly_crude_are_dropped_and_others_stay(tmp_path):
    marked = "001 ;u 00000900 n 0000"
    more = synset("obscenity", "a crude word", 900)
    more += (
        synset("frick frack", "a curse", 901, marked)
        + synset("frack", "oil", 902)
        + synset("frack", "gas", 903)
    )
    write_wordnet(tmp_path, ['"oh frick this weather"; "they frack the field"'], more)
    assert wordnet.example_sentences(tmp_path) == ["They frack the field."]


def test_the_notice_is_the_head_of_the_files(examples, tmp_path):
    assert wordnet.notice(examples) == "WordNet 3.0 is free to use.\n\nKeep this notice.\n"
    write_wordnet(tmp_path, [])
    (tmp_path / "data.noun").write_text(synset("a", "b"))
    with pytest.raises(UserError, match=r"data.noun does not begin with .* licence notice"):
        wordnet.notice(tmp_path)


def test_the_folder_may_be_the_unpacked_release(tmp_path):
    write_wordnet(tmp_path / "dict", [])
    assert wordnet.folder_of(tmp_path) == tmp_path / "dict"
    (tmp_path / "dict" / "data.adv").unlink()
    with pytest.raises(UserError, match=r"data\.wordnet=FOLDER"):
        wordnet.folder_of(tmp_path)


def test_a_file_of_another_format_is_named(tmp_path):
    write_wordnet(tmp_path, [])
    (tmp_path / "data.adj").write_text("something else\n")
    with pytest.raises(UserError, match=r"data.adj is not a data file of WordNet"):
        wordnet.example_sentences(tmp_path)


# ---- the plan


def test_no_other_split_has_a_new_word_or_a_form_of_it():
    planned = plan(TEXTS, seed=1)
    new = {stem(word) for word in planned.new_words}
    assert len(new) >= 3
    for split, clips in planned.splits.items():
        for clip in clips:
            has = new & {stem(word) for word in words_of(clip.sentence.text)}
            assert bool(has) == (split == "new_words"), (split, clip.sentence.text)


def test_every_word_of_the_held_out_sentences_is_in_training():
    splits = plan(TEXTS, seed=1).splits
    for split in ("dev", "test", "unseen_voice"):
        assert words_in(splits[split]) <= words_in(splits["train"])
        assert len(splits[split]) == round(0.015 * len(TEXTS))
    assert len(splits["new_words"]) >= 0.02 * len(TEXTS)


def test_each_sentence_is_in_one_split_and_spoken_once():
    splits = plan(TEXTS, seed=1).splits
    assert Counter(clip.sentence for clips in splits.values() for clip in clips) == Counter(TEXTS)
    for split, clips in splits.items():
        expected = {"awb"} if split == "unseen_voice" else {"slt", "rms", "kal16"}
        assert {clip.voice.name for clip in clips} == expected
    tempo = [clip.stretch / clip.voice.stretch for clip in splits["train"]]
    assert min(tempo) == pytest.approx(0.8, abs=0.02)
    assert max(tempo) == pytest.approx(1.25, abs=0.02)


def test_more_takes_are_other_clips_of_training_alone():
    once, twice = plan(TEXTS, seed=1).splits, plan(TEXTS, seed=1, takes=2).splits
    assert {split: twice[split] for split in HELD_OUT} == {split: once[split] for split in HELD_OUT}
    assert twice["train"][: len(once["train"])] == once["train"]
    assert len({clip.file for clip in twice["train"]}) == 2 * len(once["train"])
    assert {*Counter(clip.sentence for clip in twice["train"]).values()} == {2}


def test_the_plan_depends_on_the_seed_and_not_on_the_order():
    assert plan(TEXTS[::-1], seed=1) == plan(TEXTS, seed=1)
    assert plan(TEXTS, seed=2).new_words != plan(TEXTS, seed=1).new_words


def test_too_few_sentences_for_all_splits_are_refused():
    with pytest.raises(UserError, match="10 sentences are too few"):
        plan(TEXTS[:10], seed=1)


def test_forms_of_a_word_have_one_stem():
    assert len({stem(word) for word in ("bake", "bakes", "baked", "baking", "baker's"[:5])}) == 1
    assert len({stem(word) for word in ("stop", "stops", "stopped", "stopping")}) == 1
    assert len({stem(word) for word in ("family", "families", "family's")}) == 1
    assert stem("river") != stem("rival")


def test_a_change_of_the_plan_needs_another_version():
    """If this fails: increase PLAN_VERSION, and put the new digest here. Complete corpora are then made anew."""
    planned = plan(TEXTS, seed=1)
    rows = [clip.row() for split in planned.splits.values() for clip in split]
    found = sha256(repr((rows, planned.new_words)).encode()).hexdigest()[:12]
    assert (open_vocabulary.PLAN_VERSION, found) == (1, "1085b3b0fd63")


@pytest.mark.timeout(600)
def test_the_whole_corpus_has_enough_sentences_and_words(monkeypatch):
    if not wordnet.DEBIAN_FOLDER.is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "needs WordNet; make setup says how to install it"
        )
    monkeypatch.setattr(open_vocabulary, "TEMPLATE_SENTENCES", 6_000)
    splits = SpokenOpen("nowhere").splits()
    texts = [clip.sentence.text for clips in splits.values() for clip in clips]
    assert len(set(texts)) == len(texts) >= 14_000
    assert len(words_in(splits["train"])) >= 12_000
    assert all(len(splits[split]) >= 500 for split in HELD_OUT)
    assert max(map(len, texts)) <= wordnet.MAX_CHARACTERS


# ---- the corpus


def test_the_manifests_read_what_was_planned(corpus):
    splits = corpus.splits()
    assert {path.stem for path in (corpus.release / "en").glob("*.tsv")} == {
        *splits,
        "validated",
        "clip_durations",
    }
    for split, clips in splits.items():
        manifest = corpus.manifest(split)
        assert manifest.skipped == []
        assert manifest.clips["text"].to_pylist() == [clip.sentence.text for clip in clips]
        assert manifest.column("template") == [clip.sentence.template for clip in clips]
        assert 0.7 < manifest.durations.min() < manifest.durations.max() < 7
    assert len(corpus.manifest("validated")) == MINIMUM
    assert {"wordnet"} < {*corpus.manifest("validated").column("template")}


def test_the_notice_and_the_new_words_are_in_the_corpus(corpus, examples):
    assert (corpus.release / NOTICE_FILE).read_text() == wordnet.notice(examples)
    listed = (corpus.release / WORDS_FILE).read_text().split()
    assert listed
    for text in corpus.manifest("train").clips["text"].to_pylist():
        assert words_of(text).isdisjoint(listed)


def test_a_complete_corpus_needs_neither_flite_nor_wordnet(corpus, monkeypatch):
    monkeypatch.setenv("PATH", "")
    again = SpokenOpen(corpus.release.parent, "nowhere")
    assert len(again.manifest("validated")) == MINIMUM


def test_it_goes_on_after_an_interruption(examples, tmp_path, monkeypatch):
    corpus, speak, spoken = SpokenOpen(tmp_path, examples), release._speak, []

    def until_interrupted(clip, folder):
        if len(spoken) == 10:
            raise KeyboardInterrupt
        spoken.append(clip.file)
        speak(clip, folder)

    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # one thread
    monkeypatch.setattr(release, "_speak", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        corpus.prepare()
    first, spoken[:] = spoken[:], []
    # Only what is missing is spoken, by a stand-in, for the sake of time.
    sound = (tmp_path / corpus.release.name / "en" / "clips" / first[0]).read_bytes()
    monkeypatch.setattr(
        release,
        "_speak",
        lambda clip, folder: spoken.append(clip.file) or (folder / clip.file).write_bytes(sound),
    )
    corpus.prepare()
    assert len(first) == 10
    assert len(spoken) == MINIMUM - 10
    assert {*first}.isdisjoint(spoken)
    spoken.clear()
    corpus.prepare()
    assert spoken == []


def test_without_wordnet_one_line_says_what_to_install(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--root", str(tmp_path), "--wordnet", str(tmp_path / "nowhere")])
    said = capsys.readouterr().err
    assert "apt-get install wordnet-base" in said
    assert "data.wordnet=FOLDER" in said
    assert said.count("\n") == 1


def test_values_out_of_range_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 100 sentences, not 99"):
        SpokenOpen(tmp_path, limit=99)
    with pytest.raises(UserError, match=r"data\.takes=0"):
        SpokenOpen(tmp_path, takes=0)


def test_other_settings_have_folders_of_their_own(tmp_path):
    settings = [{}, {"seed": 2}, {"limit": 200}, {"takes": 2}, {"seed": 2, "limit": 200, "takes": 2}]
    corpora = [SpokenOpen(tmp_path, **each) for each in settings]
    assert len({corpus.release for corpus in corpora}) == len({corpus.identity for corpus in corpora}) == 5
    assert corpora[0].release == tmp_path / "cv-corpus-spoken-open"


def test_the_command_says_what_there_is(corpus, examples, capsys):
    arguments = ["--root", str(corpus.release.parent), "--wordnet", str(examples)]
    assert main(arguments) == 0
    folder, *lines = capsys.readouterr().out.splitlines()
    assert folder == str(corpus.release)
    splits = corpus.splits()
    for line, split in zip(lines, ("train", "dev", "test", "new_words", "unseen_voice"), strict=True):
        name, clips, _, minutes, _, words, _ = line.split()
        assert (name, int(clips), int(words)) == (split, len(splits[split]), len(words_in(splits[split])))
        assert float(minutes) > 0


# ---- the neural voice


def test_the_neural_voice_says_the_sentences_of_dev(corpus, monkeypatch):
    said = []

    class Piper:
        def synthesize(self, text, config):
            said.append((text, config.length_scale))
            yield SimpleNamespace(audio_float_array=np.ones(11_025, np.float32) / 8, sample_rate=22_050)

    monkeypatch.setattr(voices, "find_spec", lambda name: name)
    monkeypatch.setattr(voices, "_load", lambda package: Piper())
    monkeypatch.setitem(
        sys.modules, "piper", SimpleNamespace(SynthesisConfig=lambda **given: SimpleNamespace(**given))
    )
    manifest, dev = corpus.manifest("neural_voice"), corpus.manifest("dev")
    assert manifest.clips["text"].to_pylist() == dev.clips["text"].to_pylist()
    assert {*manifest.clips["speaker"].to_pylist()} == {"joe"}
    assert manifest.durations == pytest.approx(0.5, abs=0.1)
    assert sorted(text for text, _ in said) == sorted(dev.clips["text"].to_pylist())
    assert all(0.8 <= stretch <= 1.25 for _, stretch in said)
    folder = corpus.release.with_name("cv-corpus-spoken-open-neural")
    assert (folder / NOTICE_FILE).read_text() == (corpus.release / NOTICE_FILE).read_text()


def test_without_the_neural_voice_one_line_says_what_to_install(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(voices, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'diva\[neural\]'"):
        SpokenOpen(tmp_path, examples).manifest("neural_voice")
