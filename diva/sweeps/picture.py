"""A picture of a sweep: what was varied against what came out, and the curves of all runs."""

import math
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyarrow.csv
from matplotlib.axes import Axes

from diva.plots.curves import series
from diva.sweeps.table import Group, Results

_FIGURE = "val/kl"
_LINES = {"finished": "-", "pruned": "--", "failed": ":", "unfinished": "-."}
_MOST_COLORS = 10
_DECADES = 1.5  # a numeric key that spans more gets a logarithmic axis


def draw(results: Results, path: Path) -> None:
    """Write the picture to `path`: the figure by what was varied, training losses, the figure over steps."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
    colors = _colors(results)
    if len(results.varied) > 2:
        _parallel_coordinates(left, results)
    else:
        _scatter(left, results, colors)
    left.set_title(f"{_FIGURE} by what was varied")
    for axes, column in ((middle, "train/loss"), (right, _FIGURE)):
        _curves(axes, results, column, colors)
        axes.set(xlabel="optimizer step", title=column)
        axes.grid(alpha=0.3)
    handles, labels = middle.get_legend_handles_labels()
    if labels and len(results.groups) <= _MOST_COLORS:
        middle.legend(handles, labels, fontsize="x-small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _colors(results: Results) -> list:
    """One a group: told apart where there are few, from good to bad where there are many."""
    if len(results.groups) <= _MOST_COLORS:
        return [f"C{index}" for index in range(len(results.groups))]
    means = [_mean(group) for group in results.groups]
    known = [mean for mean in means if mean is not None]
    return [_shade(mean, known) for mean in means]


def _mean(group: Group) -> float | None:
    values = group.figure(_FIGURE)
    return statistics.fmean(values) if values else None


def _shade(mean: float | None, known: list[float]):
    """From dark (best) to light; grey for what has no figure."""
    if mean is None:
        return "lightgrey"
    low, high = min(known), max(known)
    return plt.get_cmap("viridis")((mean - low) / (high - low) if high > low else 0.0)


def _scatter(axes: Axes, results: Results, colors: list) -> None:
    """Every finished run a point, every group's mean a bar; the second varied key has the colours."""
    keys = [group.values[0] if group.values else "all runs" for group in results.groups]
    numbers = numeric(keys)
    places = numbers or [float(list(dict.fromkeys(keys)).index(key)) for key in keys]
    seconds = [group.values[1] if len(group.values) > 1 else "" for group in results.groups]
    shades = {text: f"C{index % _MOST_COLORS}" for index, text in enumerate(dict.fromkeys(seconds))}
    for group, place, second, color in zip(results.groups, places, seconds, colors, strict=True):
        values = group.figure(_FIGURE)
        if not values:
            continue
        color = shades[second] if second else color
        axes.plot([place] * len(values), values, ".", color=color, alpha=0.6)
        axes.plot([place], [statistics.fmean(values)], "_", color=color, markersize=16, label=second or None)
    if numbers:
        axes.set_xscale("log" if _logarithmic(numbers) else "linear")
    else:
        axes.set_xlim(-0.5, len(set(keys)) - 0.5)
        axes.set_xticks(range(len(set(keys))), list(dict.fromkeys(keys)), rotation=20, ha="right")
    axes.set(xlabel=results.varied[0] if results.varied else "", ylabel=_FIGURE)
    axes.grid(alpha=0.3)
    if len(results.varied) > 1 and len(shades) <= _MOST_COLORS:
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axes.legend(unique.values(), unique.keys(), title=results.varied[1], fontsize="x-small")


def _parallel_coordinates(axes: Axes, results: Results) -> None:
    """A line a group with a figure: through the value of every varied key to the figure, dark where it is good."""
    groups = [group for group in results.groups if group.figure(_FIGURE)]
    means = [statistics.fmean(group.figure(_FIGURE)) for group in groups]
    columns = [[group.values[index] for group in groups] for index in range(len(results.varied))]
    scaled = [_scaled(axes, place, column) for place, column in enumerate(columns)]
    scaled.append(_scaled(axes, len(columns), [f"{mean:.4g}" for mean in means]))
    for index, mean in enumerate(means):
        axes.plot([column[index] for column in scaled], color=_shade(mean, means), alpha=0.8)
    axes.set_xticks(range(len(scaled)), [*results.varied, _FIGURE], rotation=15, ha="right", fontsize="small")
    axes.set(yticks=[], ylim=(-0.05, 1.05))


def _scaled(axes: Axes, place: int, texts: list[str]) -> list[float]:
    """Values of one axis of parallel coordinates on 0..1, its ends written beside it."""
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
        axes.annotate(f" {text[:12]}", (place, at), fontsize="xx-small")
    axes.axvline(place, color="grey", linewidth=0.8)
    return scaled


def _curves(axes: Axes, results: Results, column: str, colors: list) -> None:
    for group, color in zip(results.groups, colors, strict=True):
        label = " ".join(group.values) or None
        for run in group.runs:
            file = run.folder / "metrics.csv"
            if file.is_file():
                steps, values = series(pyarrow.csv.read_csv(file), column)
                style = _LINES[run.outcome.status]
                axes.plot(
                    steps,
                    values,
                    style,
                    color=color,
                    linewidth=1,
                    alpha=0.8,
                    label=label,
                    marker=_marker(steps),
                )
                label = None  # one entry a group


def _marker(steps: list[int]) -> str:
    return "." if len(steps) < 20 else ""


def _logarithmic(numbers: list[float]) -> bool:
    return min(numbers) > 0 and math.log10(max(numbers) / min(numbers)) > _DECADES


def numeric(texts: list[str]) -> list[float]:
    """The texts as numbers; empty unless all of them are finite ones."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return []
    return numbers if all(math.isfinite(number) for number in numbers) else []
