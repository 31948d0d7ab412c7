"""Servers to ask: one in a process of its own, and slow ones in this process."""

import contextlib
import functools
import threading
import time
from collections.abc import Iterator

import openai
import pytest
import uvicorn
from requests_to_diva import KEY, MAX_NEW_TOKENS, PAGE, subprocess_server

from diva import serve
from diva.models.load import load_model
from diva.serving.app import ServerLimits, Service, create_app
from diva.serving.batching import BatchLimits
from diva.serving.listening import RequestLimits


@pytest.fixture(scope="session")
def model(export):
    return load_model(str(export))


@pytest.fixture(scope="session")
def base_url(export, shared_cache) -> Iterator[str]:
    options = ("--allow-origin", PAGE, "--max-new-tokens", str(MAX_NEW_TOKENS))
    with subprocess_server(export, shared_cache, *options) as (_, url):
        yield url


@pytest.fixture(scope="session")
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
