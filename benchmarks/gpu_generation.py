"""Speed of answering on a GPU at the paper's size, random weights: time to the first token and tokens a second.

`python -m benchmarks.gpu_generation [--experiment diva_llama3_8b] [--batches 1 16] [--new-tokens 64]`; the other
options are those of `benchmarks.gpu`. Beside it stands the least that reading the LLM's weights once a token takes.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu import SECONDS, speech, wait
from benchmarks.measure import RESULTS, markdown, write_results
from diva.command import exit_codes, quieten
from diva.config import check_overrides, make
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.skeleton import architecture
from diva.planning.counting import Work, prepare

CACHES = {"growing cache": None, "static cache, compiled": "static"}


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    quieten()
    config = check_overrides("train", [f"experiment={arguments.experiment}", "data.root=null"])
    parts = architecture(make(config.model))
    if arguments.layers:
        parts = parts.with_layers(tuple(arguments.layers))
    torch.manual_seed(config.seed)
    model = prepare(make(config.model), parts, Work(adapter_dtype=torch.float32), device)
    model.processor.audio_token_id = parts.llm.vocab_size
    model.processor.pad_token_id = 0
    model.generation_config.eos_token_id = None  # all answers are as long as asked
    rows: list[dict[str, Any]] = []
    for name, cache in CACHES.items():
        for batch in arguments.batches:
            try:
                figures = measure(model, batch, cache, arguments.new_tokens, arguments.rounds)
            except Exception as error:  # the other rows are measured anyway
                figures = {"failed": f"{type(error).__name__}: {error}"[:500]}
            rows.append({"cache": name, "batch": batch, **figures})
            print(rows[-1], flush=True)
            write_results("gpu_generation", {"rows": rows}, report(rows), arguments.into)
    Console(stderr=True).print(report(rows), markup=False, highlight=False, soft_wrap=True)


@torch.no_grad()
def measure(
    model: DivaForConditionalGeneration, batch: int, cache: str | None, new_tokens: int, rounds: int
) -> dict[str, float]:
    """Medians of answers of one and of `new_tokens` tokens to so many clips at once."""
    device = model.prefix_ids.device
    clips = speech(batch, model.llm.config.vocab_size).to(device)
    read = model.config.adapter.tokens_read(clips.samples)
    ids = [
        model.prefix_ids,
        model.prefix_ids.new_full((int(read[0]),), model.processor.audio_token_id),
        model.suffix_ids,
    ]
    row = torch.cat(ids).expand(batch, -1)
    given = {"audio": clips.waveforms, "audio_samples": clips.samples, "attention_mask": torch.ones_like(row)}
    if cache:
        given["cache_implementation"] = cache

    def answer(tokens: int) -> float:
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=model.llm.dtype == torch.bfloat16):
            model.generate(
                input_ids=row, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, **given
            )
        wait(device)
        return time.perf_counter() - started

    warm = answer(new_tokens)
    answer(1)
    first = statistics.median(answer(1) for _ in range(rounds))
    whole = statistics.median(answer(new_tokens) for _ in range(rounds))
    each = (whole - first) / (new_tokens - 1)
    return {
        "n": rounds,
        "seconds_of_audio_each": SECONDS[1],
        "first_call_seconds": round(warm, 2),
        "first_token_ms": round(1000 * first, 2),
        "ms_per_token": round(1000 * each, 3),
        "tokens_per_second": round(batch / each, 1),
        "weights_gigabytes": round(sum(p.nbytes for p in model.llm.parameters()) / 1e9, 2),
    }


def report(rows: list[dict[str, Any]]) -> str:
    """The table of gpu_generation.md."""
    columns = ("cache", "batch", "first_token_ms", "ms_per_token", "tokens_per_second")
    cells = [[str(row.get(column, row.get("failed", ""))) for column in columns] for row in rows]
    return "# Answering on a GPU\n\n" + markdown([c.replace("_", " ") for c in columns], cells)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_generation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--experiment", default="diva_llama3_8b", metavar="NAME")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs=3, metavar="N", help="of encoder, adapter and LLM")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for the result files")
    return parser.parse_args()


if __name__ == "__main__":
    main()
