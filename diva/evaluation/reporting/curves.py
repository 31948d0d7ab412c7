"""A picture of `task=robustness`: the metric over the SNR, and behind each channel, of one or several systems.

`python -m diva.evaluation.reporting.curves FOLDER ... --into FILE.png` draws all results below the folders.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diva.command import exit_codes
from diva.errors import UserError
from diva.evaluation.conditions import CLEAN, COLUMN, is_snr
from diva.evaluation.reporting.tables import ROWS, Result, check_comparable, common_metric
from diva.evaluation.results import RESULTS
from diva.plots import style

PICTURE = "conditions.png"
# Of the space of a condition, which its systems share: then no interval hides another.
_SPREAD_OF_NOISES, _SPREAD_OF_CHANNELS = 0.2, 0.5


def has_conditions(result: Result) -> bool:
    """Whether the groups of a result are conditions."""
    return result.values["config"]["task"].get("group") == COLUMN


def draw(results: Sequence[Result]) -> bytes:
    """A PNG of results of one task with conditions. Raises UserError if they cannot be compared."""
    check_comparable(results)
    return style.png(picture(results))


@style.applied()
def picture(results: Sequence[Result]) -> Figure:
    """On the left the metric over the SNR, on the right behind each channel; bars are 95% intervals."""
    metric = common_metric(results)
    found = [result.groups(metric) for result in results]
    conditions = list(dict.fromkeys(condition for groups in found for condition in groups))
    noises = [CLEAN, *filter(is_snr, conditions)]
    channels = [condition for condition in conditions if condition not in noises]
    figure = Figure(figsize=(style.WIDTH, 3.2))
    axes = figure.subplots(1, 2 if channels else 1, sharey=True, squeeze=False)[0]
    looks = _looks(results)
    for number, (groups, look) in enumerate(zip(found, looks, strict=True)):
        place = (number - (len(found) - 1) / 2) / len(found)
        _points(axes[0], noises, groups, place * _SPREAD_OF_NOISES, look)
        if channels:
            _points(axes[1], channels, groups, place * _SPREAD_OF_CHANNELS, look | {"linestyle": "none"})
    axes[0].set(xlabel="signal-to-noise ratio over the speech", ylabel=style.named(metric))
    _ticks(axes[0], noises)
    if channels:
        axes[1].set(xlabel="channel")
        _ticks(axes[1], channels)
    axes[0].set_ylim(bottom=0)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(results))
    )
    return figure


def _looks(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Label, colour and line of each system; those that are not under test are grey."""
    systems, references = 0, 0
    looks = []
    labels = [result.label for result in results]
    for result in results:
        label = style.named(result.label)
        if labels.count(result.label) > 1:
            label += f", {result.values['system']}"
        if result.values["role"] in ROWS:
            colour, line = style.GREYS[references % 2], style.LINES[1 + references % 3]
            references += 1
        else:
            colour, line = style.COLOURS[systems % 6], style.LINES[0]
            systems += 1
        looks.append({"label": label, "color": colour, "linestyle": line})
    return looks


def _points(
    axes: Axes,
    conditions: Sequence[str],
    groups: Mapping[str, Mapping[str, Any]],
    shift: float,
    look: Mapping[str, Any],
) -> None:
    """The value of each condition with its interval, `shift` to the right of the condition's tick."""
    places, values, lows, highs = [], [], [], []
    for place, condition in enumerate(conditions):
        figure = groups.get(condition, {})
        if figure.get("value") is None:
            continue
        value = figure["value"]
        low, high = figure["wilson"] or figure["interval"] or (value, value)
        places.append(place + shift)
        values.append(value)
        # A bootstrap's interval need not hold the value itself.
        lows.append(max(value - low, 0.0))
        highs.append(max(high - value, 0.0))
    axes.errorbar(places, values, yerr=[lows, highs], marker="o", capsize=2, elinewidth=0.8, **look)


def _ticks(axes: Axes, conditions: Sequence[str]) -> None:
    axes.set_xticks(range(len(conditions)), [style.named(condition) for condition in conditions])
    axes.set_xlim(-0.5, len(conditions) - 0.5)
    axes.grid(visible=False, axis="x")


@exit_codes
def main() -> None:
    """Draw all results with conditions below the folders."""
    parser = argparse.ArgumentParser(
        prog="python -m diva.evaluation.reporting.curves", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders that hold results.json, at any depth")
    parser.add_argument("--into", type=Path, required=True, help="the PNG")
    arguments = parser.parse_args()
    found = sorted({file.parent for folder in arguments.folders for file in folder.rglob(RESULTS)})
    results = [result for result in map(Result.read, found) if has_conditions(result)]
    if not results:
        raise UserError(
            f"there is no {RESULTS} of task=robustness below {', '.join(map(str, arguments.folders))}"
        )
    arguments.into.write_bytes(draw(results))


if __name__ == "__main__":
    main()
