"""Decoding and its faults."""

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import noise

from diva.audio.decoding import decode
from diva.audio.frames import SAMPLE_RATE
from diva.errors import AudioFault


def test_decode_resamples_and_mixes_down(tmp_path: Path):
    seconds, rate = 1.0, 44_100
    time = np.arange(int(seconds * rate)) / rate
    left = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([left, 0.5 * left], axis=1), rate)
    waveform = decode(tmp_path / "a.wav")
    assert waveform.dtype == np.float32
    assert len(waveform) == SAMPLE_RATE
    expected = 0.75 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    assert np.abs(waveform - expected)[200:-200].max() < 2e-3
    assert np.array_equal(decode((tmp_path / "a.wav").read_bytes()), waveform)


def _faulty(folder: Path) -> dict[str, str | Path | bytes]:
    (folder / "text.mp3").write_text("this is no audio")
    soundfile.write(folder / "empty.wav", np.zeros(0, np.float32), 16_000)
    soundfile.write(folder / "silent.wav", np.zeros(16_000, np.float32), 16_000)
    soundfile.write(folder / "long.wav", noise(31, 0), 16_000)
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    return {
        "missing file": folder / "nowhere.wav",
        "damaged audio": folder / "text.mp3",
        "zero length": folder / "empty.wav",
        "silence": folder / "silent.wav",
        "too long": folder / "long.wav",
    }


def test_each_fault_has_its_reason(tmp_path: Path):
    for reason, source in _faulty(tmp_path).items():
        with pytest.raises(AudioFault) as caught:
            decode(source)
        assert caught.value.reason == reason
    for source in (tmp_path / "nan.wav", b"", b"RIFF"):
        with pytest.raises(AudioFault) as caught:
            decode(source)
        assert caught.value.reason == "damaged audio"


def test_a_header_that_claims_hours_is_refused_before_it_is_read(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", noise(0.1, 0), 16_000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    size = data.index(b"data") + 4
    data[size : size + 4] = struct.pack("<I", 16_000 * 2 * 36_000)
    data[4:8] = struct.pack("<I", 16_000 * 2 * 36_000 + 36)
    with contextlib.suppress(AudioFault):  # libsndfile may trust the header or the bytes there are
        assert len(decode(bytes(data))) <= SAMPLE_RATE
