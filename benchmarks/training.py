"""Training speed: diva against the published compute pattern.

`python -m benchmarks.training [--quick] [--data ROOT] [key=value ...]`, the keys being those of diva.train. Both
sides take optimizer steps on the same adapter between the same frozen parts, on the same clips, in turns. "Ours" is
what a run does by default on a corpus that it has not seen: what the frozen parts compute once is shared out over
the passes that the mini recipe makes.
"""

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.bench import Bench, parse_arguments
from benchmarks.measure import Parts, in_turn, markdown, summary, write_results
from benchmarks.step import Variant
from diva.audio import SAMPLE_RATE, WHISPER_SECONDS
from diva.cli import exit_codes, quieten

# Passes over its corpus that the mini recipe makes: 1,800 steps of 16 out of 5,220 clips.
PASSES = 1800 * 16 / 5220
KEPT, NOTHING_KEPT = Variant(), Variant(frames="bucket", teacher="trimmed")
TOLERANCE = 1e-3
SIDES = {"published": "published pattern", "first_pass": "ours, nothing kept", "kept": "ours, tables kept"}


@exit_codes
def main() -> None:
    arguments = parse_arguments("training", __doc__)
    quieten()
    bench = Bench.open(arguments.data, arguments.clips, arguments.batch, arguments.overrides)
    losses = bench.parity()
    check_losses(losses)
    figures = {"losses": losses, **compare(bench, arguments.rounds)}
    text = report(figures)
    write_results("training", figures, text, arguments.into)
    Console(stderr=True).print(text, markup=False, highlight=False)
    speed = figures["clips_per_second"]
    print(
        f"training speed-up {speed['ours'] / speed['published']:.2f}"
        f" (clips/s ours {speed['ours']:.2f}, published pattern {speed['published']:.2f})"
    )


def check_losses(losses: Mapping[str, list[float]]) -> None:
    """A comparison of different losses would say nothing."""
    difference = max(abs(a - b) for a, b in zip(losses["ours"], losses["published"], strict=True))
    if difference > TOLERANCE:
        raise RuntimeError(f"the two sides disagree by {difference:.1e} in float32: {losses}")


def compare(bench: Bench, rounds: int) -> dict[str, Any]:
    """Steps of the published pattern and of ours in turn: seconds, parts, memory, clips a second."""
    watches: dict[str, list[Parts]] = {side: [] for side in SIDES}

    def watch(side: str) -> Parts:
        watches[side].append(Parts(bench.ours.model.device, memory=not watches[side]))
        return watches[side][-1]

    seconds = in_turn(
        {
            "published": lambda n: bench.published_step(bench.batch(n), watch("published")),
            "first_pass": lambda n: bench.our_step(bench.batch(n), NOTHING_KEPT, watch("first_pass")),
            "kept": lambda n: bench.our_step(bench.batch(n), KEPT, watch("kept")),
        },
        rounds,
    )
    size = len(bench.batches[0])
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    once = sum(bench.seconds_once.values())
    durations = bench.data.train.durations
    return {
        "queries": bench.ours.model.config.adapter.num_query_tokens,
        "batch": size,
        "clips": len(bench.data.train),
        "median_clip_seconds": round(float(np.median(durations)), 2),
        "passes": round(PASSES, 2),
        "step_seconds": {side: summary(values) for side, values in seconds.items()},
        "once_seconds_per_clip": {name: round(value, 4) for name, value in bench.seconds_once.items()},
        "clips_per_second": {
            "published": round(size / medians["published"], 3),
            "first_pass": round(size / medians["first_pass"], 3),
            "kept": round(size / medians["kept"], 3),
            "ours": round(1 / (medians["kept"] / size + once / PASSES), 3),
        },
        "padding": padding(bench),
        "parts": {side: by_part(*found) for side, found in watches.items()},
    }


def by_part(warm_up: Parts, *timed: Parts) -> dict[str, dict[str, float]]:
    """Median seconds of each part, and the most memory, in MB, that it took beyond what the step began with."""
    return {
        name: {
            "seconds": round(statistics.median(parts.seconds[name] for parts in timed), 4),
            "megabytes": round(most / 1e6),
        }
        for name, most in warm_up.bytes.items()
    }


def padding(bench: Bench) -> dict[str, float]:
    """Which share of the audio is padding, in our batches and in windows of 30 s."""
    samples = sum(int(batch.samples.sum()) for batch in bench.batches)
    ours = sum(batch.waveforms.numel() for batch in bench.batches)
    windows = sum(len(batch) for batch in bench.batches) * WHISPER_SECONDS * SAMPLE_RATE
    return {"ours": round(1 - samples / ours, 3), "published": round(1 - samples / windows, 3)}


def report(figures: dict[str, Any]) -> str:
    """The tables of training.md."""
    size, steps, speed = figures["batch"], figures["step_seconds"], figures["clips_per_second"]
    rows = [
        (
            name,
            steps[side]["n"],
            steps[side]["median"],
            steps[side]["least"],
            steps[side]["most"],
            speed[side],
        )
        for side, name in SIDES.items()
    ]
    names = list(dict.fromkeys(part for side in SIDES for part in figures["parts"][side]))
    cells = [[name, *(_cell(figures["parts"][side].get(name)) for side in SIDES)] for name in names]
    once = ", ".join(f"{name} {value:.3f}" for name, value in figures["once_seconds_per_clip"].items())
    return "\n".join(
        (
            f"# Training step\n\n{size} clips a step of {figures['median_clip_seconds']} s in the median,"
            f" {figures['queries']} virtual tokens, both losses.\n",
            markdown(("", "n", "step, s", "least", "most", "clips/s"), rows),
            f"Computed once, seconds a clip: {once}. Shared out over the {figures['passes']} passes of the mini"
            f" recipe, ours trains on {speed['ours']:.2f} clips a second, the published pattern on"
            f" {speed['published']:.2f}: {speed['ours'] / speed['published']:.2f} times as fast. Of the audio,"
            f" {figures['padding']['ours']:.0%} is padding here and {figures['padding']['published']:.0%} there.\n",
            "## Where the time goes\n\nMedian seconds of each part, and the most memory that it took beyond what"
            " the step began with.\n",
            markdown(("part", *SIDES.values()), cells),
        )
    )


def _cell(part: dict[str, float] | None) -> str:
    return f"{part['seconds']:.3f} s, {part['megabytes']:.0f} MB" if part else ""


if __name__ == "__main__":
    main()
