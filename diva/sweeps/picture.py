"""A picture of a sweep: the metric over the varied keys, and the curves of all runs."""

import math
import statistics
import textwrap
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow.csv
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diva.plots import style
from diva.plots.curves import series
from diva.sweeps.table import Group, Results
from diva.training.measures import lower_is_better

METRIC = "val/kl"
_LINES: dict[str, Any] = {"finished": "-", "pruned": "--", "failed": ":", "unfinished": "-."}
_MOST_COLORS = 6  # of lines on white
_MISSING = "lightgrey"
_DECADES = 1.5  # a numeric key that spans more gets a logarithmic axis


def draw(results: Results, path: Path, metric: str = METRIC) -> None:
    """Write the picture to `path`."""
    path.write_bytes(style.png(picture(results, metric)))


@style.applied()
def picture(results: Results, metric: str = METRIC) -> Figure:
    """A metric of validation over the varied keys; below it, training loss and the metric over steps; legends right."""
    figure = Figure(figsize=(style.WIDTH, 5.6))
    places: list[Any] = [["varied", "varied", "legend"], ["loss", "measure", "runs"]]
    axes = figure.subplot_mosaic(places, width_ratios=(1.0, 1.0, 0.62))
    colors = _colors(results, metric)
    if len(results.varied) > 2:
        _parallel_coordinates(axes["varied"], results, metric)
    else:
        _scatter(axes["varied"], results, metric, colors)
    axes["varied"].set_title(f"{style.named(metric)}, by what was varied")
    for name, column in (("loss", "train/loss"), ("measure", metric)):
        _curves(axes[name], results, column, colors)
        axes[name].set(xlabel="optimizer step", title=textwrap.fill(style.named(column), 27))
    if axes["measure"].lines and lower_is_better(metric):
        style.logarithmic(axes["measure"])
    if len(results.varied) == 2:
        _legend(axes["legend"], results.varied[1], _named(axes["varied"]))
    few = len(results.groups) <= _MOST_COLORS
    groups = _named(axes["loss"]) if few and results.varied else {}
    states = {run.outcome.status for group in results.groups for run in group.runs}
    lines = {
        state: Line2D([], [], linestyle=line, color="black", linewidth=1)
        for state, line in _LINES.items()
        if state in states
    }
    title = " ".join(results.varied) if few else f"dark: best {style.named(metric)}"
    _legend(axes["runs"], title, groups | (lines if len(lines) > 1 else {}))
    for name in ("legend", "runs"):
        axes[name].set_axis_off()
    return figure


def _named(axes: Axes) -> dict[str, Artist]:
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def _legend(place: Axes, title: str, entries: Mapping[str, Artist]) -> None:
    """Fill a place with a legend."""
    title = textwrap.fill(title, 26)
    place.legend(list(entries.values()), list(entries), title=title, loc="center left", alignment="left")


def _colors(results: Results, metric: str) -> list:
    """A colour for each group: distinct colours for few groups, a scale from good to bad for many."""
    if len(results.groups) <= _MOST_COLORS:
        return list(style.COLOURS[: len(results.groups)])
    means = [_mean(group, metric) for group in results.groups]
    known = [mean for mean in means if mean is not None]
    return [_shade(mean, known, metric) for mean in means]


def _mean(group: Group, metric: str) -> float | None:
    values = group.figure(metric)
    return statistics.fmean(values) if values else None


def _shade(mean: float | None, known: list[float], metric: str):
    """From dark (best) to light; grey for a group without the metric."""
    if mean is None:
        return _MISSING
    best, worst = (min(known), max(known)) if lower_is_better(metric) else (max(known), min(known))
    return colormaps["viridis"](0.9 * (mean - best) / (worst - best) if worst != best else 0.0)


def _scatter(axes: Axes, results: Results, metric: str, colors: list) -> None:
    """A point for each finished run, a bar for each group's mean, a colour for each value of the second varied key."""
    keys = [group.values[0] if group.values else "all runs" for group in results.groups]
    numbers = numeric(keys)
    places = numbers or [float(list(dict.fromkeys(keys)).index(key)) for key in keys]
    seconds = [group.values[1] if len(group.values) > 1 else "" for group in results.groups]
    shades = dict(zip(dict.fromkeys(seconds), cycle(style.COLOURS[:_MOST_COLORS]), strict=False))
    for group, place, second, color in zip(results.groups, places, seconds, colors, strict=True):
        values = group.figure(metric)
        if not values:
            continue
        color = shades[second] if second else color
        axes.plot([place] * len(values), values, "o", color=color, alpha=0.6)
        mean = [statistics.fmean(values)]
        axes.plot([place], mean, "_", color=color, markersize=18, markeredgewidth=2, label=second or None)
    if numbers:
        axes.set_xscale("log" if _logarithmic(numbers) else "linear")
    else:
        axes.set_xlim(-0.5, len(set(keys)) - 0.5)
        axes.set_xticks(range(len(set(keys))), list(dict.fromkeys(keys)), rotation=20, ha="right")
    axes.set_xlabel(results.varied[0] if results.varied else "")


def _parallel_coordinates(axes: Axes, results: Results, metric: str) -> None:
    """A line for each group with the metric, from the value of each varied key to the metric; dark lines are good."""
    groups = [group for group in results.groups if group.figure(metric)]
    means = [statistics.fmean(group.figure(metric)) for group in groups]
    columns = [[group.values[index] for group in groups] for index in range(len(results.varied))]
    scaled = [_scaled(axes, place, column) for place, column in enumerate(columns)]
    scaled.append(_scaled(axes, len(columns), [f"{mean:.4g}" for mean in means]))
    for index, mean in enumerate(means):
        axes.plot([column[index] for column in scaled], color=_shade(mean, means, metric), alpha=0.8)
    names = [name.replace(".", ".\n", 1) for name in results.varied]
    axes.set_xticks(range(len(scaled)), [*names, textwrap.fill(style.named(metric), 16)])
    axes.set(yticks=[], ylim=(-0.05, 1.05))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _scaled(axes: Axes, place: int, texts: list[str]) -> list[float]:
    """Values of one axis of parallel coordinates, scaled to 0..1; writes the ends of the axis beside it."""
    distinct = list(dict.fromkeys(texts))
    numbers = numeric(texts)
    if numbers and _logarithmic(numbers):
        numbers = [math.log(number) for number in numbers]
    places = numbers or [float(distinct.index(text)) for text in texts]
    low, high = min(places, default=0.0), max(places, default=0.0)
    scaled = [(value - low) / (high - low) if high > low else 0.5 for value in places]
    shown = {
        round(at, 3): text for at, text in zip(scaled, texts, strict=True) if not numbers or at in (0.0, 1.0)
    }
    for at, text in shown.items():
        axes.annotate(f" {text[:12]}", (place, at))
    axes.axvline(place, color="grey", linewidth=0.8)
    return scaled


def _curves(axes: Axes, results: Results, column: str, colors: list) -> None:
    for group, color in zip(results.groups, colors, strict=True):
        label = " ".join(group.values) or None
        for run in group.runs:
            file = run.folder / "metrics.csv"
            if file.is_file():
                steps, values = series(pyarrow.csv.read_csv(file), column)
                line, marker = _LINES[run.outcome.status], style.marker(steps)
                axes.plot(
                    steps, values, line, color=color, linewidth=1, alpha=0.8, label=label, marker=marker
                )
                label = None  # one entry for each group


def _logarithmic(numbers: list[float]) -> bool:
    return min(numbers) > 0 and math.log10(max(numbers) / min(numbers)) > _DECADES


def numeric(texts: list[str]) -> list[float]:
    """The texts as numbers; empty unless all of them are finite numbers."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return []
    return numbers if all(math.isfinite(number) for number in numbers) else []
