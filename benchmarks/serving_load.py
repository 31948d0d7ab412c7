"""A server of diva under load: lost answers, growth of memory, and waiting times of requests that arrive over time.

`python -m benchmarks.serving_load MODEL [--against FOLDER] [--into benchmarks/results]`. It starts the servers itself,
on 127.0.0.1, and asks them only. Under load, clients stream, read slowly, go away, or wait for the whole answer. Each
question has one right answer, the greedy one: another one shows a mix-up, or rounding in half precision. The arrivals
are the same for the server of FOLDER, a checkout of another revision, in the same run. Exit code 1 where something was
lost.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import soundfile

from benchmarks.measure import RESULTS, markdown, write_results
from diva.audio.frames import SAMPLE_RATE
from diva.command import count, exit_codes, positive
from diva.errors import UserError

HERE = Path(__file__).parents[1]
WAYS = ("stream", "whole", "slow reader", "goes away")
SECONDS = 600.0  # that a request may take in all; a benchmark that hangs says so
SLOW_SECONDS = 0.05  # between two lines
QUESTIONS = 12


@dataclass(frozen=True)
class Question:
    """A request's body, and what it is called."""

    number: int
    body: dict[str, Any]


@dataclass
class Seen:
    """What the clients saw."""

    ends: Counter = field(default_factory=Counter)
    answers: dict[int, set[str]] = field(default_factory=dict)  # by question
    first: list[float] = field(default_factory=list)  # seconds
    last: list[float] = field(default_factory=list)


def questions(seed: int = 0) -> list[Question]:
    """Clips of half a second to six seconds, some with a text, and answers of 4 to 48 tokens."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(QUESTIONS):
        content: list[dict] = []
        if number % 4:
            samples = rng.standard_normal(int(rng.uniform(0.5, 6) * SAMPLE_RATE)) * 0.1
            file = io.BytesIO()
            soundfile.write(file, samples, SAMPLE_RATE, format="WAV")
            data = base64.b64encode(file.getvalue()).decode()
            content.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
        if number % 2 == 0:
            content.append({"type": "text", "text": "what is it " * int(rng.integers(1, 12))})
        body = {"model": "diva", "messages": [{"role": "user", "content": content}]}
        made.append(Question(number, body | {"max_tokens": int(rng.integers(4, 48))}))
    return made


@contextlib.contextmanager
def server(model: str, folder: Path, places: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server of the code in `folder`: its base URL, and its process."""
    command = [sys.executable, "-m", "diva.serve", model, "--port", "0", "--max-queue", str(places)]
    command += ["--timeout", str(SECONDS)]
    environment = {name: value for name, value in os.environ.items() if name != "DIVA_API_KEY"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", process.stdout.readline())
        if found is None:
            raise UserError(f"the server of {folder} did not start; its message stands above")
        yield found[0], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def ask(client: httpx.AsyncClient, question: Question, way: str, seen: Seen) -> None:
    """One request, and how it ended."""
    started = time.perf_counter()
    pieces: list[tuple[float, str]] = []  # with the seconds after which they came
    try:
        body = question.body | {"stream": way != "whole"}
        async with client.stream("POST", "chat/completions", json=body) as response:
            if response.status_code != 200:
                seen.ends[f"HTTP {response.status_code}"] += 1
                return
            if way == "whole":
                answer = json.loads(await response.aread())
                pieces.append((time.perf_counter() - started, answer["choices"][0]["message"]["content"]))
                end = "whole answer"
            else:
                end = await _read(response, way, started, pieces)
    except httpx.HTTPError as error:
        end = type(error).__name__
    seen.ends[end] += 1
    if end == "whole answer":
        seen.answers.setdefault(question.number, set()).add("".join(text for _, text in pieces))
        seen.last.append(time.perf_counter() - started)
        if pieces:
            seen.first.append(pieces[0][0])


async def _read(response: httpx.Response, way: str, started: float, pieces: list[tuple[float, str]]) -> str:
    """Put the pieces of a stream into the list, and say how it ended."""
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            return "whole answer"
        if line and (piece := _content(line)):
            pieces.append((time.perf_counter() - started, piece))
            if way == "goes away":
                return "went away"
        if way == "slow reader":
            await asyncio.sleep(SLOW_SECONDS)
    return "cut off"


def _content(line: str) -> str:
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return (choices[0]["delta"].get("content") or "") if choices else ""


async def with_client(url: str, work: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=SECONDS, limits=limits, trust_env=False) as client:
        await work(client)


def arrivals(url: str, rate: float, total: int) -> dict[str, float]:
    """Requests at the times of a Poisson process -> seconds to the first token and to the end."""
    seen, asked = Seen(), questions()
    gaps = np.random.default_rng(1).exponential(1 / rate, total)

    async def work(client: httpx.AsyncClient) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number, gap in enumerate(gaps):
                await asyncio.sleep(gap)
                tasks.create_task(ask(client, asked[number % QUESTIONS], "stream", seen))

    started = time.perf_counter()
    asyncio.run(with_client(url, work))
    return summary(seen, total) | {"seconds": round(time.perf_counter() - started, 1)}


def summary(seen: Seen, total: int) -> dict[str, float]:
    """Of `total` requests, how many were lost, and the seconds to the first token and to the end of the others."""
    row: dict[str, float] = {"requests": total, "lost": total - seen.ends["whole answer"]}
    for name, values in (("first_token", seen.first), ("end", seen.last)):
        if len(values) > 1:
            parts = statistics.quantiles(values, n=20, method="inclusive")
            row |= {f"{name}_p50": round(parts[9], 3), f"{name}_p95": round(parts[18], 3)}
    return row


def load(url: str, process: psutil.Process, streams: int, total: int) -> dict[str, Any]:
    """So many clients at once until all requests are made -> how they ended, and the server's memory."""
    seen, asked = Seen(), questions()
    memory: list[float] = []  # MB, at each quarter

    async def work(client: httpx.AsyncClient) -> None:
        numbers = iter(range(total))

        async def one_client() -> None:
            for number in numbers:
                await ask(
                    client, asked[number % QUESTIONS], WAYS[(number + number // QUESTIONS) % len(WAYS)], seen
                )
                if sum(seen.ends.values()) % (total // 4) == 0:
                    memory.append(round(process.memory_info().rss / 1e6, 1))

        await asyncio.gather(*(one_client() for _ in range(streams)))
        for _ in range(100):  # those who went away are noticed a moment later
            shown = (await client.get(url.replace("/v1", "/metrics"))).text
            if "diva_active_requests 0.0" in shown:
                return
            await asyncio.sleep(0.1)
        seen.ends["still active"] += 1

    asyncio.run(with_client(url, work))
    went, whole = seen.ends["went away"], seen.ends["whole answer"]
    return {
        "requests": total,
        "streams": streams,
        "ends": dict(seen.ends),
        "lost": total - went - whole + seen.ends["still active"],
        "questions_with_two_answers": sum(len(texts) > 1 for texts in seen.answers.values()),
        "megabytes": memory,
    }


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    model = str(Path(arguments.model).resolve()) if Path(arguments.model).exists() else arguments.model
    places = max(arguments.streams, arguments.arrivals)
    folders = {"this revision": HERE} | ({"the other": arguments.against} if arguments.against else {})
    rows = {}
    for name, folder in folders.items():
        with server(model, folder.resolve(), places) as (url, _):
            arrivals(url, arguments.rate, QUESTIONS)  # does not count
            rows[name] = arrivals(url, arguments.rate, arguments.arrivals)
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    with server(model, HERE, places) as (url, process):
        found = load(url, process, arguments.streams, arguments.requests)
    text = report(rows, found, arguments.rate)
    print(text)
    if arguments.into:
        write_results(
            "serving", {"arrivals": rows, "rate": arguments.rate, "load": found}, text, arguments.into
        )
    sys.exit(int(any(row["lost"] for row in (*rows.values(), found))))


def report(rows: dict[str, dict[str, float]], found: dict[str, Any], rate: float) -> str:
    """serving.md."""
    names = ("requests", "lost", "first_token_p50", "first_token_p95", "end_p50", "end_p95", "seconds")
    columns = ("server", *(name.replace("_", " ") for name in names))
    cells: Sequence = [(server, *(row.get(name, "") for name in names)) for server, row in rows.items()]
    memory = found["megabytes"]
    growth = (
        f"{memory[0]:.0f} to {memory[-1]:.0f} MB from the first quarter to the last" if memory else "unknown"
    )
    ends = ", ".join(f"{number} {end}" for end, number in sorted(found["ends"].items()))
    return (
        f"# Serving\n\nStreams that arrive over time, {rate:g} a second, each with a clip or a text of its own length:"
        f" seconds to the first token and to the end.\n\n{markdown(columns, cells)}\n"
        f"{found['requests']} requests by {found['streams']} clients at once: {ends}. {found['lost']} lost,"
        f" {found['questions_with_two_answers']} questions with two different answers. The server's memory:"
        f" {growth}.\n"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.serving_load", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model", help="a run, an export or a hub id")
    parser.add_argument("--against", type=Path, help="a checkout of another revision, for the arrivals")
    parser.add_argument("--arrivals", type=count, default=64, help="requests that arrive over time")
    parser.add_argument("--rate", type=positive, default=4.0, help="of them a second")
    parser.add_argument("--streams", type=count, default=200, help="clients at once, under load")
    parser.add_argument("--requests", type=count, default=2000, help="of them in all")
    parser.add_argument(
        "--into", type=Path, help=f"folder for serving.json and serving.md, such as {RESULTS.name}/"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
