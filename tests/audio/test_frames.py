"""Frame arithmetic."""

import torch
from tiny import noise

from diva.audio.frames import SAMPLE_RATE, pad_clips, padded_samples, valid_frames


def test_valid_frames_have_silence_behind_them_in_every_shape():
    for seconds in (0.05, 1.0, 2.31, 17.77, 29.0):
        samples = int(seconds * SAMPLE_RATE)
        frames = int(valid_frames(torch.tensor(samples)))
        assert frames * 320 + 400 <= padded_samples(seconds) or padded_samples(seconds) == 480_000
    waveforms, samples = pad_clips([noise(1.0, 0)])
    assert waveforms.shape == (1, padded_samples(1.0))
    assert samples.tolist() == [16_000]
