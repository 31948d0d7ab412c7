"""`python -m diva.serve MODEL --engine vllm`, asked by OpenAI's own client (`make test-vllm`)."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from requests_to_diva import KEY, spoken, wav
from test_vllm import NEW_TOKENS, clip, expected, for_vllm, llama, text, turn

from diva.models.modeling import DivaForConditionalGeneration

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.integration,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM has an environment of its own"),
]
SECONDS_TO_START = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_whisper) -> Path:
    """A run directory."""
    return llama(tmp_path_factory.mktemp("run"), tiny_whisper).parent


@pytest.fixture(scope="module")
def model(folder) -> DivaForConditionalGeneration:
    return DivaForConditionalGeneration.from_pretrained(folder, dtype="float32")


@pytest.fixture(scope="module")
def client(folder) -> Iterator[openai.OpenAI]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        f"--engine vllm --port {port} --enforce-eager --max-model-len 512 --kv-cache-memory-bytes {2**26}"
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "diva.serve", folder, "--dtype", "float32", *options.split()],
        env=os.environ | {"VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1", "DIVA_API_KEY": KEY},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait(server, url)
        yield openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)
    finally:
        server.terminate()
        server.wait(60)


def wait(server: subprocess.Popen, url: str) -> None:
    for _ in range(SECONDS_TO_START):
        assert server.poll() is None, "the server has ended"
        try:
            httpx.get(f"{url}/health").raise_for_status()
        except httpx.HTTPError:
            time.sleep(1)
        else:
            return
    raise AssertionError("the server does not start")


def answer(client: openai.OpenAI, **fields) -> list[int]:
    """The tokens of an answer: its text lacks the bytes of a last character that is not complete."""
    reply = client.chat.completions.create(**fields, extra_body={"return_token_ids": True})
    return reply.choices[0].token_ids


def request(chat: list[dict]) -> dict:
    return {"model": "diva", "messages": for_vllm(chat), "max_tokens": NEW_TOKENS}


def test_server_answers_as_transformers(client, model):
    chats = [
        [turn("user", clip(1.3, 3))],
        [turn("user", text("who wrote this book"))],
        [
            turn("system", text("good morning")),
            turn("user", clip(1.0, 7)),
            turn("assistant", text("it is going to rain")),
            turn("user", text("tell me a joke"), clip(2.0, 8)),
        ],
    ]

    got = [answer(client, **request(chat)) for chat in chats]

    assert got == [expected(model, chat)[1] for chat in chats]


def test_server_asks_for_the_key(client):
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").chat.completions.create(
            **request([turn("user", text("stop"))])
        )


def test_streamed_pieces_are_the_answer(client, model):
    chat = [turn("user", clip(0.8, 21), text("stop"))]

    stream = client.chat.completions.create(**request(chat), stream=True)
    pieces = [piece.choices[0].delta.content or "" for piece in stream]

    text_alone = model.processor.tokenizer.decode(expected(model, chat)[1], skip_special_tokens=True)
    assert "".join(pieces) == text_alone.rstrip("\ufffd")
    assert len(pieces) > 2


def test_clip_as_data_url_is_read(client, model):
    chat = [turn("user", clip(0.8, 22))]
    part = spoken(wav(chat[0]["content"][0]["clip"]))
    url = f"data:audio/wav;base64,{part['input_audio']['data']}"
    fields = request(chat) | {
        "messages": [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": url}}]}]
    }

    assert answer(client, **fields) == expected(model, chat)[1]


def test_silent_clip_is_refused(client):
    silent = [turn("user", {"type": "clip", "clip": np.zeros(16_000, np.float32)})]

    with pytest.raises(openai.BadRequestError, match="silence"):
        client.chat.completions.create(**request(silent))
