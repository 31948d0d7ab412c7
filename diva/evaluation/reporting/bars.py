"""Bars with intervals, drawn to the same bytes every time."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from diva.evaluation.intervals import Interval

COLOURS = {"authors": "#7b93ad", "ours": "#d9822b", "given": "#c9c9c9"}
_COLUMNS = 3
_TITLE_WIDTH = 50  # characters
_INCHES_PER_BAR, _INCHES_AROUND = 0.24, 0.75


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    interval: Interval | None  # 95%
    side: str = "ours"  # whose: a key of COLOURS
    points: tuple[float, ...] = ()  # what the value is the mean of, such as seeds


@dataclass(frozen=True)
class Panel:
    title: str
    bars: Sequence[Bar]  # from top to bottom


def draw(panels: Sequence[Panel]) -> bytes:
    """A PNG with a panel each, up to three side by side. The same panels give the same bytes with one matplotlib."""
    columns = min(_COLUMNS, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [_INCHES_AROUND + _INCHES_PER_BAR * max(len(panel.bars) for panel in row) for row in rows]
    # The user's own matplotlibrc must not change a committed picture; its DejaVu Sans comes with matplotlib.
    with mpl.rc_context(mpl.rcParamsDefault):
        figure = Figure(
            figsize=(5.0 * columns, sum(heights)),
            dpi=100,
            layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.05),
        )
        axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
        for index, cell in enumerate(axes.flat):
            if index < len(panels):
                _panel(cell, panels[index])
            else:
                cell.set_axis_off()
        file = io.BytesIO()
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def _panel(axes: Axes, panel: Panel) -> None:
    places = range(len(panel.bars))
    values = [bar.value for bar in panel.bars]
    axes.barh(places, values, color=[COLOURS[bar.side] for bar in panel.bars], height=0.72)
    sure = [
        (place, bar.value, bar.interval) for place, bar in enumerate(panel.bars) if bar.interval is not None
    ]
    if sure:
        # A bootstrap's interval need not hold the value itself.
        reach = [
            [max(v - low, 0.0) for _, v, (low, _) in sure],
            [max(high - v, 0.0) for _, v, (_, high) in sure],
        ]
        at = [place for place, *_ in sure]
        axes.errorbar(
            [v for _, v, _ in sure], at, xerr=reach, fmt="none", ecolor="black", capsize=2, linewidth=0.9
        )
    points = [(point, place) for place, bar in enumerate(panel.bars) for point in bar.points]
    if points:
        axes.plot(*zip(*points, strict=True), "o", color="white", markeredgecolor="black", markersize=3.5)
    axes.set_yticks(places, [bar.label for bar in panel.bars], fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=min([0.0, *(low for _, _, (low, _) in sure)]))
    axes.set_title(textwrap.fill(panel.title, _TITLE_WIDTH), fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
