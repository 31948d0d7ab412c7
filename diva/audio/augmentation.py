"""Changes of a waveform that training and the robustness task use: noise, speed, gain, rooms, the telephone, codecs.

Waveforms are float32 [S] at 16 kHz in [-1, 1]. Functions that draw take a torch.Generator, so the same generator state
gives the same samples. torchaudio filters and convolves, libsndfile encodes.
"""

import io
import math

import numpy as np
import soundfile
import torch
from scipy.signal import butter, sosfilt
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.functional import fftconvolve, mu_law_decoding, mu_law_encoding, resample

from diva.audio.frames import SAMPLE_RATE

# Exponents e of a power spectrum 1/f^e.
COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
# Lowest frequency of coloured noise. Below it brown noise has most of its power, and no one hears it.
_LOWEST_HERTZ = 20.0
_SPEECH_FRAME = SAMPLE_RATE // 50  # 20 ms
# ITU-T P.56 (2011), method B: what is this much below the active speech level is a pause.
_MARGIN_DECIBELS = 15.9
_TELEPHONE_RATE = 8_000
# The pass band of ITU-T G.712.
_TELEPHONE_BAND = butter(6, (300, 3400), "bandpass", fs=_TELEPHONE_RATE, output="sos")
MU_LAW_LEVELS = 256
CODECS = ("mu_law", "opus", "mp3")
# kbit/s that libsndfile offers at 16 kHz: its compression levels from 1 to 0 (ogg_opus.c, mpeg_l3_encode.c).
_BITRATES = {"opus": (6.0, 256.0), "mp3": (8.0, 160.0)}


def is_speech(waveform: Tensor) -> Tensor:
    """[S] -> bool [S], False in pauses: frames of 20 ms that are 15.9 dB below the mean power of the other frames.

    The margin is that of ITU-T P.56, method B. The level is found by repetition, from that of the whole clip upwards.
    """
    frames = pad(waveform.double(), (0, -len(waveform) % _SPEECH_FRAME)).view(-1, _SPEECH_FRAME)
    power = frames.square().mean(dim=1)
    active = torch.ones_like(power, dtype=torch.bool)
    while True:
        louder = power >= power[active].mean() * 10 ** (-_MARGIN_DECIBELS / 10)
        if torch.equal(louder, active):
            return active.repeat_interleave(_SPEECH_FRAME)[: len(waveform)]
        active = louder


def add_noise(waveform: Tensor, noise: Tensor, snr: float) -> Tensor:
    """[S] with `noise` [S] at an SNR in dB: power of the speech without its pauses, to power of the whole noise.

    Noise without power changes nothing. The sum may exceed full scale. (torchaudio's `add_noise` counts pauses as
    speech.)
    """
    speech = waveform[is_speech(waveform)].double().square().mean()
    power = noise.double().square().mean()
    if power == 0:
        return waveform
    return waveform + noise * float((speech / power * 10 ** (-snr / 10)).sqrt())


def coloured_noise(colour: str, samples: int, generator: torch.Generator) -> Tensor:
    """Gaussian noise [samples] of power 1, with a power spectrum 1/f^e of COLOURS from 20 Hz to 8 kHz."""
    size = 1 << max(10, (samples - 1).bit_length())  # a length that the FFT is fast at
    spectrum = torch.fft.rfft(torch.randn(size, generator=generator))
    hertz = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    shape = hertz.clamp(min=_LOWEST_HERTZ).pow(-COLOURS[colour] / 2) * (hertz >= _LOWEST_HERTZ)
    noise = torch.fft.irfft(spectrum * shape, size)[:samples]
    return noise / noise.square().mean().sqrt()


def change_speed(waveform: Tensor, factor: float) -> Tensor:
    """[S] -> [ceil(S / factor)], with the pitch `factor` times as high. Rounds the factor to hundredths.

    (Ko et al. 2015, "Audio Augmentation for Speech Recognition".) Other factors need resampling filters of gigabytes.
    """
    return resample(waveform, SAMPLE_RATE // 100 * round(100 * factor), SAMPLE_RATE)


def change_gain(waveform: Tensor, decibels: float) -> Tensor:
    """[S] louder by `decibels`, cut off at full scale, as in a recording that is too loud."""
    return (waveform * 10 ** (decibels / 20)).clamp(-1.0, 1.0)


def simulated_room(rt60: float, direct_to_reverberant: float, generator: torch.Generator) -> Tensor:
    """The impulse response [L] of a room: the direct sound, then noise that decays exponentially.

    `rt60` are the seconds in which it decays by 60 dB; L is as long. `direct_to_reverberant` is the ratio of their
    energies in dB. (Polack 1988; torchaudio has no simulation of rooms since 2.9.)
    """
    seconds = torch.arange(round(rt60 * SAMPLE_RATE)) / SAMPLE_RATE
    response = torch.randn(len(seconds), generator=generator) * 10 ** (-3 * seconds / rt60)
    response[0] = 0.0
    response *= (10 ** (-direct_to_reverberant / 10) / response.square().sum()).sqrt()
    response[0] = 1.0
    return response


def reverberate(waveform: Tensor, response: Tensor) -> Tensor:
    """[S] in a room with this impulse response [L] -> [S], of the same power.

    It starts with the direct sound, which is the largest sample of the response, so the speech is not delayed.
    """
    direct = int(response.abs().argmax())
    wet = fftconvolve(waveform, response)[direct : direct + len(waveform)]
    return wet * (waveform.square().mean() / wet.square().mean().clamp(min=1e-12)).sqrt()


def telephone_band(waveform: Tensor) -> Tensor:
    """[S] -> [S] as a telephone carries it: sampled at 8 kHz, 300 to 3400 Hz (ITU-T G.712)."""
    narrow = resample(waveform, SAMPLE_RATE, _TELEPHONE_RATE, lowpass_filter_width=32)
    band = torch.from_numpy(sosfilt(_TELEPHONE_BAND, narrow.numpy()).astype(np.float32))
    return resample(band, _TELEPHONE_RATE, SAMPLE_RATE, lowpass_filter_width=32)[: len(waveform)]


def transcode(waveform: Tensor, codec: str, kilobits: float) -> Tensor:
    """[S] encoded and decoded again by one of CODECS -> [S].

    `kilobits` a second is the target of Opus and mp3, moved into what they offer at 16 kHz: 6 to 256 and 8 to 160.
    mu-law has 8 bits a sample.
    """
    if codec == "mu_law":
        return mu_law_decoding(mu_law_encoding(waveform, MU_LAW_LEVELS), MU_LAW_LEVELS)
    low, high = _BITRATES[codec]
    level = (high - min(max(kilobits, low), high)) / (high - low)
    kinds = {"opus": ("OGG", "OPUS", None), "mp3": ("MP3", "MPEG_LAYER_III", "AVERAGE")}
    container, subtype, mode = kinds[codec]
    file = io.BytesIO()
    # A constant bit rate would leave no room for the header with the encoder's delay, and the speech would be late.
    soundfile.write(
        file,
        waveform.numpy(),
        SAMPLE_RATE,
        subtype,
        format=container,
        compression_level=level,
        bitrate_mode=mode,
    )
    file.seek(0)
    decoded = torch.from_numpy(soundfile.read(file, dtype="float32")[0])[: len(waveform)]
    return pad(decoded, (0, len(waveform) - len(decoded)))


def random_part(waveform: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """[L] -> a random part [samples] of it. What is too short is repeated from a random sample on."""
    spare = len(waveform) - samples
    starts = spare + 1 if spare >= 0 else len(waveform)
    start = int(torch.randint(starts, (), generator=generator))
    return waveform.repeat(math.ceil((start + samples) / len(waveform)))[start : start + samples]
