"""Every clip is read to its end, whatever its header says, or is refused."""

import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from diva.audio.decoding import decode, duration_of
from diva.errors import AudioFault

pytestmark = pytest.mark.faults
RATE = 16_000


def speech(seconds: float = 6.0) -> np.ndarray:
    """Loud, silent and loud again: a bitrate that varies."""
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, int(seconds * RATE))
    samples[RATE : 2 * RATE] = 0
    samples[4 * RATE : 5 * RATE] *= 0.01
    return samples


def encode(kind: str, samples: np.ndarray | None = None, **options) -> bytes:
    container, _, coding = kind.partition("/")
    file = io.BytesIO()
    samples = speech() if samples is None else samples
    soundfile.write(file, samples, RATE, format=container, subtype=coding or None, **options)
    return file.getvalue()


def mp3_through_a_pipe(loudest_first: bool = False) -> bytes:
    """As an encoder writes it that cannot go back to the beginning: without the Xing frame, of 288 bytes here."""
    samples = speech()[:: -1 if loudest_first else 1]
    data = encode("MP3", samples, bitrate_mode="VARIABLE", compression_level=0.5)
    assert data[13:17] == b"Xing"
    return data[288:]


def id3_with_cover(size: int = 200_000) -> bytes:
    picture = b"\0image/jpeg\0\3\0" + np.random.default_rng(0).bytes(size)
    body = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    syncsafe = bytes(len(body) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + syncsafe + body


def wav_of_size(size: int) -> bytes:
    data = bytearray(encode("WAV"))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    return bytes(data)


def flac_of_unknown_length() -> bytes:
    data = bytearray(encode("FLAC"))
    data[21] &= 0xF0  # the number of samples, 36 bits of the block STREAMINFO, which is at byte 8
    data[22:26] = bytes(4)
    return bytes(data)


WHOLE: dict[str, Callable[[], bytes]] = {
    "mp3, quiet start": mp3_through_a_pipe,
    "mp3, loud start": lambda: mp3_through_a_pipe(loudest_first=True),
    "mp3 with cover": lambda: id3_with_cover() + mp3_through_a_pipe(),
    "mp3 with cover, Xing": lambda: id3_with_cover() + encode("MP3"),
    "mp3 with old tag": lambda: mp3_through_a_pipe() + b"TAG" + bytes(125),
    "mp3, zeros behind": lambda: mp3_through_a_pipe() + bytes(5_000),
    "mp3, constant": lambda: encode("MP3", bitrate_mode="CONSTANT"),
    "wav, size never written": lambda: wav_of_size(0),
    "wav from ffmpeg's pipe": lambda: wav_of_size(0xFFFF_FFFF),
    "wav from sox's pipe": lambda: wav_of_size(0x7FFF_F000),
    "flac from a pipe": flac_of_unknown_length,
    "gsm in wav": lambda: encode("WAV/GSM610"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_clip_is_read_to_its_end(tmp_path: Path, name: str):
    data = WHOLE[name]()
    (tmp_path / "clip").write_bytes(data)
    for source in (data, tmp_path / "clip"):
        assert len(decode(source)) == pytest.approx(6.0 * RATE, abs=0.1 * RATE)
        assert duration_of(source) == pytest.approx(6.0, abs=0.1)


def test_what_is_heard_is_what_was_said():
    """The last second of an mp3 without Xing header, against that of the same clip with one."""
    heard, expected = decode(mp3_through_a_pipe()), decode(encode("MP3", bitrate_mode="VARIABLE"))
    tail = heard[-len(expected) :][-2 * RATE :] if len(heard) > len(expected) else heard[-2 * RATE :]
    power = np.square(tail).mean()
    assert power == pytest.approx(np.square(expected[-2 * RATE :]).mean(), rel=0.1)


def test_two_mp3_in_one_file_are_both_read():
    assert len(decode(encode("MP3") * 2)) == pytest.approx(12 * RATE, abs=0.3 * RATE)


HALVES = ("MP3", "WAV", "WAV/ULAW", "WAVEX", "RF64", "W64", "AIFF", "AU", "FLAC", "OGG", "OGG/OPUS")


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", HALVES)
def test_half_a_file_ends_early(kind: str, share: float):
    data = encode(kind)
    with pytest.raises(AudioFault) as caught:
        decode(data[: int(share * len(data))])
    assert caught.value.reason == "ends early"


@pytest.mark.parametrize("cut", [1, 2, 3, 30, 100, 1_000, 2_001])
def test_an_mp3_without_header_that_breaks_off_ends_early(cut: int):
    with pytest.raises(AudioFault, match=r"^ends early: bytes breaks off within a frame, after \d\.\d s$"):
        decode(mp3_through_a_pipe()[:-cut])


@pytest.mark.parametrize(
    "data",
    [encode("WAV") * 2, wav_of_size(RATE), encode("OGG/OPUS") * 2],
    ids=["two wavs", "half of a wav announced", "two oggs"],
)
def test_what_follows_the_announced_end_is_not_passed_over(data: bytes):
    with pytest.raises(AudioFault, match="damaged audio"):
        decode(data)


def test_an_empty_file_says_so(tmp_path: Path):
    (tmp_path / "a.mp3").touch()
    with pytest.raises(AudioFault, match=r"a\.mp3 is empty, it has 0 bytes"):
        decode(tmp_path / "a.mp3")
    with pytest.raises(AudioFault, match="is empty"):
        decode(b"")


def test_hours_that_only_the_header_knows_are_refused():
    data = encode("FLAC", np.tile(speech(), 6))
    assert duration_of(data, max_seconds=40) == pytest.approx(36)
    with pytest.raises(AudioFault, match=r"lasts 36\.0 s, the limit is 30 s"):
        decode(data)
    unknown = bytearray(data)
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    with pytest.raises(AudioFault, match="lasts more than the limit of 30 s"):
        decode(bytes(unknown))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "OGG", "WAV/GSM610"])
def test_a_segment_is_that_segment(kind: str):
    step = np.zeros(6 * RATE)
    step[int(2.5 * RATE) : int(3.5 * RATE)] = 0.5 * np.sin(np.arange(RATE) * 0.3)
    data = encode(kind, step)
    loud = decode(data, offset=2.5, duration=1.0)
    assert len(loud) == pytest.approx(RATE, abs=10)
    assert np.square(loud).mean() == pytest.approx(0.125, rel=0.2)
    with pytest.raises(AudioFault, match="silence"):
        decode(data, offset=4.0, duration=1.0)
    with pytest.raises(AudioFault, match=r"lasts 6\.. s, 5\.5 s to 7\.5 s of it are wanted"):
        decode(data, offset=5.5, duration=2.0)
    assert len(decode(data, 3.0, offset=3.2)) == pytest.approx(2.8 * RATE, abs=0.1 * RATE)


def recorded(container: str, codec: str) -> bytes:
    """What a phone or a browser records."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48_000, layout="mono")
        tone = 0.3 * np.sin(np.arange(3 * 48_000) * 0.05)
        frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 48_000, 0
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=48_000, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("webm", "libopus"), ("adts", "aac")])
def test_what_phones_and_browsers_record_is_read(container: str, codec: str, monkeypatch: pytest.MonkeyPatch):
    data = recorded(container, codec)
    heard = decode(data)
    assert len(heard) == pytest.approx(3 * RATE, abs=0.1 * RATE)
    assert np.square(heard[RATE : 2 * RATE]).mean() == pytest.approx(0.045, rel=0.1)
    with pytest.raises(AudioFault, match=r"ends early|damaged audio"):
        decode(data[: len(data) // 2])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioFault, match=r"pip install av; or convert it: ffmpeg") as caught:
        decode(data)
    assert caught.value.reason == "unknown format"
