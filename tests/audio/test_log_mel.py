"""Log-mel parity with transformers."""

import numpy as np
import pytest
import torch
from tiny import noise
from transformers import WhisperFeatureExtractor

from diva.audio.log_mel import LogMel


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
