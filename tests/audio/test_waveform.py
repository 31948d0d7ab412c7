"""Log-mel parity with transformers, decoding and its faults, frame arithmetic."""

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import noise
from transformers import WhisperFeatureExtractor

from diva.audio.waveform import SAMPLE_RATE, LogMel, decode, pad_clips, padded_samples, valid_frames
from diva.errors import AudioFault


@pytest.mark.parity
@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_log_mel_equals_transformers(num_mel_bins):
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)
    speech = [
        noise(seconds, seed) * np.linspace(0, 1, int(seconds * 16000)) ** 3
        for seed, seconds in enumerate((0.3, 4.0, 30.0))
    ]
    expected = torch.from_numpy(
        extractor(speech, sampling_rate=16_000, return_tensors="np")["input_features"]
    )
    batch = torch.zeros(3, 480_000)
    for row, wave in enumerate(speech):
        batch[row, : len(wave)] = torch.from_numpy(wave)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # features stay in float32 under bf16 training
        actual = LogMel(num_mel_bins)(batch)
    assert actual.shape == (3, num_mel_bins, 3000)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


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


def test_valid_frames_have_silence_behind_them_in_every_shape():
    for seconds in (0.05, 1.0, 2.31, 17.77, 29.0):
        samples = int(seconds * SAMPLE_RATE)
        frames = int(valid_frames(torch.tensor(samples)))
        assert frames * 320 + 400 <= padded_samples(seconds) or padded_samples(seconds) == 480_000
    waveforms, samples = pad_clips([noise(1.0, 0)])
    assert waveforms.shape == (1, padded_samples(1.0))
    assert samples.tolist() == [16_000]
