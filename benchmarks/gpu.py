"""Training speed on a GPU: clips a second and MFU, at the paper's size and the mini recipe's.

`python -m benchmarks.gpu [--experiments NAME ...] [--batch 8] [--peak-tflops N] [key=value ...]` needs one CUDA
device; 80 GB for the paper's size (8 B parameters in bfloat16, 0.9 B trained). Weights are random and of the shipped
architectures, so nothing is loaded, and no corpus is needed. Nor is `make setup`, where torch, torchaudio, lightning,
transformers, hydra-core, rich, soundfile, pyarrow and scipy are there: run it from the repository's root.

The keys are those of diva.train, hardware.precision and hardware.activation_checkpointing among them. MFU is the FLOPs
that `diva.costs` counts in the model's own code, what is computed a second time left out, over what the device could do
at its peak in bfloat16.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from benchmarks.measure import RESULTS, markdown, peak_bytes, reset_peak, write_results
from diva.audio import padded_samples
from diva.cli import check_overrides, exit_codes, make, quieten
from diva.costs import Batch, Work, count_flops, prepare, step
from diva.devices import peak_tflops
from diva.errors import UserError
from diva.models.config import DivaConfig
from diva.models.skeleton import Architecture, architecture
from diva.planned_run import Run

# A clip of Common Voice's median length, and the tokens of its transcript.
CLIP_SECONDS, CLIP_TOKENS = 5.0, 15


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        raise UserError("benchmarks.gpu needs a CUDA device, and there is none; `make bench` runs on a CPU")
    quieten()
    device = torch.device("cuda", torch.cuda.current_device())
    peak = arguments.peak_tflops or peak_tflops(torch.cuda.get_device_name(device))
    rows = []
    for experiment in arguments.experiments:
        chosen = [f"experiment={experiment}", "hardware=gpu", "data.root=null", *arguments.overrides]
        config = check_overrides("train", chosen)
        parts = architecture(make(config.model))
        rows.append({"experiment": experiment} | measure(config, parts, arguments, device, peak))
        torch.cuda.empty_cache()
    text = report(rows)
    write_results("gpu", {"rows": rows, "peak_tflops": peak}, text, arguments.into)
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
    print(
        "  ".join(f"{r['experiment']} {r['clips_per_second']:.2f} clips/s, MFU {r['mfu']:.3f}" for r in rows)
    )


def measure(
    config: DictConfig,
    parts: Architecture,
    arguments: argparse.Namespace,
    device: torch.device,
    peak: float,
) -> dict[str, Any]:
    """Median seconds of a whole optimizer step, nothing kept from step to step; `peak` in TFLOP/s."""
    hardware = config.hardware
    model_config: DivaConfig = make(config.model)
    width = model_config.adapter.num_virtual_tokens
    batch = Batch(arguments.batch, padded_samples(CLIP_SECONDS), CLIP_TOKENS, max(width, CLIP_TOKENS))
    work = work_of(config, device)
    flops = sum(count_flops(model_config, parts, batch, replace(work, recomputes=False)).values())
    torch.manual_seed(config.seed)
    model = prepare(model_config, parts, work, device).train()
    optimizer = make(config.optimizer.algorithm)(model.adapter.parameters())
    seconds = []
    reset_peak(device)
    for _ in range(arguments.rounds + 1):
        started = _now(device)
        optimizer.zero_grad()
        step(model, batch, work, lambda stage: None)
        if config.optimizer.gradient_clip > 0:
            torch.nn.utils.clip_grad_norm_(model.adapter.parameters(), config.optimizer.gradient_clip)
        optimizer.step()
        seconds.append(_now(device) - started)
    median = statistics.median(seconds[1:])  # the first warms up
    return {
        "batch": batch.rows,
        "queries": model_config.adapter.num_query_tokens,
        "precision": hardware.precision,
        "checkpointing": hardware.activation_checkpointing,
        "n": arguments.rounds,
        "step_seconds": round(median, 4),
        "least": round(min(seconds[1:]), 4),
        "most": round(max(seconds[1:]), 4),
        "clips_per_second": round(batch.rows / median, 3),
        "gflop_per_clip": round(flops / batch.rows / 1e9, 3),
        "mfu": round(flops / median / (peak * 1e12), 4),
        "megabytes": round(peak_bytes(device) / 1e6),
    }


def work_of(config: DictConfig, device: torch.device) -> Work:
    """What a run of this config does in a step with both losses when it keeps nothing."""
    return replace(
        Run(config).work,
        aligns=True,
        distills=True,
        frames_at_hand=False,
        teacher_at_hand=False,
        accumulates=False,
        accelerator="cpu" if device.type == "cpu" else "gpu",
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The table of gpu.md."""
    return "# Training step on a GPU\n\n" + markdown(list(rows[0]), [tuple(row.values()) for row in rows])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experiments", nargs="+", default=["mini", "diva_llama3_8b"], metavar="NAME")
    parser.add_argument("--batch", type=int, default=8, help="clips a step, all in one micro-batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense bfloat16")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for gpu.json and gpu.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of diva.train's config")
    return parser.parse_args()


if __name__ == "__main__":
    main()
