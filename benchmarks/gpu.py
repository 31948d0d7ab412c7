"""Training speed on a GPU: clips a second, MFU and memory, at the paper's size, beside the published pattern.

`python -m benchmarks.gpu [--experiment diva_llama3_8b] [--sides NAME ...] [--batch 8 16] [key=value ...]`
needs a CUDA device of 80 GB for the paper's size (8 B parameters in bfloat16, 0.9 B trained). Weights are random and
of the shipped architectures, so nothing is loaded, and no corpus is needed: clips are noise, as long as in one bucket
of Common Voice. `--layers 2 2 2` makes the model shallow and `--device cpu` takes the CPU: how the benchmark itself is
tested.

MFU is the FLOPs that `diva.planning.counting` counts in our model for this work, without what is computed a second
time, over what the device could do at its peak in bfloat16. The published pattern is given those of our step on 30 s
windows: it computes the same losses, and what it computes for padding is no use.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from benchmarks.measure import RESULTS, Parts, markdown, peak_bytes, reset_peak, write_results
from benchmarks.published_training import PublishedTraining
from benchmarks.step import OurTraining, Variant, training_step
from diva.audio.frames import SAMPLE_RATE, padded_samples
from diva.command import exit_codes, quieten
from diva.config import check_overrides, make
from diva.data.batch import SpeechBatch
from diva.errors import UserError
from diva.models.configuration import DivaConfig
from diva.models.encoder import Context
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.skeleton import Architecture, architecture
from diva.planning.counting import Batch, Work, count_bytes, count_flops, prepare
from diva.planning.memory import resident
from diva.planning.run import Run
from diva.training.answers import Answer, Continuation
from diva.training.distributed.compilation import compile_layers
from diva.training.distributed.devices import peak_tflops
from diva.training.losses import Objective

# The bucket of Common Voice's median: clips of 4.5 to 5 s, and the tokens of their transcripts.
SECONDS, TOKENS = (4.5, 5.0), (10, 18)
# Read a second where the LLM reads in proportion: twice the tokens of quick speech.
TOKENS_PER_SECOND = 12.0


# Whole answers: positions after each of 16 tokens as well.
ANSWERS = Objective(answer_tokens=16)
# Changes of the model that are not undone.
_LASTING = ("compiled", "float8")


@dataclass(frozen=True)
class Side:
    """One way to compute a training step; the defaults are ours on the clip's own length."""

    context: Context = "bucket"
    published: bool = False
    reuses_prefix: bool = True
    in_proportion: bool = False
    compiled: bool = False
    float8: bool = False
    recomputes: bool = False
    times_the_clips: int = 1  # for one that leaves room for more
    objective: Objective = field(default_factory=Objective)


# The order matters, because compiled or converted parts stay so.
SIDES = {
    "published pattern": Side("full", published=True),
    "ours, 30 s windows": Side("full"),
    "ours, 30 s windows, prefix read anew": Side("full", reuses_prefix=False),
    "ours, own length": Side(),
    "ours, own length, in proportion": Side(in_proportion=True, times_the_clips=2),
    "ours, own length, activations recomputed": Side(recomputes=True),
    "ours, own length, answers": Side(objective=ANSWERS),
    "ours, own length, answers, KL": Side(objective=replace(ANSWERS, distance="kl")),
    "compiled, 30 s windows": Side("full", compiled=True),
    "compiled, own length": Side(compiled=True),
    "compiled, own length, in proportion": Side(compiled=True, in_proportion=True, times_the_clips=2),
    "compiled, own length, answers": Side(compiled=True, objective=ANSWERS),
    "compiled, own length, answers, KL": Side(compiled=True, objective=replace(ANSWERS, distance="kl")),
    "compiled, own length, in proportion, answers": Side(
        compiled=True, in_proportion=True, times_the_clips=2, objective=ANSWERS
    ),
    "float8, 30 s windows": Side("full", compiled=True, float8=True),
    "float8, own length": Side(compiled=True, float8=True),
    "float8, own length, in proportion": Side(
        compiled=True, float8=True, in_proportion=True, times_the_clips=2
    ),
}


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("benchmarks.gpu needs a CUDA device, and there is none; `make bench` runs on a CPU")
    quieten()
    bench = GpuBench.open(arguments, device)
    rows: list[dict[str, Any]] = []
    for name, batch in product(arguments.sides, arguments.batch):
        clips = batch * SIDES[name].times_the_clips
        rows.append({"side": name, **bench.measure_what_fits(SIDES[name], clips, arguments.rounds)})
        print(rows[-1], flush=True)
        # Written after each side, so that results are saved even if the time limit ends the benchmark.
        write_results(arguments.name, {"rows": rows, "peak_tflops": bench.peak}, report(rows), arguments.into)
        if name == arguments.profile and batch == arguments.batch[-1]:
            text = bench.profile(SIDES[name], rows[-1]["batch"])
            (arguments.into / f"{arguments.name}_profile.txt").write_text(text)
    Console(stderr=True).print(report(rows), markup=False, highlight=False, soft_wrap=True)


@dataclass(eq=False)
class GpuBench:
    """A model of random weights at its full size, its optimizer, and what a step of it costs by the count."""

    config: DictConfig
    parts: Architecture
    model: DivaForConditionalGeneration
    optimizer: torch.optim.Optimizer
    device: torch.device
    peak: float  # TFLOP/s
    changed: set[str]  # of _LASTING

    @classmethod
    def open(cls, arguments: argparse.Namespace, device: torch.device) -> "GpuBench":
        hardware = "cpu" if device.type == "cpu" else "gpu"
        chosen = [f"experiment={arguments.experiment}", f"hardware={hardware}", "data.root=null"]
        config = check_overrides("train", [*chosen, *arguments.overrides])
        parts = architecture(make(config.model))
        if arguments.layers:
            parts = parts.with_layers(tuple(arguments.layers))
        name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        peak = arguments.peak_tflops or (peak_tflops(name) if device.type == "cuda" else 1.0)
        torch.manual_seed(config.seed)
        work = cls._work_of(config, device)
        model = prepare(make(config.model), parts, work, device).train()
        optimizer = make(config.optimizer.algorithm)(model.adapter.parameters())
        return cls(config, parts, model, optimizer, device, peak, set())

    @staticmethod
    def _work_of(config: DictConfig, device: torch.device) -> Work:
        """What a run of this config does in a step with both losses when it keeps nothing."""
        return replace(
            Run(config).work,
            objective=Objective(),
            distills=True,
            frames_at_hand=False,
            teacher_at_hand=False,
            accumulates=False,
            recomputes=False,
            accelerator="cpu" if device.type == "cpu" else "gpu",
        )

    def measure_what_fits(self, side: Side, rows: int, rounds: int) -> dict[str, Any]:
        """`measure` on so many clips, or on the half of them, as often as it takes for them to fit."""
        while True:
            try:
                return self.measure(side, rows, rounds)
            except torch.cuda.OutOfMemoryError as error:
                failed = str(error).splitlines()[0]
            except Exception as error:  # the other sides are measured anyway
                return {"batch": rows, "failed": f"{type(error).__name__}: {error}"[:500]}
            self.optimizer.zero_grad()
            gc.collect()
            torch.cuda.empty_cache()
            if rows == 1:
                return {"batch": rows, "failed": failed}
            rows //= 2

    def measure(self, side: Side, rows: int, rounds: int) -> dict[str, Any]:
        """Median seconds of a whole optimizer step on so many clips, and what the plan says of it."""
        planned = self._planned(side, rows)
        step = self._step(side, speech(rows, self.parts.llm.vocab_size))
        warmed = time.perf_counter()
        loss = step()
        warmed = time.perf_counter() - warmed
        reset_peak(self.device)
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            loss = step()
            wait(self.device)
            seconds.append(time.perf_counter() - started)
        median = statistics.median(seconds)
        memory = peak_bytes(self.device)
        return {
            **asdict(side),
            "batch": rows,
            "n": rounds,
            "first_step_seconds": round(warmed, 2),
            "step_seconds": round(median, 4),
            "least": round(min(seconds), 4),
            "most": round(max(seconds), 4),
            "clips_per_second": round(rows / median, 3),
            "tflop_per_clip": float(f"{planned['flops'] / rows / 1e12:.4g}"),
            "mfu": round(planned["flops"] / median / (self.peak * 1e12), 4),
            "gigabytes": round(memory / 1e9, 2),
            "planned_gigabytes": round(planned["bytes"] / 1e9, 2),
            "loss": round(loss, 4),
        }

    def profile(self, side: Side, rows: int, top: int = 30) -> str:
        """The kernels of one step, the longest first."""
        step = self._step(side, speech(rows, self.parts.llm.vocab_size))
        step()
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=kinds) as profile:
            step()
            wait(self.device)
        key = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        return profile.key_averages().table(sort_by=key, row_limit=top, max_name_column_width=80)

    def _planned(self, side: Side, rows: int) -> dict[str, float]:
        """FLOPs of a step, what is computed twice left out, and the most bytes of the device that it takes."""
        model: DivaConfig = make(self.config.model)
        rate = TOKENS_PER_SECOND if side.in_proportion else None
        model.adapter = replace(model.adapter, tokens_per_second=rate)
        model.encoder = replace(model.encoder, context=side.context)
        queries = model.adapter.num_virtual_tokens
        answer = side.objective.answer_tokens
        batch = Batch(rows, padded_samples(SECONDS[1]), TOKENS[1], queries, answer)
        once = replace(self._work_of(self.config, self.device), objective=side.objective)
        flops = count_flops(model, self.parts, batch, once)
        work = replace(once, recomputes=side.recomputes, compiles=side.compiled)
        run = Run(self.config)
        run.parts = self.parts
        lines = resident(run)
        stays = sum(lines.values()) - lines["gradients"]  # those are among what the step makes
        return {
            "flops": sum(flops.values()),
            "bytes": stays + max(count_bytes(model, self.parts, batch, work).values()),
        }

    def _step(self, side: Side, batch: SpeechBatch) -> Callable[[], float]:
        """One optimizer step of a side on a batch; returns the loss."""
        self._change(side)
        clip = self.config.optimizer.gradient_clip
        autocast = torch.bfloat16
        if side.published:
            ids = [row.tolist() for row in (self.model.prefix_ids, self.model.suffix_ids)]
            whisper, adapter, llm = self.model.encoder.whisper, self.model.adapter, self.model.llm
            published = PublishedTraining(whisper, adapter, llm, *ids, autocast)
            clips = [
                row[:count].numpy()
                for row, count in zip(batch.waveforms, batch.samples.tolist(), strict=True)
            ]
            texts = [
                row[:count]
                for row, count in zip(batch.token_ids.tolist(), batch.tokens.tolist(), strict=True)
            ]

            def losses(parts: Parts) -> tuple[Tensor, Tensor]:
                return published.losses(clips, texts, parts)
        else:
            variant = Variant(
                frames=side.context,
                teacher="trimmed",
                reuses_prefix=side.reuses_prefix,
                recomputes=side.recomputes,
                reads_in_proportion=side.in_proportion,
            )
            ours = OurTraining(self.model, autocast, tokens_per_second=TOKENS_PER_SECOND)
            if self.device.type == "cuda":
                batch = batch.pin_memory()
            after = self._answers(len(batch), side.objective.answer_tokens)

            def losses(parts: Parts) -> tuple[Tensor, Tensor]:
                return ours.losses(batch.to(self.device), variant, parts, side.objective, after)

        def step() -> float:
            parts = NoParts()
            return training_step(lambda: losses(parts), self.optimizer, clip, parts)

        return step

    def _answers(self, rows: int, tokens: int) -> Continuation | None:
        """A random answer of so many tokens for each row; None: the paper's one position."""
        if tokens == 0:
            return None
        generator = torch.Generator().manual_seed(rows)
        ids = torch.randint(self.parts.llm.vocab_size, (rows, tokens), generator=generator).tolist()
        suffixes = [self.model.suffix_ids.tolist()] * rows
        return Continuation.of(suffixes, [Answer(row, False) for row in ids]).to(self.device)

    def _change(self, side: Side) -> None:
        if side.float8 and "float8" not in self.changed:
            to_float8(self.model)
            self.changed.add("float8")
        if side.compiled and "compiled" not in self.changed:
            compile_layers(self.model)
            self.changed.add("compiled")
        assert self.changed == {name for name in _LASTING if getattr(side, name)}, "the order of SIDES"


def to_float8(model: DivaForConditionalGeneration) -> None:
    """The LLM's frozen layers multiply in float8, scaled by tensor. Not shipped: slower on an H100, with 8 clips."""
    from torchao.float8 import convert_to_float8_training

    convert_to_float8_training(model.llm.base_model.layers)


class NoParts(Parts):
    """Parts of a step that is timed as a whole, so that nothing waits for the device inside the step."""

    def _now(self) -> float:
        return 0.0


def speech(rows: int, vocabulary: int) -> SpeechBatch:
    """Noise of the lengths of one bucket and random transcripts, in the host's memory."""
    generator = torch.Generator().manual_seed(rows)
    padded = padded_samples(SECONDS[1])
    low, high = (int(seconds * SAMPLE_RATE) for seconds in SECONDS)
    samples = torch.randint(low, high + 1, (rows,), generator=generator)
    tokens = torch.randint(TOKENS[0], TOKENS[1] + 1, (rows,), generator=generator)
    waveforms = 0.1 * torch.randn(rows, padded, generator=generator)
    waveforms *= torch.arange(padded) < samples.unsqueeze(1)
    ids = torch.randint(vocabulary, (rows, TOKENS[1]), generator=generator)
    ids *= torch.arange(TOKENS[1]) < tokens.unsqueeze(1)
    return SpeechBatch(waveforms, samples, ids, tokens, torch.arange(rows), ["noise"] * rows, padded)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The table of gpu.md."""
    columns = ("side", "batch", "step_seconds", "clips_per_second", "tflop_per_clip", "mfu", "gigabytes",
               "planned_gigabytes")  # fmt: skip
    cells = [[str(row.get(column, row.get("failed", ""))) for column in columns] for row in rows]
    return "# Training step on a GPU\n\n" + markdown([c.replace("_", " ") for c in columns], cells)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experiment", default="diva_llama3_8b", metavar="NAME")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="NAME")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[8], help="clips a step, all in one micro-batch"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, nargs=3, metavar="N", help="of encoder, adapter and LLM")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense bfloat16")
    parser.add_argument("--profile", choices=SIDES, help="also profile a step of this side")
    parser.add_argument("--name", default="gpu", help="of the result files")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for them")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of diva.train's config")
    return parser.parse_args()


if __name__ == "__main__":
    main()
