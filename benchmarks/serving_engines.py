"""diva's own server and vLLM's, asked by more and more clients at once.

`python -m benchmarks.serving_engines MODEL [--into benchmarks/results]`, after `make test-vllm` has made .venv-vllm.
The servers run on 127.0.0.1, on all cores, and are asked in turns. Each client asks its next question when it has the
answer to the last. The questions are those of `benchmarks.serving_load`: clips of half a second to six seconds, answers
of 4 to 48 tokens, greedy. "one by one" is diva's server with one answer in a batch.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measure import RESULTS, markdown, write_results
from benchmarks.serving_load import HERE, QUESTIONS, SECONDS, Seen, ask, questions, summary, with_client
from diva.command import count, exit_codes
from diva.errors import UserError

CLIENTS = (1, 4, 16, 64)
VLLM_PYTHON = HERE / ".venv-vllm" / "bin" / "python"
SECONDS_TO_START = 300
# Compiling takes minutes. The cache of keys and values is by default all free memory.
VLLM_OPTIONS = ("--engine", "vllm", "--enforce-eager", "--max-model-len", "1024")
VLLM_VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def server(python: Path, model: str, *options: str) -> Iterator[str]:
    """A server in float32: its base URL."""
    port = _free_port()
    command = [str(python), "-m", "diva.serve", model, "--port", str(port), "--dtype", "float32", *options]
    variables = {name: value for name, value in os.environ.items() if name != "DIVA_API_KEY"}
    process = subprocess.Popen(command, cwd=HERE, env=variables | VLLM_VARIABLES, stdout=sys.stderr)
    try:
        _wait(process, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait(process: subprocess.Popen, url: str) -> None:
    for _ in range(SECONDS_TO_START):
        if process.poll() is not None:
            raise UserError("a server did not start; its message stands above")
        try:
            httpx.get(url, trust_env=False).raise_for_status()
        except httpx.HTTPError:
            time.sleep(1)
        else:
            return
    raise UserError(f"a server did not start within {SECONDS_TO_START} s")


def asked_by(clients: int, total: int, url: str) -> tuple[dict[str, Any], dict[int, set[str]]]:
    """So many clients ask `total` questions: requests a second, and seconds to the first token and to the end."""
    seen, asked = Seen(), questions()

    async def work(client: httpx.AsyncClient) -> None:
        numbers = iter(range(total))

        async def one_client() -> None:
            for number in numbers:
                await ask(client, asked[number % QUESTIONS], "stream", seen)

        await asyncio.gather(*(one_client() for _ in range(clients)))

    started = time.perf_counter()
    asyncio.run(with_client(url, work))
    rate = round(total / (time.perf_counter() - started), 2)
    return summary(seen, total) | {"requests_per_second": rate}, seen.answers


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    if not VLLM_PYTHON.exists():
        raise UserError(f"{VLLM_PYTHON} is missing: `make test-vllm` makes the environment")
    model = str(Path(arguments.model).resolve()) if Path(arguments.model).exists() else arguments.model
    places = ("--max-queue", str(max(CLIENTS)), "--timeout", str(SECONDS))
    here = Path(sys.executable)
    rows: dict[str, dict[str, Any]] = {}
    answers: dict[str, dict[int, set[str]]] = {}
    with (
        server(here, model, *places, "--max-batch", "1") as one,
        server(here, model, *places) as own,
        server(VLLM_PYTHON, model, *VLLM_OPTIONS) as vllm,
    ):
        urls = {"one by one": one, "diva's server": own, "vLLM": vllm}
        for url in urls.values():
            asked_by(1, QUESTIONS, url)  # does not count
        for clients in CLIENTS:
            for name, url in urls.items():
                if url == one and clients > 1:  # more clients would only wait longer
                    continue
                found, said = asked_by(clients, max(QUESTIONS, arguments.rounds * clients), url)
                rows[f"{clients} {name}"] = {"clients": clients, "server": name, **found}
                print(rows[f"{clients} {name}"], file=sys.stderr, flush=True)
                for number, texts in said.items():
                    answers.setdefault(name, {}).setdefault(number, set()).update(texts)
    alike = sum(answers["vLLM"][number] == texts for number, texts in answers["diva's server"].items())
    text = report(list(rows.values()), alike)
    print(text)
    if arguments.into:
        figures = {"rows": list(rows.values()), "questions": QUESTIONS, "answered_alike": alike}
        write_results("serving_engines", figures, text, arguments.into)


def report(rows: list[dict[str, Any]], alike: int) -> str:
    """serving_engines.md."""
    names = ("clients", "server", "requests", "lost", "requests_per_second", "first_token_p50", "first_token_p95",
             "end_p50", "end_p95")  # fmt: skip
    cells = [[row[name] for name in names] for row in rows]
    return (
        "# Servers beside each other\n\nSeconds to the first token and to the end of an answer: median and 95th"
        f" percentile. float32.\n\n{markdown([name.replace('_', ' ') for name in names], cells)}\n"
        f"vLLM and diva's server gave the same answers to {alike} of {QUESTIONS} questions.\n"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.serving_engines", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model", help="a run or an export")
    parser.add_argument(
        "--rounds", type=count, default=2, help="questions of each client, at least 12 in all"
    )
    parser.add_argument(
        "--into",
        type=Path,
        help=f"folder for serving_engines.json and serving_engines.md, such as {RESULTS.name}/",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
