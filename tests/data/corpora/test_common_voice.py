"""Releases in the official layout, whole and broken: every row is either in the manifest or in its list of skips."""

import gzip
import io
import os
import pickle
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from calls import calls_of_diva

from diva.data.corpora import common_voice
from diva.data.corpora.common_voice import CommonVoice
from diva.data.manifest import check_skipped, count_by_reason
from diva.errors import AudioFault, UserError

COLUMNS = [
    "client_id",
    "path",
    "sentence_id",
    "sentence",
    "up_votes",
    "down_votes",
    "age",
    "gender",
    "accents",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tone(seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    wave = 0.3 * np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 440 / rate).astype(np.float32)
    return np.stack([wave] * channels, axis=1)


def clip(folder: Path, name: str, seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, tone(seconds, rate, channels), rate, format="MP3")
    return name


def row(path: str, sentence: str, client: str = "anna", **cells: str) -> str:
    cells |= {"client_id": client, "path": path, "sentence": sentence}
    return "\t".join(cells.get(column, "") for column in COLUMNS)


def locale_folder(root: Path, rows: list[str], split: str = "train", columns: list[str] = COLUMNS) -> Path:
    (root / "clips").mkdir(parents=True, exist_ok=True)
    (root / f"{split}.tsv").write_text("\n".join(["\t".join(columns), *rows]) + "\n", encoding="utf-8")
    return root


def write_durations(root: Path, milliseconds: dict[str, str]) -> None:
    lines = ["clip\tduration[ms]", *(f"{name}\t{value}" for name, value in milliseconds.items())]
    (root / "clip_durations.tsv").write_text("\n".join(lines) + "\n")


def test_every_row_is_kept_or_skipped_with_its_reason(tmp_path: Path):
    folder = tmp_path / "en"
    clips = folder / "clips"
    sound = [
        row(clip(clips, "a.mp3"), 'He said "hi', age="twenties"),
        row(clip(clips, "b.mp3", rate=48_000, channels=2), '"Quoted"', client="bert"),
        row(clip(clips, "c.MP3"), "  padded \u00a0"),
        row(clip(clips, "größe.mp3"), "Schöne Grüße, 日本語"),
        row("a.mp3", 'He said "hi', age="twenties"),
        row("link.mp3", "through a link"),
    ]
    (clips / "link.mp3").symlink_to(clips / "a.mp3")
    (clips / "broken link.mp3").symlink_to(tmp_path / "nowhere.mp3")
    (clips / "loop.mp3").symlink_to(clips / "loop.mp3")
    (clips / "folder.mp3").mkdir()
    (tmp_path / "secret.mp3").write_bytes((clips / "a.mp3").read_bytes())
    for name in ("empty.mp3", "blank.mp3", "zero.mp3", "long.mp3"):
        clip(clips, name)
    faulty = [
        row("empty.mp3", ""),
        row("blank.mp3", " \u3000 "),
        row("zero.mp3", "nothing"),
        row("long.mp3", "forever"),
        *(row(name, "gone") for name in ("gone.mp3", "broken link.mp3", "loop.mp3", "folder.mp3", "")),
        row("../../secret.mp3", "elsewhere"),
        row(str(tmp_path / "secret.mp3"), "elsewhere"),
        "anna\tshort.mp3",
        row("a.mp3", "one\ttab") + "\tmore",
        row("a.mp3", "BROKEN"),
    ]
    locale_folder(folder, [*sound, *faulty])
    tsv = folder / "train.tsv"
    tsv.write_bytes(tsv.read_bytes().replace(b"BROKEN", b"caf\xe9") + b"anna\tcut off")
    write_durations(folder, {"a.mp3": "500", "b.mp3": "x", "zero.mp3": "0", "long.mp3": "30001"})

    manifest = CommonVoice(folder).manifest("train")

    assert [manifest.text(i) for i in range(len(manifest))] == [
        'He said "hi',
        '"Quoted"',
        "padded",
        "Schöne Grüße, 日本語",
        'He said "hi',
        "through a link",
    ]
    assert manifest.column("speaker") == ["anna", "bert", "anna", "anna", "anna", "anna"]
    assert manifest.column("age") == ["twenties", "", "", "", "twenties", ""]
    np.testing.assert_array_equal(manifest.durations, np.float32([0.5, *[np.nan] * 3, 0.5, np.nan]))
    for index in range(len(manifest)):
        assert len(manifest.waveform(index)) == pytest.approx(8_000, abs=1_200)
    assert count_by_reason(manifest.skipped) == {
        "missing file": 7,
        "damaged row": 4,
        "empty text": 2,
        "zero length": 1,
        "too long": 1,
    }
    rows_in_file = tsv.read_bytes().rstrip(b"\n").count(b"\n")
    assert len(manifest) + len(manifest.skipped) == rows_in_file
    by_id = {skip.clip_id: skip.reason for skip in manifest.skipped}
    assert by_id["short.mp3"] == "damaged row"
    assert by_id["../../secret.mp3"] == "missing file"


def test_damaged_audio_is_found_when_it_is_decoded(tmp_path: Path):
    folder = locale_folder(tmp_path / "en", [row("junk.mp3", "junk")])
    (folder / "clips" / "junk.mp3").write_bytes(b"<html>not audio</html>" * 50)
    manifest = CommonVoice(folder).manifest("train")
    with pytest.raises(AudioFault, match="damaged audio"):
        manifest.waveform(0)


def test_names_match_across_unicode_forms_and_case(tmp_path: Path):
    folder = locale_folder(tmp_path / "de", [row("für.mp3", "composed"), row("Loud.mp3", "upper case")])
    clip(folder / "clips", unicodedata.normalize("NFD", "für.mp3"))
    clip(folder / "clips", "LOUD.MP3")
    manifest = CommonVoice(folder).manifest("train")
    assert len(manifest) == 2
    assert manifest.waveform(0).any()
    assert manifest.waveform(1).any()


def test_first_releases_lack_columns_and_endings(tmp_path: Path):
    folder = locale_folder(tmp_path / "cy", ["7f\tbore da"], columns=["path", "sentence"])
    clip(folder / "clips", "7f.mp3")
    manifest = CommonVoice(folder).manifest("train")
    assert manifest.clips.column_names == ["clip_id", "text", "duration", "speaker"]
    assert manifest.column("speaker") == [""]
    assert np.isnan(manifest.durations).all()
    assert manifest.waveform(0).any()


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path):
    folder = tmp_path / "en"
    clip(folder / "clips", "a.mp3")
    (folder / "dev.tsv").write_bytes(b"\xef\xbb\xbfpath\tsentence\r\n\r\na.mp3\thello\r\n")
    (folder / "clip_durations.tsv").write_bytes(b"\xef\xbb\xbfclip\tduration[ms]\r\na.mp3\t1250\r\n")
    manifest = CommonVoice(folder).manifest("dev")
    assert [manifest.text(0), manifest.durations[0], len(manifest.skipped)] == ["hello", 1.25, 0]


@pytest.mark.parametrize("rows", [[], ["\t".join([""] * len(COLUMNS))]])
def test_a_split_without_clips_is_refused_by_name(tmp_path: Path, rows: list[str]):
    folder = locale_folder(tmp_path / "en", rows)
    (folder / "clip_durations.tsv").touch()
    manifest = CommonVoice(folder).manifest("train")
    assert [len(manifest), len(manifest.skipped)] == [0, len(rows)]
    with pytest.raises(UserError, match=r"'train' of .*train\.tsv has no clip"):
        check_skipped({"train": manifest}, 0.05, "skipped.tsv")


def test_a_missing_split_names_those_that_are_there(tmp_path: Path):
    folder = locale_folder(tmp_path / "en", [])
    locale_folder(folder, [], split="validated")
    (folder / "reported.tsv").write_text("sentence_id\tsentence\treason\n")
    (folder / "folder.tsv").mkdir()
    with pytest.raises(UserError, match=r"no split 'dev' .* there are: train, validated$"):
        CommonVoice(folder).manifest("dev")
    with pytest.raises(UserError, match="no split 'reported'"):
        CommonVoice(folder).manifest("reported")


def test_tables_with_double_or_unreadable_columns_are_refused(tmp_path: Path):
    folder = locale_folder(tmp_path / "en", [], columns=["path", "sentence", "path"])
    with pytest.raises(UserError, match="more than one column named 'path'"):
        CommonVoice(folder).manifest("train")
    locale_folder(folder, ["x" * (9 << 20) + "\ty"], columns=["path", "sentence"])
    with pytest.raises(UserError, match=r"train\.tsv is not a tab-separated table"):
        CommonVoice(folder).manifest("train")


def test_the_locale_is_found_or_asked_for(tmp_path: Path):
    release = tmp_path / "corpora" / "cv-corpus-17.0-2024-03-15"
    english = locale_folder(release / "en", [])
    for root in (tmp_path / "corpora", release, english):
        assert CommonVoice(root).folder == english
        assert CommonVoice(root, "en").folder == english
    with pytest.raises(UserError, match=r"no locale 'fr' in .* there are: cv-corpus-17.0-2024-03-15/en"):
        CommonVoice(release, "fr")
    german = locale_folder(release / "de", [])
    with pytest.raises(UserError, match=r"data\.locale .*/de, .*/en$"):
        CommonVoice(release)
    assert CommonVoice(release, "de").folder == german
    with pytest.raises(UserError, match="no Common Voice release at"):
        CommonVoice(tmp_path / "absent")
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="is no Common Voice release"):
        CommonVoice(tmp_path / "void")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = locale_folder(tmp_path / "cv-corpus-1" / "en", [row("a.mp3", "hello"), row("b.mp3", "you")])
    for name in ("a.mp3", "b.mp3"):
        clip(folder / "clips", name, seconds=2.0)
    write_durations(folder, {"a.mp3": "2000", "b.mp3": "2001"})
    with tarfile.open(tmp_path / "cv-corpus-1-en.tar.gz", "w:gz") as tar:
        tar.add(folder.parent, arcname="./cv-corpus-1")
    return tmp_path / "cv-corpus-1-en.tar.gz"


def inflate(archive: Path) -> Path:
    plain = archive.with_name("plain.tar")
    plain.write_bytes(gzip.decompress(archive.read_bytes()))
    return plain


@pytest.mark.parametrize("compressed", [True, False])
def test_an_archive_gives_what_its_folder_gives(archive: Path, cache: Path, compressed: bool):
    folder = CommonVoice(archive.with_name("cv-corpus-1")).manifest("train")
    given = archive if compressed else inflate(archive)
    manifest = CommonVoice(given, "en").manifest("train")
    assert manifest.clips.equals(folder.clips)
    manifest = pickle.loads(pickle.dumps(manifest))
    for index in range(2):
        np.testing.assert_array_equal(manifest.waveform(index), folder.waveform(index))
        assert manifest.audio.seconds(index) == folder.audio.seconds(index)
    # Nothing is unpacked: a compressed archive becomes one file, a plain one is read where it is.
    assert not list(cache.rglob("*.mp3"))
    assert [file.name for file in cache.rglob("*.tar")] == (["archive.tar"] if compressed else [])


def test_an_archive_is_indexed_once_and_again_when_it_changes(archive: Path, monkeypatch: pytest.MonkeyPatch):
    first = CommonVoice(archive)
    with monkeypatch.context() as patch:
        patch.setattr(common_voice, "plain_tar", lambda *_: pytest.fail("inflated again"))
        assert CommonVoice(archive).folder == first.folder
    os.utime(archive, (1, 1))
    assert CommonVoice(archive).folder != first.folder


def test_names_in_an_archive_are_found_as_in_a_folder(tmp_path: Path):
    folder = locale_folder(tmp_path / "en", [row("LOUD.mp3", "upper case"), row("7f", "no ending")])
    clip(folder / "clips", "loud.MP3")
    clip(folder / "clips", "7f.mp3")
    (folder / "clips" / "deeper").mkdir()
    with tarfile.open(tmp_path / "old.tar", "w") as tar:
        # A locale's own folder as the root, with what makes no sense in a release beside it.
        tar.add(folder, arcname=".")
        tar.add(folder / "clips" / "7f.mp3", arcname=os.fsdecode(b"clips/\xff.mp3"))
        tar.add(folder / "clips" / "7f.mp3", arcname="clips/deeper/8f.mp3")
    manifest = CommonVoice(tmp_path / "old.tar").manifest("train")
    assert [len(manifest), manifest.skipped] == [2, []]
    locale_folder(folder, [row(name, "not there") for name in ("deeper/8f.mp3", "8f.mp3", "9f.mp3")])
    with tarfile.open(tmp_path / "new.tar", "w") as tar:
        tar.add(folder, arcname=".")
    manifest = CommonVoice(tmp_path / "new.tar").manifest("train")
    assert count_by_reason(manifest.skipped) == {"missing file": 3}
    assert all(str(tmp_path / "new.tar") in skip.detail for skip in manifest.skipped)


def test_locales_of_one_archive_keep_their_clips_apart(tmp_path: Path):
    release = tmp_path / "cv-corpus-1"
    for locale, seconds in {"de": 0.5, "en": 1.5}.items():
        folder = locale_folder(release / locale, [row("a.mp3", locale)])
        clip(folder / "clips", "a.mp3", seconds)
    with tarfile.open(tmp_path / "both.tar", "w") as tar:
        tar.add(release, arcname=release.name)
    lengths = [
        len(CommonVoice(tmp_path / "both.tar", locale).manifest("train").waveform(0))
        for locale in ("de", "en")
    ]
    assert lengths == pytest.approx([8_000, 24_000], abs=1_200)


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9, -8])
def test_a_truncated_archive_leaves_nothing_behind(archive: Path, cache: Path, kept: float):
    data = archive.read_bytes()
    archive.write_bytes(data[: int(kept if kept < 0 else kept * len(data))])
    with pytest.raises(UserError, match=r"cv-corpus-1-en\.tar\.gz is damaged"):
        CommonVoice(archive)
    assert [path for path in (cache / "archives").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("kept", [700, 0.5, -10_240])
def test_a_truncated_tar_is_refused(archive: Path, kept: float):
    plain = inflate(archive)
    data = plain.read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512 + 10_240)
    plain.write_bytes(data[: int(kept if abs(kept) > 1 else kept * len(data))])
    with pytest.raises(UserError, match=r"plain\.tar is damaged, or no tar archive"):
        CommonVoice(plain)


def test_a_flipped_bit_in_an_archive_is_noticed(archive: Path):
    data = bytearray(archive.read_bytes())
    data[-6] ^= 1  # in the checksum, which follows all that a tar holds
    archive.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        CommonVoice(archive)


@pytest.mark.parametrize("name", ["../outside.tsv", "/{root}/outside.tsv", "en/../../../outside.tsv"])
def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, name: str):
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo(name.format(root=tmp_path)), io.BytesIO())
    with pytest.raises(UserError, match=r"evil\.tar is no Common Voice release"):
        CommonVoice(path)
    assert not list(tmp_path.rglob("*outside*"))


@pytest.mark.faults
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


@pytest.mark.faults
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


@pytest.mark.faults
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


@pytest.mark.faults
@pytest.mark.parametrize("text", ["...", "—", "?!", "🙂", '""""'])
def test_a_transcript_without_a_letter_is_skipped(tmp_path: Path, text: str):
    folder = locale_folder(tmp_path / "en", [row("a.mp3", text), row("a.mp3", "word")])
    clip(folder / "clips", "a.mp3")
    manifest = CommonVoice(folder).manifest("train")
    assert [len(manifest), count_by_reason(manifest.skipped)] == [1, {"empty text": 1}]


@pytest.mark.faults
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


class Entry:
    """Stands for a file in a folder that would take too long to create."""

    def __init__(self, number: int):
        self.name = f"common_voice_en_{number:08d}.mp3"

    def is_file(self) -> bool:
        return True


class Listing:
    def __init__(self, size: int):
        self.entries = map(Entry, range(size))

    def __enter__(self):
        return self.entries

    def __exit__(self, *_):
        return None


@pytest.mark.integration
def test_common_voice_does_no_python_work_for_each_row(tmp_path: Path):
    size = 1000
    rows = [
        row(f"common_voice_en_{i:08d}.mp3", f"sentence number {i}", client=str(i // 20)) for i in range(size)
    ]
    folder = locale_folder(tmp_path / "en", rows)
    write_durations(folder, {f"common_voice_en_{i:08d}.mp3": "4000" for i in range(size)})
    for i in range(size - 10):
        (folder / "clips" / f"common_voice_en_{i:08d}.mp3").touch()
    found = []
    calls = calls_of_diva(lambda: found.append(CommonVoice(folder).manifest("train")))
    assert [len(found[0]), len(found[0].skipped)] == [size - 10, 10]
    # Three for each file of the folder; none for a row.
    assert calls < 4 * size
