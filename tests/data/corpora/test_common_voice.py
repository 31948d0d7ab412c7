"""Releases in the official layout, whole and broken: every row is either in the manifest or in its list of skips."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from calls import calls_of_diva
from releases import COLUMNS, clip, locale_folder, row, write_durations

from diva.data.corpora.common_voice import CommonVoice
from diva.data.manifest import check_skipped, count_by_reason
from diva.errors import AudioFault, UserError

pytestmark = pytest.mark.usefixtures("cache")


def test_every_row_is_read_or_skipped_with_its_reason(tmp_path: Path):
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
