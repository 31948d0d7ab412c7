"""Loudness, number formats and channels: which clips are read, and which are refused."""

import io

import numpy as np
import pytest
import soundfile

from diva.audio.decoding import decode, to_waveform
from diva.errors import AudioFault

pytestmark = pytest.mark.faults
SPEECH = np.random.default_rng(0).uniform(-0.4, 0.4, 16_000)
OTHER = np.random.default_rng(1).uniform(-0.4, 0.4, 16_000)


def wav(samples: np.ndarray, subtype: str = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype=subtype)
    return file.getvalue()


def test_louder_than_full_scale_is_scaled_down_and_not_clipped():
    loud = SPEECH * 3.0 / np.abs(SPEECH).max()
    np.testing.assert_allclose(decode(wav(loud)), loud / 3.0, atol=1e-6)
    np.testing.assert_allclose(decode(wav(SPEECH)), SPEECH, atol=1e-6)


@pytest.mark.parametrize("peak", [9.0, 127.0, 32_767.0, 1e30])
def test_numbers_of_another_format_are_refused(peak: float):
    samples = SPEECH * peak / np.abs(SPEECH).max()
    for heard in (lambda: decode(wav(samples)), lambda: to_waveform(samples)):
        with pytest.raises(AudioFault, match=r"^out of range: .* full scale is 1") as caught:
            heard()
        assert caught.value.reason == "out of range"


def test_numbers_beyond_float32_are_out_of_range():
    with pytest.raises(AudioFault, match="out of range"):
        to_waveform(SPEECH * 1e300)


@pytest.mark.parametrize(
    ("kind", "samples"),
    [
        (np.int16, SPEECH * 32_768),
        (np.int32, SPEECH * 32_768),
        (np.int64, SPEECH * 32_768),
        (np.int32, SPEECH * 2**31),
        (np.int64, SPEECH * 2**31),
        (np.uint8, SPEECH * 128 + 128),
        (np.int8, SPEECH * 128),
    ],
)
def test_whole_numbers_are_scaled_by_what_they_are(kind: type, samples: np.ndarray):
    heard = to_waveform(np.rint(samples).astype(kind))
    np.testing.assert_allclose(heard, SPEECH, atol=1 / 128)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ([SPEECH, -SPEECH], SPEECH),
        ([-0.9 * SPEECH, SPEECH], 0.95 * SPEECH),
        ([SPEECH, 0 * SPEECH], SPEECH),
        ([0 * SPEECH + 0.3, SPEECH], SPEECH),
        ([SPEECH, SPEECH, -SPEECH, 0 * SPEECH], SPEECH),
        ([SPEECH, OTHER], (SPEECH + OTHER) / 2),
    ],
    ids=["cancel", "nearly cancel", "one silent", "one constant", "four", "two speakers"],
)
def test_channels_are_mixed_so_that_speech_is_heard(channels: list[np.ndarray], expected: np.ndarray):
    np.testing.assert_allclose(decode(wav(np.stack(channels, axis=1))), expected, atol=1e-6)


@pytest.mark.parametrize("samples", [np.full(16_000, 0.5), np.full((16_000, 2), [0.5, -0.5])])
def test_a_constant_is_silence(samples: np.ndarray):
    with pytest.raises(AudioFault, match=r"^silence"):
        decode(wav(samples))
