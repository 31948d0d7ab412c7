"""Training speed: diva compared with the published compute pattern.

`python -m benchmarks.training [--quick] [--data ROOT] [key=value ...]`, the keys being those of diva.train. Both
sides take optimizer steps on the same adapter between the same frozen parts, on the same clips, in turns. "Ours" is
what a run does by default on a corpus that it has not seen: what the frozen parts compute once is shared out over
the passes that the mini recipe makes. "Ours, 30 s windows" computes what the published pattern does, with every saving
that leaves it so; what lies between it and "ours" changes what the model computes. The mini recipe takes most of its
steps for aligning alone, and the others with both losses: "shipped" is the mean over them.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.bench import Bench, parse_arguments
from benchmarks.measure import Parts, in_turn, markdown, summary, write_results
from diva.audio.frames import SAMPLE_RATE, WHISPER_SECONDS
from diva.command import exit_codes, quieten
from diva.config import make
from diva.plan import compose
from diva.planning.lengths import clip_lengths

TOLERANCE = 1e-3
# And what each side computes once, whatever the number of steps.
SIDES = {
    "published": ("published pattern", ()),
    "first_pass": ("ours, nothing kept", ("decode",)),
    "full_windows": ("ours, 30 s windows", ("decode", "teacher")),
    "ours": ("ours", ("decode", "teacher", "encoder")),
    "aligning": ("ours, aligning alone", ("decode", "encoder")),
}
SHIPPED = "shipped: aligned first, then both losses"


@exit_codes
def main() -> None:
    arguments = parse_arguments("training", __doc__)
    quieten()
    bench = Bench.open(arguments.data, arguments.clips, arguments.batch, arguments.overrides)
    losses = bench.parity()
    check_losses(losses)
    figures = {"losses": losses, **compare(bench, arguments.rounds, recipe(arguments.data))}
    text = report(figures)
    write_results("training", figures, text, arguments.into)
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
    speed = figures["clips_per_second"]
    print(f"with both losses in every step {speed['ours'] / speed['published']:.2f}")
    print(
        f"training speed-up {speed['shipped'] / speed['published']:.2f}"
        f" (clips/s ours {speed['shipped']:.2f}, published pattern {speed['published']:.2f})"
    )


@dataclass(frozen=True)
class Recipe:
    """What of experiment=mini decides about its speed."""

    passes: float  # over its corpus
    aligning: float  # share of its steps in which nothing passes through the LLM


def recipe(root: Path) -> Recipe:
    """The mini recipe, its corpus below `root`."""
    config = compose(["experiment=mini", f"data.root={root}"])
    steps = config.max_steps
    passes = steps * config.data.batch_size / clip_lengths(config.data).clips
    return Recipe(passes, 1 - make(config.objective).distilled_steps(steps) / steps)


def check_losses(losses: Mapping[str, list[float]]) -> None:
    """Check that both sides have the same losses; otherwise a comparison of their speed means nothing."""
    difference = max(abs(a - b) for a, b in zip(losses["ours"], losses["published"], strict=True))
    if difference > TOLERANCE:
        raise RuntimeError(f"the two sides disagree by {difference:.1e} in float32: {losses}")


def compare(bench: Bench, rounds: int, recipe: Recipe) -> dict[str, Any]:
    """Steps of the published pattern and of ours in turn: seconds, parts, memory, clips a second."""
    watches: dict[str, list[Parts]] = {side: [] for side in SIDES}

    def watch(side: str) -> Parts:
        watches[side].append(Parts(bench.ours.model.device, memory=not watches[side]))
        return watches[side][-1]

    variants = {
        "first_pass": replace(bench.kept, frames=bench.context, teacher="trimmed"),
        "full_windows": replace(bench.kept, frames="full"),
        "ours": bench.kept,
        "aligning": replace(bench.kept, distills=False),
    }
    published = {"published": lambda n: bench.published_step(bench.batch(n), watch("published"))}
    ours = {
        side: lambda n, side=side, variant=variant: bench.our_step(bench.batch(n), variant, watch(side))
        for side, variant in variants.items()
    }
    seconds = in_turn(published | ours, rounds)
    size = len(bench.batches[0])
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    once = {
        side: sum(bench.seconds_once.get(name, 0.0) for name in names) / recipe.passes
        for side, (_, names) in SIDES.items()
    }
    speed = {side: 1 / (medians[side] / size + once[side]) for side in SIDES}
    step = recipe.aligning * medians["aligning"] + (1 - recipe.aligning) * medians["ours"]
    speed["shipped"] = 1 / (step / size + once["ours"])
    return {
        "queries": bench.ours.model.config.adapter.num_query_tokens,
        "batch": size,
        "clips": len(bench.data.train),
        "median_clip_seconds": round(float(np.median(bench.data.train.durations)), 2),
        "passes": round(recipe.passes, 2),
        "aligning": round(recipe.aligning, 4),
        "step_seconds": {side: summary(values) for side, values in seconds.items()},
        "once_seconds_per_clip": {name: round(value, 4) for name, value in bench.seconds_once.items()},
        "clips_per_second": {side: round(value, 3) for side, value in speed.items()},
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
    steps, speed = figures["step_seconds"], figures["clips_per_second"]
    rows = [
        (name, *steps[side].values(), speed[side], speed[side] / speed["published"])
        for side, (name, _) in SIDES.items()
    ]
    rows.append((SHIPPED, *[""] * 4, speed["shipped"], speed["shipped"] / speed["published"]))
    parts = list(dict.fromkeys(part for side in SIDES for part in figures["parts"][side]))
    cells = [[part, *(_cell(figures["parts"][side].get(part)) for side in SIDES)] for part in parts]
    once = ", ".join(f"{name} {value:.3f}" for name, value in figures["once_seconds_per_clip"].items())
    return "\n".join(
        (
            f"# Training step\n\n{figures['batch']} clips a step of {figures['median_clip_seconds']} s in the median,"
            f" {figures['queries']} virtual tokens, both losses unless said otherwise.\n",
            markdown(("", "n", "step, s", "least", "most", "clips/s", "speed-up"), rows),
            f"What a side computes once (seconds a clip: {once}) is in its clips a second, shared out over the"
            f" {figures['passes']} passes of the mini recipe, {figures['aligning']:.0%} of whose steps align alone."
            f" {_split(speed)} Of the audio,"
            f" {figures['padding']['ours']:.0%} is padding here and {figures['padding']['published']:.0%} there.\n",
            "## Where the time goes\n\nMedian seconds of each part, and the most memory that it took beyond what"
            " the step began with.\n",
            markdown(("part", *(name for name, _ in SIDES.values())), cells),
        )
    )


def _split(speed: Mapping[str, float]) -> str:
    """How much of the speed-up leaves the loss as it is, and how much does not."""
    sides = ("shipped", "ours", "full_windows")
    in_all, both, keeps = (speed[side] / speed["published"] for side in sides)
    return (
        f"What is shipped is {in_all:.2f} times as fast as the published pattern: {keeps:.2f} times by savings that"
        f" keep the loss, {both / keeps:.2f} times that by hearing each clip on its own length, with a second of"
        " silence, and not in a window of 30 s (its frames are fewer, and few enough to be kept), and"
        f" {in_all / both:.2f} times that by aligning first."
    )


def _cell(part: dict[str, float] | None) -> str:
    return f"{part['seconds']:.3f} s, {part['megabytes']:.0f} MB" if part else ""


if __name__ == "__main__":
    main()
