"""What tests of `diva.serve` share: servers, requests, and what a model says by itself."""

import base64
import contextlib
import io
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import soundfile
from command_line import command, environment
from tiny import SENTENCES

KEY = "a key"
PAGE = "https://page.example"  # whose scripts may ask
MAX_NEW_TOKENS = 64
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


def body(**changes) -> bytes:
    fields = {"model": "diva", "messages": user("hello"), "max_tokens": 2} | changes
    return json.dumps({key: value for key, value in fields.items() if value is not ...}).encode()


def post(base_url: str, content, **headers: str) -> httpx.Response:
    kinds = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    return httpx.post(f"{base_url}/chat/completions", content=content, headers=kinds | headers, timeout=20)


def single(model, chat: list[dict], max_tokens: int) -> tuple[str, int, int]:
    """What `generate` says to one chat alone: text, tokens of the prompt, new tokens."""
    inputs = model.processor.apply_chat_template([chat])
    length = inputs["input_ids"].shape[1]
    ids = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)[:, length:]
    return model.processor.batch_decode(ids, skip_special_tokens=True)[0], length, ids.shape[1]


def long_question(model, tokens: int) -> tuple[list[dict], str]:
    """A chat whose greedy answer does not end by itself, and that answer."""
    for number in range(20):
        chat = user(" ".join(WORDS[: number % len(WORDS) + 1]))
        text, _, made = single(model, chat, tokens)
        if made == tokens and len(text) > tokens // 4:
            return chat, text
    raise AssertionError("the tiny model ends every answer")


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


def metrics(client: openai.OpenAI) -> dict[str, float]:
    url = str(client.base_url).replace("/v1/", "/metrics")
    text = httpx.get(url, headers={"authorization": f"Bearer {client.api_key}"}).text
    return {name: float(value) for name, value in re.findall(r"^([^#].*) (\S+)$", text, re.M)}
