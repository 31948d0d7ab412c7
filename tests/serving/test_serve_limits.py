"""`python -m diva.serve` with too many requests, with clients that disconnect, with failures, and when stopped."""

import contextlib
import functools
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from requests_to_diva import (
    KEY,
    body,
    long_question,
    metrics,
    post,
    single,
    spoken,
    subprocess_server,
    user,
    wav,
)
from stand_ins import wait_until
from tiny import noise

from diva import serve
from diva.serving.app import ServerLimits
from diva.serving.rows import RowText


@pytest.mark.integration
def test_large_bodies_and_long_audio_are_refused(slow_server):
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
def test_a_request_beyond_the_queue_gets_429(slow_server, model):
    client = slow_server(ServerLimits(queue=1), rows=1)
    chat, _ = long_question(model, 100)
    call = functools.partial(client.chat.completions.create, model="diva", messages=chat)
    runs = call(max_tokens=100, stream=True)  # comes back with its first piece: it runs
    waits = threading.Thread(target=call, kwargs={"max_tokens": 2})
    waits.start()
    wait_until(lambda: metrics(client)["diva_active_requests"] == 2, 5)
    with pytest.raises(openai.RateLimitError) as refused:
        call(max_tokens=2)
    assert refused.value.response.headers["retry-after"] == "1"
    runs.close()
    waits.join()
    assert call(max_tokens=2).usage.completion_tokens == 2


@pytest.mark.integration
def test_a_request_over_the_time_limit_is_ended_and_frees_its_row(slow_server, model):
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
        pieces = [chunk.choices[0].delta.content or "" for chunk in begun[1]]
    assert "".join(pieces) == text
    shown = metrics(client)
    assert shown["diva_batch_rows_sum"] > shown["diva_batch_rows_count"]  # they shared steps
    # 500 tokens take 10 s: the batch ended with its last reader.
    with pytest.raises(openai.APITimeoutError):
        call(max_tokens=500, stream=False, timeout=0.5)
    list(call(max_tokens=2))
    wait_until(lambda: metrics(client)["diva_active_requests"] == 0, 5)
    assert metrics(client)['diva_requests_total{status="499"}'] == 1


@pytest.mark.integration
def test_who_comes_later_is_answered_while_others_are(slow_server, model):
    client = slow_server(ServerLimits())
    chat, text = long_question(model, 150)
    call = functools.partial(client.chat.completions.create, model="diva")
    pieces: list[str] = []
    stream = call(messages=chat, max_tokens=150, stream=True)  # comes back with its first piece: it runs
    reader = threading.Thread(
        target=lambda: pieces.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    )
    reader.start()
    for number in range(3):
        question = user("stop " * (number + 1))
        expected, _, new = single(model, question, 3)
        answer = call(messages=question, max_tokens=3)
        assert (answer.choices[0].message.content, answer.usage.completion_tokens) == (expected, new)
    assert reader.is_alive()  # 150 tokens take 3 s
    reader.join()
    assert "".join(pieces) == text


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


@pytest.mark.integration
def test_a_failing_batch_gives_its_jobs_an_error_and_the_next_is_answered(slow_server, monkeypatch):
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


@pytest.mark.integration
def test_sigterm_ends_what_runs_and_refuses_the_rest(export, shared_cache, model):
    chat, text = long_question(model, 200)
    with subprocess_server(export, shared_cache) as (process, url):
        client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60)
        stream = client.chat.completions.create(model="diva", messages=chat, max_tokens=200, stream=True)
        pieces = [next(stream).choices[0].delta.content]
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(url), 5)
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


def test_engine_vllm_refuses_what_it_cannot_do(monkeypatch, capsys, export):
    monkeypatch.setattr("diva.serving.vllm.command.find_spec", lambda name: None)
    for arguments, said in (
        (("--engine", "vllm"), "needs vLLM in this environment"),
        (("--engine", "vllm", "--max-queue", 3), "--max-queue: not with --engine vllm"),
        (("--tensor-parallel-size", 2), "unrecognized arguments: --tensor-parallel-size"),
    ):
        assert main(monkeypatch, export, *arguments) == 2
        assert said in capsys.readouterr().err


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
    assert main(monkeypatch, export, "--allow-origin", "page.example") == 2
    assert "is no origin" in capsys.readouterr().err
