"""Releases that are still packed: the same clips as in their folder, or an error that names the archive."""

import gzip
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from releases import clip, locale_folder, row, write_durations

from diva.data.corpora import common_voice
from diva.data.corpora.common_voice import CommonVoice
from diva.data.manifest import count_by_reason
from diva.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


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
