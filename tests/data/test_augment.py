"""Which clip gets which change: by seed, step and clip alone, and never more than its bucket holds."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from diva.audio import augmentation as audio
from diva.audio.frames import SAMPLE_RATE, longest_clip, padded_samples, shortest_clip, tokens_read
from diva.config import CONFIG_DIR, make
from diva.data.augment import Augmentation, Draw
from diva.errors import UserError

DRAW = Draw(3, 17, "clip")


def augmentation(**changed: dict) -> Augmentation:
    """configs/data/augment/none.yaml with other values of some kinds."""
    config = OmegaConf.merge(OmegaConf.load(f"{CONFIG_DIR}/data/augment/none.yaml"), changed)
    return make(config)


def clip(seconds: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (0.05 * rng.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def change(augment: Augmentation, draw: Draw = DRAW, seconds: float = 1.0) -> np.ndarray:
    return augment.waveform(clip(seconds), draw, 1, 10**6)


EVERY = {
    "speed": {"factor": [0.5, 2.0]},
    "reverberation": {},
    "noise": {},
    "gain": {},
    "telephone": {},
    "codec": {"names": ["mp3"]},
}


@pytest.mark.parametrize("kind", EVERY)
def test_a_kind_depends_on_seed_step_and_clip_alone(kind):
    augment = augmentation(**{kind: {"probability": 1.0} | EVERY[kind]})
    first = change(augment)
    assert not np.array_equal(first, clip())
    torch.manual_seed(5)
    assert np.array_equal(change(augmentation(**{kind: {"probability": 1.0} | EVERY[kind]})), first)
    if kind != "telephone":  # it has nothing to draw
        for other in (Draw(4, 17, "clip"), Draw(3, 18, "clip"), Draw(3, 17, "other")):
            assert not np.array_equal(change(augment, other), first)


def test_a_kind_is_as_frequent_as_its_probability():
    augment = augmentation(gain={"probability": 0.3})
    changed = [
        not np.array_equal(change(augment, Draw(0, step, "c"), 0.01), clip(0.01)) for step in range(600)
    ]
    assert sum(changed) / 600 == pytest.approx(0.3, abs=0.06)


def test_each_kind_has_draws_of_its_own():
    noise, speed = (torch.rand(3, generator=DRAW.generator(kind)) for kind in ("noise", "speed"))
    assert not noise.equal(speed)


def test_one_kind_does_not_move_the_draws_of_another():
    noise = {"probability": 1.0}
    alone = change(augmentation(noise=noise))
    beside = change(augmentation(noise=noise, speed={"probability": 1.0, "factor": [1.0, 1.0]}))
    assert np.array_equal(alone, beside)


def test_every_clip_stays_in_full_scale():
    augment = augmentation(noise={"probability": 1.0, "snr": [-30.0, -30.0]})
    loud = augment.waveform(10 * clip(), DRAW, 1, 10**6)
    assert np.abs(loud).max() == pytest.approx(1.0)


def test_speed_is_limited_by_what_the_bucket_and_the_transcript_leave():
    slower = augmentation(speed={"probability": 1.0, "factor": [0.5, 0.5]})
    faster = augmentation(speed={"probability": 1.0, "factor": [2.0, 2.0]})
    waveform = clip(1.0)
    assert len(slower.waveform(waveform, DRAW, 1, 10**6)) == 32_000
    assert len(slower.waveform(waveform, DRAW, 1, 17_000)) == 16_843  # 0.95 times as fast
    assert len(slower.waveform(waveform, DRAW, 1, 16_000)) == 16_000
    assert len(faster.waveform(waveform, DRAW, 1, 10**6)) == 8_000
    assert len(faster.waveform(waveform, DRAW, 15_000, 10**6)) == 15_095  # 1.06 times
    assert len(faster.waveform(waveform, DRAW, 16_000, 10**6)) == 16_000


@pytest.mark.parametrize("per_second", [3.3, 12.5, 16.0])
def test_the_shortest_clip_has_as_many_virtual_tokens_as_its_transcript(per_second):
    for tokens in range(1, 120):
        shortest = shortest_clip(tokens, per_second)
        if 1 < shortest < 28 * SAMPLE_RATE:
            assert int(tokens_read(torch.tensor(shortest), 1000, per_second)) >= tokens
            assert int(tokens_read(torch.tensor(shortest - 1000), 1000, per_second)) <= tokens
    assert shortest_clip(99, None) == 1


def test_the_longest_clip_of_a_batch_leaves_the_silent_tail():
    for seconds in (0.5, 2.0, 7.3):
        assert padded_samples(longest_clip(padded_samples(seconds)) / SAMPLE_RATE) == padded_samples(seconds)


def test_noise_of_a_folder_is_a_part_of_one_of_its_recordings(tmp_path):
    rate, seconds = 8_000, 6
    (tmp_path / "deep").mkdir()
    tone = 0.2 * np.sin(2 * np.pi * 1000 * np.arange(seconds * rate) / rate)
    soundfile.write(tmp_path / "deep" / "tone.flac", tone, rate)
    augment = augmentation(noise={"probability": 1.0, "folder": str(tmp_path), "snr": [0.0, 0.0]})
    augment.check()
    noise = change(augment) - clip()
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    assert spectrum[990:1010].sum() > 0.99 * spectrum.sum()
    assert 10 * np.log10(np.square(clip()).mean() / np.square(noise).mean()) == pytest.approx(0.0, abs=0.1)
    assert "1 recordings, SNR 0 to 0 dB" in str(augment)


def test_silence_in_a_recording_leaves_the_clip_as_it_is(tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(SAMPLE_RATE * 3), SAMPLE_RATE)
    augment = augmentation(noise={"probability": 1.0, "folder": str(tmp_path)})
    assert np.array_equal(change(augment), clip())


def test_an_impulse_response_is_the_first_channel_of_its_file(tmp_path):
    response = np.zeros((800, 2), dtype=np.float32)
    response[0, 0], response[400, 0], response[0, 1], response[100, 1] = 0.9, 0.5, -0.9, 0.9
    soundfile.write(tmp_path / "room.wav", response, SAMPLE_RATE, subtype="FLOAT")
    augment = augmentation(reverberation={"probability": 1.0, "folder": str(tmp_path)})
    expected = audio.reverberate(torch.from_numpy(clip()), torch.from_numpy(response[:, 0]))
    assert np.allclose(change(augment), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["noise", "reverberation"])
def test_a_folder_without_recordings_is_the_users_to_mend(kind, tmp_path):
    (tmp_path / "notes.txt").write_text("no audio")
    augment = augmentation(**{kind: {"probability": 1.0, "folder": str(tmp_path)}})
    with pytest.raises(UserError, match=rf"data\.augment\.{kind}\.folder=.* has no audio file"):
        augment.check()
    replace(augment, **{kind: replace(getattr(augment, kind), probability=0.0)}).check()


def test_a_damaged_recording_is_named_before_training(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF nothing")
    augment = augmentation(noise={"probability": 1.0, "folder": str(tmp_path)})
    with pytest.raises(UserError, match=r"data\.augment\.noise\.folder=.*bad\.wav.*; take that file out"):
        augment.check()


@pytest.mark.parametrize(("kind", "key"), [("noise", "colours"), ("codec", "names")])
def test_a_misspelt_colour_or_codec_lists_those_that_exist(kind, key):
    with pytest.raises(UserError, match=rf"data\.augment\.{kind}\.{key}=\['grey'\] must be a list of"):
        augmentation(**{kind: {key: ["grey"]}})


def test_spans_are_drawn_for_the_share_of_clips_that_get_them():
    augment = augmentation(spec_augment={"probability": 0.5, "time_share": 0.2, "time_seconds": 0.1})
    drawn = [augment.spans(2 * SAMPLE_RATE, Draw(1, step, "c")) for step in range(300)]
    hidden = [times for times, bands in drawn if bands.any()]
    assert len(hidden) / 300 == pytest.approx(0.5, abs=0.1)
    assert not any(times.any() for times, bands in drawn if not bands.any())
    widths = torch.cat([times[:, 1] - times[:, 0] for times in hidden])
    assert 8 <= int(widths.max()) <= 11  # at most 0.1 s, that is 10 frames
    again = augment.spans(2 * SAMPLE_RATE, Draw(1, 7, "c"))
    assert all(map(torch.equal, again, drawn[7]))


def test_what_is_switched_on_is_said_in_one_line():
    assert augmentation().kinds == {}
    text = str(augmentation(speed={"probability": 0.5}, codec={"probability": 0.1}))
    assert text == "speed 0.5 (0.9 to 1.1 times as fast); codec 0.1 (mu_law opus mp3, 8 to 32 kbit/s)"
