"""Each change of a waveform against a loop, a formula or its spectrum."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from diva.audio import augmentation as audio
from diva.audio.masks import Masks, draw_spans

RATE = 16_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def speech(pause: float = 0.0, seconds: float = 1.0) -> Tensor:
    """A tone between two pauses, which are white noise of amplitude `pause`; each of the three lasts `seconds`."""
    samples = round(seconds * RATE)
    tone = 0.2 * torch.sin(2 * math.pi * 440 * torch.arange(samples) / RATE)
    silence = pause * torch.randn(2, samples, generator=generator(9))
    return torch.cat([silence[0], tone, silence[1]])


def decibels(ratio: float) -> float:
    return 10 * math.log10(ratio)


def power_between(waveform: Tensor, low: float, high: float) -> float:
    """Power from `low` to `high` Hz."""
    spectrum = np.abs(np.fft.rfft(waveform.numpy().astype(np.float64))) ** 2
    hertz = np.fft.rfftfreq(len(waveform), 1 / RATE)
    return float(spectrum[(hertz >= low) & (hertz < high)].sum())


@pytest.mark.parametrize("colour", audio.COLOURS)
@pytest.mark.parametrize("snr", [20.0, 5.0, 0.0])
def test_snr_is_that_of_the_speech_without_its_pauses(colour, snr):
    clean = speech()
    noisy = audio.add_noise(clean, audio.coloured_noise(colour, len(clean), generator()), snr)
    said = noise = 0.0
    for sample in clean[RATE : 2 * RATE].tolist():
        said += sample**2 / RATE
    for sample in (noisy - clean).tolist():
        noise += sample**2 / len(clean)
    assert decibels(said / noise) == pytest.approx(snr, abs=0.1)


def test_pauses_are_not_speech_whether_silent_or_noisy():
    for pause in (0.0, 0.2 / math.sqrt(2) * 10 ** (-20 / 20)):
        found = audio.is_speech(speech(pause))
        assert found.tolist() == [False] * RATE + [True] * RATE + [False] * RATE
    assert audio.is_speech(torch.zeros(500)).all()


def test_noise_without_power_changes_nothing():
    assert audio.add_noise(speech(), torch.zeros(3 * RATE), 0.0).equal(speech())


@pytest.mark.parametrize(("colour", "per_octave"), [("white", 3.01), ("pink", 0.0), ("brown", -3.01)])
def test_noise_has_the_spectrum_of_its_colour(colour, per_octave):
    noise = audio.coloured_noise(colour, 1 << 17, generator())
    octaves = [power_between(noise, low, 2 * low) for low in (250, 500, 1000, 2000, 4000)]
    steps = [decibels(above / below) for below, above in pairwise(octaves)]
    assert steps == pytest.approx([per_octave] * 4, abs=0.4)
    assert float(noise.square().mean()) == pytest.approx(1.0, rel=1e-4)
    assert power_between(noise, 0, 19) < 1e-3 * power_between(noise, 20, 8000)


@pytest.mark.parametrize("factor", [0.9, 1.07, 1.25])
def test_speed_changes_length_and_pitch_by_the_factor(factor):
    tone = torch.sin(2 * math.pi * 440 * torch.arange(RATE + 37) / RATE)
    faster = audio.change_speed(tone, factor)
    assert len(faster) == math.ceil((RATE + 37) / factor)
    peak = int(torch.fft.rfft(faster * torch.hann_window(len(faster))).abs().argmax())
    assert peak * RATE / len(faster) == pytest.approx(440 * factor, abs=1.0)


def test_gain_multiplies_and_cuts_off_at_full_scale():
    clip = torch.tensor([0.1, -0.3, 0.9])
    assert audio.change_gain(clip, 6.0).tolist() == pytest.approx([0.1 * 10**0.3, -0.3 * 10**0.3, 1.0])
    assert audio.change_gain(clip, -20.0).tolist() == pytest.approx([0.01, -0.03, 0.09])


def test_reverberation_is_a_convolution_that_neither_delays_nor_changes_the_power():
    clip, response = torch.randn(60, generator=generator()), torch.tensor([0.1, -0.2, 1.0, 0.5, 0.0, -0.3])
    wet = []
    for at in range(len(clip)):
        direct = at + 2  # the direct sound is the third sample of the response
        taps = [k for k in range(len(response)) if 0 <= direct - k < len(clip)]
        wet.append(sum(float(response[k]) * float(clip[direct - k]) for k in taps))
    scale = math.sqrt(float(clip.square().sum()) / sum(sample**2 for sample in wet))
    expected = [scale * sample for sample in wet]
    assert audio.reverberate(clip, response).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_simulated_room_has_its_decay_and_its_direct_sound():
    response = audio.simulated_room(0.5, 4.0, generator())
    direct, tail = float(response[0]) ** 2, response[1:].square()
    assert len(response) == RATE // 2
    assert decibels(direct / float(tail.sum())) == pytest.approx(4.0, abs=0.01)
    # Schroeder: what is left after half of the time has 30 dB less.
    assert decibels(float(tail.sum() / tail[RATE // 4 :].sum())) == pytest.approx(30.0, abs=1.0)


def test_the_telephone_carries_300_to_3400_hertz():
    noise = 0.1 * torch.randn(RATE + 1, generator=generator())
    carried = audio.telephone_band(noise)
    assert len(carried) == len(noise)
    for low, high in ((0, 150), (4000, 8000)):
        assert decibels(power_between(carried, low, high) / power_between(noise, low, high)) < -30
    middle = decibels(power_between(carried, 500, 3000) / power_between(noise, 500, 3000))
    assert middle == pytest.approx(0.0, abs=0.5)


def test_mu_law_is_the_formula():
    clip = torch.tensor([-1.0, -0.5, -0.011, 0.0, 0.003, 0.2, 1.0])
    expected = []
    for x in clip.tolist():
        squeezed = math.copysign(math.log1p(255 * abs(x)) / math.log(256), x)
        level = 2 * math.floor((squeezed + 1) / 2 * 255 + 0.5) / 255 - 1
        expected.append(math.copysign((256 ** abs(level) - 1) / 255, level))
    assert audio.transcode(clip, "mu_law", 64).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("codec", ["opus", "mp3"])
def test_codecs_keep_length_and_place_and_lose_less_at_a_higher_rate(codec):
    clip = 0.1 * torch.cumsum(torch.randn(21_001, generator=generator()), 0)
    clip = (clip - torch.nn.functional.avg_pool1d(clip[None], 401, 1, 200, count_include_pad=False)[0]).clamp(
        -1, 1
    )
    errors = []
    for kilobits in (12, 24, 48):
        decoded = audio.transcode(clip, codec, kilobits)
        assert decoded.shape == clip.shape
        errors.append(float((decoded - clip).square().mean() / clip.square().mean()))
        around = [
            float((decoded[50 + shift : -50 + shift or None] * clip[50:-50]).sum())
            for shift in range(-40, 41)
        ]
        assert int(np.argmax(around)) - 40 == 0
    assert 0.5 > errors[0] > errors[1] > errors[2] > 0
    assert audio.transcode(clip, codec, 12).equal(audio.transcode(clip, codec, 12))


def test_a_random_part_is_a_run_of_the_recording_and_a_short_one_repeats():
    recording = torch.arange(10.0)
    starts = {int(audio.random_part(recording, 4, generator(seed))[0]) for seed in range(100)}
    assert starts == set(range(7))
    for length in (4, 10, 23):
        part = audio.random_part(recording, length, generator(1))
        assert part.tolist() == [(float(part[0]) + step) % 10 for step in range(length)]


def test_masks_hide_what_a_loop_hides():
    log_mel = torch.randn(2, 10, 30, generator=generator())
    masks = Masks(
        torch.tensor([[[3, 7], [20, 40]], [[0, 0], [5, 6]]]),
        torch.tensor([[[0.0, 0.1], [0.0, 0.0]], [[0.56, 0.8], [0.0, 0.0]]]),
    )
    hidden = masks(log_mel)
    bins = [{0}, {6, 7}]  # bin i has its middle at (i + 0.5) / 10
    frames = [{3, 4, 5, 6, *range(20, 30)}, {5}]
    for row in range(2):
        for mel in range(10):
            for frame in range(30):
                gone = mel in bins[row] or frame in frames[row]
                assert float(hidden[row, mel, frame]) == (0.0 if gone else float(log_mel[row, mel, frame]))


def test_spans_stay_inside_and_below_their_width():
    spans = torch.cat([draw_spans(3, 0.2, 1.0, generator(seed)) for seed in range(200)])
    widths = spans[:, 1] - spans[:, 0]
    assert (spans >= 0).all()
    assert (spans <= 1).all()
    assert 0.19 < float(widths.max()) <= 0.2
    assert float(widths.mean()) == pytest.approx(0.1, abs=0.01)
    assert float(spans.mean()) == pytest.approx(0.5, abs=0.05)
    assert (draw_spans(2, 5.0, 0.5, generator())[:, 1] <= 0.5).all()  # no wider than all there is
