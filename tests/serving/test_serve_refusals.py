"""`python -m diva.serve` and clients that mean harm, or do not know better."""

import gzip
import struct

import numpy as np
import pytest
from requests_to_diva import body, post, spoken, user, wav
from tiny import noise


def wav_of_ten_hours() -> bytes:
    """A header, and an eighth of a second."""
    data = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 0x44AA_2000, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8,
                       b"data", 36_000 * 8000)  # fmt: skip
    return data + bytes(range(256)) * 4


def bad_samples(value: float) -> bytes:
    samples = noise(0.5, 0)
    samples[100] = value
    return wav(samples)


def said(*messages: dict) -> bytes:
    return body(messages=list(messages))


def audio(data: bytes, kind: str = "wav") -> bytes:
    return body(messages=user(spoken(data, kind)))


HOSTILE = {
    "no body": (lambda: b"", "json_invalid"),
    "no json": (lambda: b"model=diva", "json_invalid"),
    "a list": (lambda: b"[]", None),
    "not utf-8": (lambda: b'{"model": "\xff\xfe"}', "json_invalid"),
    "half a character": (lambda: body().replace(b"hello", rb"\ud800"), "json_invalid"),
    "deep": (lambda: b'{"model": ' + b"[" * 100_000, "json_invalid"),
    "gzip without its header": (lambda: gzip.compress(b"0" * 1_000_000), "json_invalid"),
    "no model": (lambda: body(model=...), "missing"),
    "no messages": (lambda: body(messages=...), "missing"),
    "empty messages": (lambda: body(messages=[]), "too_short"),
    "no role": (lambda: said({"content": "hello"}), "missing"),
    "unknown role": (lambda: said({"role": "tool", "content": "hello"}), "literal_error"),
    "no content": (lambda: said({"role": "user"}), "missing"),
    "null content": (lambda: said({"role": "user", "content": None}), None),
    "empty content": (lambda: said({"role": "user", "content": []}), "too_short"),
    "an image": (
        lambda: body(messages=user({"type": "image_url", "image_url": {"url": "http://a/b"}})),
        None,
    ),
    "a type of a megabyte": (lambda: body(messages=user({"type": "x" * 2**20})), "union_tag_invalid"),
    "a million mistakes": (lambda: body(messages=[{}] * 1_000_000), "missing"),
    "thousands of messages": (lambda: body(messages=user("hello") * 2000), "too_long"),
    "a number for a text": (lambda: body(messages=user({"type": "text", "text": 3})), "string_type"),
    "the assistant's voice": (
        lambda: said({"role": "assistant", "content": [spoken(wav(noise(0.5, 0)))]}),
        None,
    ),
    "no base64": (
        lambda: body(messages=user({"type": "input_audio", "input_audio": {"data": "?!", "format": "wav"}})),
        "invalid_base64",
    ),
    "other letters": (
        lambda: body(messages=user({"type": "input_audio", "input_audio": {"data": "äöü", "format": "wav"}})),
        "invalid_base64",
    ),
    "no data": (
        lambda: body(messages=user({"type": "input_audio", "input_audio": {"format": "wav"}})),
        "missing",
    ),
    "raw samples": (lambda: audio(np.zeros(8000, np.int16).tobytes(), "pcm16"), "damaged_audio"),
    "an address": (
        lambda: body(messages=user({"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/a.wav"}})),
        "unsupported_url",
    ),
    "a data: URL without base64": (
        lambda: body(messages=user({"type": "audio_url", "audio_url": {"url": "data:audio/wav,RIFF"}})),
        "unsupported_url",
    ),
    "empty audio": (lambda: audio(b""), "damaged_audio"),
    "damaged audio": (lambda: audio(b"RIFF" + bytes(200)), "damaged_audio"),
    "damaged mp3": (lambda: audio(b"\xff\xfb\x90\x64" + b"\xaa" * 500, "mp3"), None),
    "nan samples": (lambda: audio(bad_samples(np.nan)), "damaged_audio"),
    "infinite samples": (lambda: audio(bad_samples(np.inf)), "damaged_audio"),
    "no samples": (lambda: audio(wav(np.zeros(0))), "zero_length"),
    "silence": (lambda: audio(wav(np.zeros(8000))), "silence"),
    "ten hours in the header": (lambda: audio(wav_of_ten_hours()), "ends_early"),
    "eleven minutes": (lambda: audio(wav(np.full(660 * 1000, 0.1), 1000, "PCM_U8")), "too_long"),
    "a rate with a filter of gigabytes": (lambda: audio(wav(noise(0.5, 0), 1_048_573)), "damaged_audio"),
    "many clips": (lambda: body(messages=user(*[spoken(wav(noise(0.02, 0)))] * 65)), None),
    "text beyond the context": (lambda: body(messages=user("what is " * 2000)), "context_length_exceeded"),
    "text beyond any context": (lambda: body(messages=user("stop " * 1_000_000)), "context_length_exceeded"),
    "many choices": (lambda: body(n=17), "less_than_equal"),
    "tools": (lambda: body(tools=[{"type": "function"}]), "unsupported_parameter"),
    "a tool that was called": (
        lambda: said({"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}),
        "value_error",
    ),
    "alternatives to nothing": (lambda: body(top_logprobs=2), None),
    "many alternatives": (lambda: body(logprobs=True, top_logprobs=21), "less_than_equal"),
    "top_k": (lambda: body(top_k=-2), "greater_than_equal"),
    "min_p": (lambda: body(min_p=1.5), "less_than_equal"),
    "no penalty but a reward of infinity": (lambda: body(repetition_penalty=0), "greater_than"),
    "misspelt": (lambda: body(temprature=0), "unknown_parameter"),
    "a field of another server": (lambda: body(typical_p=0.9), "unknown_parameter"),
    "usage of no stream": (lambda: body(stream_options={"include_usage": True}), None),
    "json answers": (lambda: body(response_format={"type": "json_object"}), "unsupported_parameter"),
    "spoken answers": (lambda: body(modalities=["text", "audio"]), "unsupported_parameter"),
    "penalty": (lambda: body(presence_penalty=0.5), "unsupported_parameter"),
    "nan temperature": (lambda: body(temperature=float("nan")), None),
    "hot": (lambda: body(temperature=2.5), "less_than_equal"),
    "cold": (lambda: body(temperature=-1), "greater_than_equal"),
    "top_p": (lambda: body(top_p=1.5), "less_than_equal"),
    "no tokens": (lambda: body(max_tokens=0), "greater_than_equal"),
    "two limits": (lambda: body(max_completion_tokens=3), None),
    "tokens as a string": (lambda: body(max_tokens="5"), "int_type"),
    "empty stop": (lambda: body(stop=""), "string_too_short"),
    "five stops": (lambda: body(stop=list("abcde")), "too_long"),
    "huge seed": (lambda: body(seed=2**70), None),
    "a stream of nonsense": (lambda: body(stream=True, messages=[]), "too_short"),
}


@pytest.mark.integration
@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_request_is_refused_with_a_reason(base_url, case):
    content, code = HOSTILE[case]
    answer = post(base_url, content())
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < 500
    if code is not None:
        assert error["code"] == code


@pytest.mark.integration
def test_bodies_of_another_kind_are_not_read(base_url):
    assert post(base_url, gzip.compress(body()), **{"content-encoding": "gzip"}).status_code == 415
    assert post(base_url, body(), **{"content-type": "application/zip"}).status_code == 415
    assert post(base_url, body(), **{"content-type": "text/plain"}).status_code == 415
    assert post(base_url, body(), **{"content-type": "Application/JSON; charset=utf-8"}).status_code == 200
