"""Speed of answering: diva compared with the published algorithm, on the same weights in one run.

`python -m benchmarks.generation [--model RUN] [--clips FOLDER] [--new-tokens 24]`. Both make the same number of
tokens in the same precision on the same clips, in turns. The published code answers one clip a call: "one by one".
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.published import Published
from diva.command import exit_codes, quieten
from diva.data.corpora.common_voice import CommonVoice
from diva.errors import UserError
from diva.models.load import load_model
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.pretrained import resolve
from diva.plots.curves import newest_run
from diva.training.run_folder import environment

BATCHES = (1, 4, 16)
NO_TOKEN = -1  # used as the end token, so that no answer ends early and all take the same work


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    quieten()
    folder = Path(arguments.model) if arguments.model else newest_run(Path("runs"))
    model = load_model(str(folder), arguments.dtype)
    clips = load_clips(arguments.data, max(BATCHES))
    published = restate(model)
    rows = [measure(model, published, clips[:size], arguments) for size in BATCHES]
    report(rows, arguments.new_tokens)
    if arguments.into:
        result = {"rows": rows, "new_tokens": arguments.new_tokens, "model": str(folder), **environment()}
        arguments.into.write_text(json.dumps(result, indent=2) + "\n")
    first, last = rows[0]["speed_up"], rows[-1]["speed_up"]
    print(f"generation speed-up batch1 {first:.2f} batch16 {last:.2f}")


def load_clips(release: Path, count: int) -> list[np.ndarray]:
    """The first held-out clips of a Common Voice release."""
    manifest = CommonVoice(str(release)).manifest("test")
    if len(manifest) < count:
        raise UserError(
            f"{release} has {len(manifest)} test clips, the benchmark takes {count}; `make corpus` makes them"
        )
    return [manifest.waveform(clip) for clip in range(count)]


def restate(model: DivaForConditionalGeneration) -> Published:
    """The published algorithm on this model's weights, by way of the published layout."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, layout="released")
        names = (resolve(model.config.encoder.name), resolve(model.config.llm.name))
        return Published.load(Path(folder), *names, end_token=NO_TOKEN, dtype=model.llm.dtype)


def measure(
    model: DivaForConditionalGeneration,
    published: Published,
    clips: Sequence[np.ndarray],
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Seconds for these clips, medians of several rounds in which the contenders take turns."""
    size, tokens = len(clips), arguments.new_tokens

    def ours(count: int) -> None:
        batch = model.processor.spoken_turns(clips, [None] * size)
        model.generate(**batch, do_sample=False, max_new_tokens=count, min_new_tokens=count)

    def one_by_one(count: int) -> None:
        for clip in clips:
            published.generate([clip], max_new_tokens=count)

    work: dict[str, Callable[[], None]] = {
        "ours": lambda: ours(tokens),
        "ours_first_token": lambda: ours(1),
        "one_by_one": lambda: one_by_one(tokens),
        "one_by_one_first_token": lambda: one_by_one(1),
        "published_batched": lambda: published.generate(clips, max_new_tokens=tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    ours(1)
    for _ in range(arguments.rounds):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "batch": size,
        "seconds_of_audio": sum(map(len, clips)) / 16_000,
        **{f"{name}_seconds": round(value, 4) for name, value in medians.items()},
        "tokens_per_second": round(size * tokens / medians["ours"], 2),
        "clips_per_second": round(size / medians["ours"], 3),
        "speed_up": round(medians["one_by_one"] / medians["ours"], 3),
        "speed_up_first_token": round(medians["one_by_one_first_token"] / medians["ours_first_token"], 3),
    }


def report(rows: list[dict[str, float]], tokens: int) -> None:
    columns = (
        "batch",
        "first token, s",
        "tokens/s",
        "clips/s",
        "one by one, s",
        "published batched, s",
        "ours, s",
        "speed-up",
    )
    table = Table(*columns, title=f"answers of {tokens} tokens")
    for row in rows:
        names = ("ours_first_token_seconds", "tokens_per_second", "clips_per_second", "one_by_one_seconds",
                 "published_batched_seconds", "ours_seconds", "speed_up")  # fmt: skip
        table.add_row(str(row["batch"]), *(f"{row[name]:.2f}" for name in names))
    Console(stderr=True).print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.generation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", help="a run, an export or a hub id; the newest run unless given")
    parser.add_argument(
        "--data", type=Path, default=Path("data/cv-corpus-spoken-mini"), help="a release with test clips"
    )
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", help="precision of the frozen parts; float32 on a CPU unless given")
    parser.add_argument("--into", type=Path, help="also write the figures to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
