"""Filterbank energies against transformers' SeamlessM4TFeatureExtractor."""

import numpy as np
import pytest
import torch
from tiny import noise
from transformers import SeamlessM4TFeatureExtractor

from diva.audio.filterbank import FILTERBANK_FRAMES, Filterbank
from diva.audio.frames import pad_clips


@pytest.mark.parity
def test_features_are_those_of_transformers_in_any_batch():
    clips = [noise(0.4, 0), noise(1.3737, 1), 0.01 * noise(2.9, 2) + np.float32(0.1)]
    waveforms, samples = pad_clips(clips)
    features = Filterbank()(waveforms, samples)
    extractor = SeamlessM4TFeatureExtractor()
    for row, (clip, count) in enumerate(zip(clips, FILTERBANK_FRAMES.valid(samples).tolist(), strict=True)):
        wanted = extractor(clip, sampling_rate=16_000, return_tensors="pt")
        assert count == int(wanted["attention_mask"].sum())
        expected = wanted["input_features"][0, :count].float()
        torch.testing.assert_close(features[row, :count], expected, atol=5e-4, rtol=1e-3)
