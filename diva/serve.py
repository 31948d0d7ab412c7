"""Serve a trained DiVA over HTTP, as OpenAI's chat completions: `python -m diva.serve [MODEL]`.

MODEL is a run directory, an export or a hub id; by default the newest run. Clients use the model name `diva`
(`--name`). If the environment has DIVA_API_KEY, clients must send that key. Answers are greedy unless the request sets
temperature or top_p.
The parts of a message are joined by line breaks, as `diva.generate --prompt` joins a clip and its prompt.
`--engine vllm` starts `vllm serve` for the same model; options that diva does not know are passed on to it.
"""

import argparse
import ipaddress
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import uvicorn

from diva.command import add_parts, count, exit_codes, positive, quieten
from diva.errors import UserError

if TYPE_CHECKING:
    from diva.serving.app import Service

_TRANSFORMERS_ONLY = (
    "max_batch",
    "max_batch_tokens",
    "max_wait_ms",
    "max_queue",
    "timeout",
    "max_body_mb",
    "max_audio_seconds",
    "max_new_tokens",
    "llm",
    "encoder",
)


@exit_codes
def main() -> None:
    arguments, others = parse_arguments()
    if arguments.engine == "vllm":
        from diva.serving.vllm.command import exec_server

        warn_of_open(arguments.host)
        exec_server(arguments, others)
    # After --help: they import torch.
    from diva.models.load import load_model
    from diva.plots.curves import newest_run
    from diva.serving.app import ServerLimits, Service
    from diva.serving.batching import BatchLimits
    from diva.serving.listening import RequestLimits

    quieten()
    model_path = arguments.model or str(newest_run(Path("runs")))
    # Before the model is loaded, which takes a while: the port may be taken.
    listener = bind(arguments.host, arguments.port)
    api_key = os.environ.get("DIVA_API_KEY") or None
    warn_of_open(arguments.host)
    service = Service(
        load_model(model_path, arguments.dtype, arguments.llm, arguments.encoder, arguments.encoder_dtype),
        arguments.name,
        api_key,
        ServerLimits(arguments.max_queue, arguments.timeout, int(arguments.max_body_mb * 2**20)),
        BatchLimits(
            arguments.max_batch,
            arguments.max_wait_ms / 1000,
            arguments.max_batch_tokens,
            arguments.max_audio_seconds,
        ),
        RequestLimits(arguments.max_audio_seconds, arguments.max_new_tokens),
    )
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    ready = f"diva: {model_path} as {arguments.name!r} at {url}/v1"
    serve(service, listener, arguments.timeout, ready, arguments.allow_origin)


def serve(
    service: "Service", listener: socket.socket, timeout: float, ready: str, origins: Sequence[str]
) -> None:
    """Run until SIGTERM or SIGINT, then end what is running; new connections are refused meanwhile."""
    from diva.serving.app import create_app

    config = uvicorn.Config(
        create_app(service, origins),
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        # Every request ends by its own time-out; this is for those that do not.
        timeout_graceful_shutdown=math.ceil(timeout) + 10,
    )
    server = _Server(config, ready)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signal again when it has shut down; that end is the one that was asked for.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    def __init__(self, config: uvicorn.Config, ready: str):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._ready, flush=True)


def bind(host: str, port: int) -> socket.socket:
    """A socket on the address that does not listen yet. Raises UserError where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {error}; give others with --host, --port"
        ) from error
    return listener


def warn_of_open(host: str) -> None:
    """Warn of a server that others can ask without a key."""
    if not os.environ.get("DIVA_API_KEY") and not is_loopback(host):
        print(
            f"diva: warning: {host} is open to others and asks for no key; set DIVA_API_KEY",
            file=sys.stderr,
            flush=True,
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def origin(text: str) -> str:
    """An option's type: what a browser calls the origin of a page, or * for all pages."""
    parts = urlsplit(text)
    if text != "*" and (not parts.netloc or text != f"{parts.scheme}://{parts.netloc}"):
        raise argparse.ArgumentTypeError(f"{text} is no origin; an origin is like https://example.org:8080")
    return text


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The options, and those that only vLLM knows."""
    parser = argparse.ArgumentParser(prog="diva.serve", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "model", nargs="?", help="a run directory, its export/ folder or a hub id; the newest run"
    )
    parser.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="vllm for many users; it needs vLLM in this environment, and takes the options of `vllm serve`",
    )
    parser.add_argument("--name", default="diva", help="of the model, for clients")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 is open to others: set DIVA_API_KEY")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument(
        "--allow-origin",
        type=origin,
        action="append",
        default=[],
        help="whose pages may ask from a browser, such as https://example.org; once for each, * for all",
    )
    parser.add_argument("--dtype", help="precision of the frozen parts; float32 on a CPU unless given")
    parser.add_argument("--max-batch", type=count, default=16, help="answers generated together")
    parser.add_argument(
        "--max-batch-tokens", type=count, default=8192, help="of prompts and answers in a batch"
    )
    parser.add_argument(
        "--max-wait-ms",
        type=positive,
        default=5,
        help="how long the first request to an idle server waits for others",
    )
    parser.add_argument("--max-queue", type=count, default=256, help="requests that wait; others get 429")
    parser.add_argument("--timeout", type=positive, default=120, help="seconds for a whole request")
    parser.add_argument("--max-body-mb", type=positive, default=32, help="MiB of a request's body")
    parser.add_argument("--max-audio-seconds", type=positive, default=600, help="of all clips of a request")
    parser.add_argument(
        "--max-new-tokens",
        type=count,
        default=512,
        help="most tokens of an answer; a request for more gets this number",
    )
    add_parts(parser)
    arguments, others = parser.parse_known_args()
    if others and arguments.engine != "vllm":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    changed = [name for name in _TRANSFORMERS_ONLY if getattr(arguments, name) != parser.get_default(name)]
    if changed and arguments.engine == "vllm":
        options = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        parser.error(f"{options}: not with --engine vllm, which has its own options: vllm serve --help")
    return arguments, others


if __name__ == "__main__":
    main()
