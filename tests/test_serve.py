"""`python -m diva.serve`, driven by OpenAI's own client and by clients that mean harm."""

import asyncio
import base64
import contextlib
import functools
import gzip
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import soundfile
import torch
import uvicorn
from command_line import command, environment
from conftest import SENTENCES, make_tokenizer, noise

from diva import serve
from diva.generate import Question, parse_arguments
from diva.generate import chat as generate_chat
from diva.models.load import load_model
from diva.serving.app import ServerLimits, Service, create_app
from diva.serving.batching import BatchLimits
from diva.serving.listening import RequestLimits
from diva.serving.protocol import Sampling
from diva.serving.rows import Job, RowSampling, RowText

KEY = "a key"
WORDS = [word for sentence in SENTENCES for word in sentence.split()]


def wav(samples: np.ndarray, rate: int = 16_000, subtype: str = "FLOAT", kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype=subtype, format=kind)
    return file.getvalue()


def spoken(data: bytes, kind: str = "wav") -> dict:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": kind}}


def user(*parts: str | dict) -> list[dict]:
    return [
        {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}
    ]


def single(model, chat: list[dict], max_tokens: int) -> tuple[str, int, int]:
    """What `generate` says to one chat alone: text, tokens of the prompt, new tokens."""
    inputs = model.processor.apply_chat_template([chat])
    length = inputs["input_ids"].shape[1]
    ids = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)[:, length:]
    return model.processor.batch_decode(ids, skip_special_tokens=True)[0], length, ids.shape[1]


@pytest.fixture(scope="module")
def model(export):
    return load_model(str(export))


@contextlib.contextmanager
def subprocess_server(export: Path, cache: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server process and its base URL."""
    process = subprocess.Popen(
        command("diva.serve", export, "--port", "0", "--max-wait-ms", "20", *options),
        env=environment(cache) | {"DIVA_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert str(export) in line, process.stderr.read()
        yield process, re.search(r"http://127.0.0.1:\d+/v1", line).group()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def base_url(export, shared_cache) -> Iterator[str]:
    with subprocess_server(export, shared_cache) as (_, url):
        yield url


@pytest.fixture(scope="module")
def client(base_url) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=60)


@pytest.fixture
def slow_server(export, monkeypatch):
    """Servers in this process whose model takes 20 ms a step; called with ServerLimits and BatchLimits."""
    with contextlib.ExitStack() as stack:

        def start(limits: ServerLimits, rows: int = 4, audio_seconds: float = 2.0) -> openai.OpenAI:
            slow = load_model(str(export))
            forward = slow.forward

            @functools.wraps(forward)
            def sleepy(*args, **kwargs):
                time.sleep(0.02)
                return forward(*args, **kwargs)

            monkeypatch.setattr(slow, "forward", sleepy)
            batches, asked = BatchLimits(rows, 0.05), RequestLimits(audio_seconds, 512)
            service = Service(slow, "diva", None, limits, batches, asked)
            listener = serve.bind("127.0.0.1", 0)
            server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="error"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            while not server.started:
                time.sleep(0.01)

            def stop() -> None:
                server.should_exit = True
                thread.join()

            stack.callback(stop)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            return openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=60)

        yield start


def long_question(model, tokens: int) -> tuple[list[dict], str]:
    """A chat whose greedy answer does not end by itself, and that answer."""
    for number in range(20):
        chat = user(" ".join(WORDS[: number % len(WORDS) + 1]))
        text, _, made = single(model, chat, tokens)
        if made == tokens and len(text) > tokens // 4:
            return chat, text
    raise AssertionError("the tiny model ends every answer")


# ---- answers


@pytest.mark.integration
def test_text_and_speech_answer_as_generate_does(client, model, monkeypatch):
    chat = [{"role": "system", "content": "Be brief."}, *user("play some music")]
    expected, prompt, new = single(model, chat, 12)
    answer = client.chat.completions.create(model="diva", messages=chat, max_tokens=12)
    assert answer.choices[0].message.content == expected
    assert answer.usage.to_dict() == {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
    }
    assert answer.choices[0].finish_reason == ("length" if new == 12 else "stop")
    # A clip and a prompt, as `diva.generate --prompt` puts them together; the prompt counts virtual tokens.
    monkeypatch.setattr(sys, "argv", ["generate", "MODEL", "clip", "--prompt", "Reply briefly"])
    clip = noise(1.2, 3)
    expected, prompt, new = single(model, generate_chat(Question("clip", clip), parse_arguments()), 12)
    heard = user(spoken(wav(clip)), "Reply briefly")
    answer = client.chat.completions.create(model="diva", messages=heard, max_completion_tokens=12)
    assert answer.choices[0].message.content == expected
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, new)
    assert prompt > 12  # 12 virtual tokens
    mp3 = wav(clip, subtype="MPEG_LAYER_III", kind="MP3")
    expected, _, _ = single(model, user({"type": "audio", "audio": mp3}), 12)
    answer = client.chat.completions.create(model="diva", messages=user(spoken(mp3, "mp3")), max_tokens=12)
    assert answer.choices[0].message.content == expected


@pytest.mark.integration
def test_a_stream_is_the_answer_in_pieces(client, model):
    chat, expected = long_question(model, 60)
    chunks = list(
        client.chat.completions.create(
            model="diva", messages=chat, max_tokens=60, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 10
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "length"
    ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 60
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.integration
def test_stop_ends_the_row_before_the_string(client, model):
    chat, text = long_question(model, 60)
    stop = text[len(text) // 2 :][:3]
    for stream in (False, True):
        answer = client.chat.completions.create(
            model="diva", messages=chat, max_tokens=60, stop=["never to be said", stop], stream=stream
        )
        if stream:
            chunks = list(answer)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            said, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
            assert answer.usage.completion_tokens < 60
        assert said == text.partition(stop)[0]
        assert reason == "stop"


@pytest.mark.integration
def test_two_hundred_at_once_are_each_answered_as_if_alone(base_url, client, model):
    rng = np.random.default_rng(0)
    chats, heard, limits = [], [], []
    for number in range(40):
        text = " ".join(rng.choice(WORDS, rng.integers(1, 16)))
        clip = noise(float(rng.uniform(0.2, 3)), number)
        speaks = number % 5 == 0
        chats.append(user({"type": "audio", "audio": clip}, f"\n{text}") if speaks else user(text))
        heard.append(user(spoken(wav(clip)), text) if speaks else chats[-1])
        limits.append(int(rng.integers(1, 20)))
    expected = [single(model, chat, limit) for chat, limit in zip(chats, limits, strict=True)]

    async def everyone() -> list:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=100) as many:
            return await asyncio.gather(*(ask(many, number % 40, number % 3 == 0) for number in range(200)))

    async def ask(many: openai.AsyncOpenAI, number: int, stream: bool) -> tuple[str, int, int]:
        call = {"model": "diva", "messages": heard[number], "max_tokens": limits[number]}
        if not stream:
            answer = await many.chat.completions.create(**call)
            usage = answer.usage
            return answer.choices[0].message.content, usage.prompt_tokens, usage.completion_tokens
        chunks = await many.chat.completions.create(
            **call, stream=True, stream_options={"include_usage": True}
        )
        text = ""
        async for chunk in chunks:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        return text, chunk.usage.prompt_tokens, chunk.usage.completion_tokens

    before = batches(client)
    answers = asyncio.run(everyone())
    assert [answer for number, answer in enumerate(answers) if answer != expected[number % 40]] == []
    made, rows = (after - start for after, start in zip(batches(client), before, strict=True))
    assert rows == 200
    assert made <= 40  # 12.5 full batches of 16, and some that were not full


def batches(client: openai.OpenAI) -> tuple[float, float]:
    """How many batches there were, and rows in them."""
    shown = metrics(client)
    return shown["diva_batch_rows_count"], shown["diva_batch_rows_sum"]


def metrics(client: openai.OpenAI) -> dict[str, float]:
    url = str(client.base_url).replace("/v1/", "/metrics")
    text = httpx.get(url, headers={"authorization": f"Bearer {client.api_key}"}).text
    return {name: float(value) for name, value in re.findall(r"^([^#].*) (\S+)$", text, re.M)}


@pytest.mark.integration
def test_a_seed_draws_the_same_in_any_company(base_url, client):
    def draw(**sampling) -> str:
        answer = client.chat.completions.create(
            model="diva", messages=user("tell me a joke"), max_tokens=10, **sampling
        )
        return answer.choices[0].message.content

    alone = {seed: draw(temperature=0.9, top_p=0.8, seed=seed) for seed in range(6)}
    assert len(set(alone.values())) > 3
    assert draw(temperature=0, seed=3) == draw()
    assert draw(top_p=0.9) != draw(top_p=0.9)  # a top_p asks for a draw, each its own without a seed

    async def together() -> list:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0) as many:
            call = functools.partial(
                many.chat.completions.create, model="diva", messages=user("tell me a joke"), max_tokens=10
            )
            return await asyncio.gather(*(call(temperature=0.9, top_p=0.8, seed=seed) for seed in alone))

    assert [answer.choices[0].message.content for answer in asyncio.run(together())] == list(alone.values())


@pytest.mark.integration
def test_what_stands_around_it(base_url, client):
    assert [model.id for model in client.models.list()] == ["diva"]
    assert client.models.retrieve("diva").owned_by == "diva"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("whisper-1")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=user("hello"))
    assert unknown.value.code == "model_not_found"
    assert metrics(client)['diva_requests_total{status="404"}'] >= 1
    root = base_url.removesuffix("/v1")
    assert httpx.get(f"{root}/health").json() == {"status": "ok"}
    for path in ("/metrics", "/v1/models", "/v1/models/diva"):
        for headers in (
            {},
            {"authorization": KEY},
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": b"\xff"},
        ):
            assert httpx.get(root + path, headers=headers).status_code == 401
    with pytest.raises(openai.AuthenticationError) as refused:
        client.with_options(api_key="wrong").chat.completions.create(model="diva", messages=user("hello"))
    assert refused.value.code == "invalid_api_key"
    authorized = {"authorization": f"Bearer {KEY}"}
    for status, answer in (
        (404, httpx.get(f"{root}/v1/nothing", headers=authorized)),
        (405, httpx.get(f"{base_url}/chat/completions", headers=authorized)),
    ):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


# ---- clients that mean harm, or do not know better


def wav_of_ten_hours() -> bytes:
    """A header, and an eighth of a second."""
    data = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 0x44AA_2000, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8,
                       b"data", 36_000 * 8000)  # fmt: skip
    return data + bytes(range(256)) * 4


def bad_samples(value: float) -> bytes:
    samples = noise(0.5, 0)
    samples[100] = value
    return wav(samples)


def body(**changes) -> bytes:
    fields = {"model": "diva", "messages": user("hello"), "max_tokens": 2} | changes
    return json.dumps({key: value for key, value in fields.items() if value is not ...}).encode()


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
    "other format": (lambda: body(messages=user(spoken(b"", "ogg"))), "literal_error"),
    "empty audio": (lambda: audio(b""), "damaged_audio"),
    "damaged audio": (lambda: audio(b"RIFF" + bytes(200)), "damaged_audio"),
    "damaged mp3": (lambda: audio(b"\xff\xfb\x90\x64" + b"\xaa" * 500, "mp3"), None),
    "wav said to be mp3": (lambda: audio(wav(noise(0.5, 0)), "mp3"), "damaged_audio"),
    "flac said to be wav": (
        lambda: audio(wav(noise(0.5, 0), subtype="PCM_16", kind="FLAC")),
        "damaged_audio",
    ),
    "nan samples": (lambda: audio(bad_samples(np.nan)), "damaged_audio"),
    "infinite samples": (lambda: audio(bad_samples(np.inf)), "damaged_audio"),
    "no samples": (lambda: audio(wav(np.zeros(0))), "zero_length"),
    "silence": (lambda: audio(wav(np.zeros(8000))), "silence"),
    "ten hours in the header": (lambda: audio(wav_of_ten_hours()), "damaged_audio"),
    "eleven minutes": (lambda: audio(wav(np.full(660 * 1000, 0.1), 1000, "PCM_U8")), "too_long"),
    "a rate with a filter of gigabytes": (lambda: audio(wav(noise(0.5, 0), 1_048_573)), "damaged_audio"),
    "many clips": (lambda: body(messages=user(*[spoken(wav(noise(0.02, 0)))] * 65)), None),
    "text beyond the context": (lambda: body(messages=user("what is " * 2000)), "context_length_exceeded"),
    "text beyond any context": (lambda: body(messages=user("stop " * 1_000_000)), "context_length_exceeded"),
    "answer beyond the context": (
        lambda: body(messages=user("stop " * 1000), max_tokens=512),
        "context_length_exceeded",
    ),
    "n": (lambda: body(n=2), "unsupported_parameter"),
    "tools": (lambda: body(tools=[{"type": "function"}]), "unsupported_parameter"),
    "logprobs": (lambda: body(logprobs=True), "unsupported_parameter"),
    "json answers": (lambda: body(response_format={"type": "json_object"}), "unsupported_parameter"),
    "spoken answers": (lambda: body(modalities=["text", "audio"]), "unsupported_parameter"),
    "penalty": (lambda: body(presence_penalty=0.5), "unsupported_parameter"),
    "nan temperature": (lambda: body(temperature=float("nan")), None),
    "hot": (lambda: body(temperature=2.5), "less_than_equal"),
    "cold": (lambda: body(temperature=-1), "greater_than_equal"),
    "top_p": (lambda: body(top_p=1.5), "less_than_equal"),
    "no tokens": (lambda: body(max_tokens=0), "greater_than_equal"),
    "too many tokens": (lambda: body(max_tokens=10**9), None),
    "two limits": (lambda: body(max_completion_tokens=3), None),
    "tokens as a string": (lambda: body(max_tokens="5"), "int_type"),
    "empty stop": (lambda: body(stop=""), "string_too_short"),
    "five stops": (lambda: body(stop=list("abcde")), "too_long"),
    "huge seed": (lambda: body(seed=2**70), None),
    "a stream of nonsense": (lambda: body(stream=True, messages=[]), "too_short"),
}


def post(base_url: str, content, **headers: str) -> httpx.Response:
    kinds = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    return httpx.post(f"{base_url}/chat/completions", content=content, headers=kinds | headers, timeout=20)


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


@pytest.mark.integration
def test_what_clients_send_besides_is_tolerated(client):
    answer = client.chat.completions.create(
        model="diva",
        messages=[{"role": "developer", "content": "Be brief.", "name": "ops"}, *user("hello")],
        max_tokens=3,
        max_completion_tokens=3,
        n=1,
        stop=None,
        user="me",
        metadata={"a": "b"},
        logprobs=False,
        response_format={"type": "text"},
        presence_penalty=0,
        extra_body={"anything": {"at": ["all"]}},
    )
    assert answer.usage.completion_tokens <= 3


# ---- limits


@pytest.mark.integration
def test_large_bodies_and_long_audio(slow_server):
    client = slow_server(ServerLimits(body_bytes=200_000))
    url = str(client.base_url).rstrip("/")
    assert post(url, body()).status_code == 200
    assert post(url, body(user="x" * 200_000)).status_code == 413
    sent = []

    def endless() -> Iterator[bytes]:
        for _ in range(20_000):
            sent.append(65_536)
            yield b" " * 65_536

    answer = post(url, endless())
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert sum(sent) < 100_000_000
    clip = spoken(wav(noise(1.5, 0), subtype="PCM_16"))
    assert post(url, body(messages=user(clip))).status_code == 200
    answer = post(url, body(messages=user(clip, clip)))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "too_long"


@pytest.mark.integration
def test_a_full_queue(slow_server, model):
    client = slow_server(ServerLimits(queue=1), rows=1)
    chat, _ = long_question(model, 100)
    call = functools.partial(client.chat.completions.create, model="diva", messages=chat)
    runs = call(max_tokens=100, stream=True)  # comes back with its first piece: it runs
    waits = threading.Thread(target=call, kwargs={"max_tokens": 2})
    waits.start()
    until(lambda: metrics(client)["diva_active_requests"] == 2)
    with pytest.raises(openai.RateLimitError) as refused:
        call(max_tokens=2)
    assert refused.value.response.headers["retry-after"] == "1"
    runs.close()
    waits.join()
    assert call(max_tokens=2).usage.completion_tokens == 2


@pytest.mark.integration
def test_time_is_up(slow_server, model):
    client = slow_server(ServerLimits(timeout=1.5))
    chat, text = long_question(model, 200)
    call = functools.partial(client.chat.completions.create, model="diva", messages=chat)
    with pytest.raises(openai.APIStatusError) as late:
        call(max_tokens=200)
    assert late.value.status_code == 504
    pieces = []
    stream = call(max_tokens=200, stream=True)
    with pytest.raises(openai.APIError, match=r"within 1\.5 s"):
        pieces.extend(chunk.choices[0].delta.content for chunk in stream)
    assert len(pieces) > 5
    assert text.startswith("".join(pieces))
    # 200 tokens take 4 s: the rows were freed.
    assert call(max_tokens=2).usage.completion_tokens == 2
    with socket.create_connection(("127.0.0.1", client.base_url.port)) as slow:
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        slow.settimeout(10)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")


@pytest.mark.integration
def test_a_client_that_goes_frees_its_row_and_stalls_nobody(slow_server, model):
    client = slow_server(ServerLimits())
    chat, text = long_question(model, 50)
    call = functools.partial(client.chat.completions.create, model="diva", messages=chat, stream=True)
    with contextlib.ExitStack() as stack:
        begun = [stack.enter_context(contextlib.closing(stream)) for stream in pair(call, (500, 50))]
        next(begun[0])
        begun[0].close()
        start = time.monotonic()
        pieces = [chunk.choices[0].delta.content or "" for chunk in begun[1]]
    assert "".join(pieces) == text
    assert time.monotonic() - start < 4
    assert metrics(client)["diva_batch_rows_count"] == 1  # they shared one
    # 500 tokens take 10 s: the batch ended with its last reader.
    with pytest.raises(openai.APITimeoutError):
        call(max_tokens=500, stream=False, timeout=0.5)
    start = time.monotonic()
    list(call(max_tokens=2))
    assert time.monotonic() - start < 2
    until(lambda: metrics(client)["diva_active_requests"] == 0)
    assert metrics(client)['diva_requests_total{status="499"}'] == 1


def pair(call, limits: tuple[int, int]) -> list[openai.Stream]:
    """Two streams that were asked for together."""
    streams: list = [None, None]

    def begin(number: int) -> None:
        streams[number] = call(max_tokens=limits[number])

    threads = [threading.Thread(target=begin, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return streams


def until(true, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.integration
def test_a_failing_batch_is_told_and_the_next_one_answered(slow_server, monkeypatch):
    client = slow_server(ServerLimits())
    call = functools.partial(
        client.chat.completions.create, model="diva", messages=user("stop"), max_tokens=2
    )
    with monkeypatch.context() as patch:
        patch.setattr(RowText, "push", lambda *_: 1 / 0)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as failed:
                call(stream=stream)
            assert failed.value.body["type"] == "server_error"
    assert call().usage.completion_tokens == 2


# ---- the process


@pytest.mark.integration
def test_sigterm_ends_what_runs_and_refuses_the_rest(export, shared_cache, model):
    chat, text = long_question(model, 200)
    with subprocess_server(export, shared_cache) as (process, url):
        client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60)
        stream = client.chat.completions.create(model="diva", messages=chat, max_tokens=200, stream=True)
        pieces = [next(stream).choices[0].delta.content]
        process.send_signal(signal.SIGTERM)
        until(lambda: refuses(url))
        pieces += [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == text
        assert process.wait(timeout=10) == 0
        assert process.stderr.read() == ""


def refuses(url: str) -> bool:
    try:
        httpx.get(url.replace("/v1", "/health"))
    except httpx.ConnectError:
        return True
    return False


def main(monkeypatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["diva.serve", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        serve.main()
    return left.value.code


def test_what_the_user_gave_cannot_be_used(monkeypatch, capsys, tmp_path, export):
    monkeypatch.delenv("DIVA_API_KEY", raising=False)
    assert main(monkeypatch, tmp_path / "nowhere", "--port", 0) == 2
    assert [line[:6] for line in capsys.readouterr().err.splitlines()] == ["diva: "]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(monkeypatch, export, "--port", taken.getsockname()[1]) == 2
    assert "cannot listen" in capsys.readouterr().err
    assert main(monkeypatch, tmp_path, "--host", "0.0.0.0", "--port", 0) == 2
    assert "warning" in capsys.readouterr().err.splitlines()[0]
    monkeypatch.setenv("DIVA_API_KEY", KEY)
    assert main(monkeypatch, tmp_path, "--host", "0.0.0.0", "--port", 0) == 2
    assert "warning" not in capsys.readouterr().err
    assert main(monkeypatch, export, "--max-batch", 0) == 2


# ---- rows


def test_pieces_are_the_text_whatever_bytes_come():
    tokenizer = make_tokenizer()
    rng = np.random.default_rng(0)
    whole = tokenizer("größe 🙂 naïve 日本語")["input_ids"]
    for number in range(200):
        ids = [int(token) for token in rng.integers(0, len(tokenizer), 30)]
        ids = whole if number == 0 else ids
        text = tokenizer.decode(ids, skip_special_tokens=True)
        row = RowText(tokenizer)
        pieces = [row.push(token, last=at == len(ids) - 1) for at, token in enumerate(ids)]
        assert "".join(pieces) == row.text == text
        if number == 0:
            assert not any("�" in piece for piece in pieces)
        stop = [text[10:12], text[8:11]]
        row, pieces = RowText(tokenizer, stop), []
        while not row.stopped:
            pieces.append(row.push(ids[len(pieces)], last=len(pieces) == len(ids) - 1))
        first = min(at for at in map(text.find, stop) if at >= 0)
        assert "".join(pieces) == row.text == text[:first]


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])

    def shares(temperature: float, top_p: float) -> torch.Tensor:
        jobs = [
            Job([], 1, 0, 0, 1, (), Sampling(temperature, top_p, seed), False, print) for seed in range(4000)
        ]
        drawn = RowSampling(jobs, torch.device("cpu"))(
            torch.zeros(len(jobs), 1), logits.expand(len(jobs), -1)
        )
        return torch.bincount(drawn.argmax(dim=-1), minlength=4) / len(jobs)

    # 4000 draws: a share has a standard deviation of at most 0.008
    torch.testing.assert_close(shares(1.0, 1.0), logits.softmax(0), atol=0.03, rtol=0)
    torch.testing.assert_close(shares(2.0, 1.0), (logits / 2).softmax(0), atol=0.03, rtol=0)
    two = torch.cat([logits[:2].softmax(0), torch.zeros(2)])
    torch.testing.assert_close(shares(1.0, 0.7), two, atol=0.03, rtol=0)
    assert shares(1.0, 0.0)[0] == 1
