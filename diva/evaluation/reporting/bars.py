"""Bar plots with intervals; the same data give the same bytes."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from diva.evaluation.intervals import Interval
from diva.plots import style

# Inches.
_PER_ROW, _PER_LINE = 2.3, 0.24
_NARROW, _WIDE = 0.075, 0.3  # a bar
_LETTER, _BOLD = 0.066, 0.088
_AROUND = 0.6  # a panel's own axis and margins
_KEY = 0.5  # a colour in the legend, and the space around it
# Maximum lines of text.
_LABEL_LINES, _TITLE_LINES = 3, 2


@dataclass(frozen=True)
class Bar:
    system: str  # as the legend names it
    value: float
    interval: Interval | None  # 95%
    reference: bool = False  # not a system under test: a ceiling, a cascade, a rule
    points: tuple[float, ...] = ()  # the values whose mean it is, such as one for each seed


@dataclass(frozen=True)
class Group:
    """Bars side by side, such as those of one accent."""

    label: str
    bars: Sequence[Bar]  # from left to right


@dataclass(frozen=True)
class Panel:
    """One measure."""

    title: str
    groups: Sequence[Group]

    @property
    def systems(self) -> list[str]:
        """The systems of all groups. A system has the same place in every group, even if its bar is missing there."""
        return _systems(self.groups)


def _systems(groups: Iterable[Group]) -> list[str]:
    """In the order of the group that has most of them."""
    fullest = sorted(groups, key=lambda group: -len(group.bars))
    return list(dict.fromkeys(bar.system for group in fullest for bar in group.bars))


def draw(panels: Sequence[Panel]) -> bytes:
    """A PNG of the panels. The same panels give the same bytes with one matplotlib."""
    return style.png(picture(panels))


@style.applied()
def picture(panels: Sequence[Panel]) -> Figure:
    """Rows of panels. Those that show the same systems share a legend, beside a row that has room for it, or above."""
    strips: list[_Legend | _Row] = []
    for block in _blocks(panels):
        legend = _Legend(_colours(block))
        rows = [_Row(row, _widths(row), legend) for row in _rows(block)]
        beside = next((row for row in rows if row.room > legend.width), None)
        if beside is not None:
            beside.has_legend = True
        strips += [*([] if beside else [legend]), *rows]
    figure = Figure(figsize=(style.WIDTH, sum(strip.height for strip in strips)))
    ratios = [strip.height for strip in strips]
    cells = figure.subfigures(len(strips), 1, squeeze=False, height_ratios=ratios).flat
    for cell, strip in zip(cells, strips, strict=True):
        strip.draw(cell)
    return figure


def _blocks(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Groups of successive panels that share a legend: of two, one has no system that the other lacks."""
    blocks: list[list[Panel]] = []
    for panel in panels:
        known = {system for of in blocks[-1] for system in of.systems} if blocks else set()
        if known & set(panel.systems) in (known, set(panel.systems)) and known:
            blocks[-1].append(panel)
        else:
            blocks.append([panel])
    return blocks


def _colours(block: Sequence[Panel]) -> dict[str, str]:
    """System -> its colour; references are grey."""
    groups = [group for panel in block for group in panel.groups]
    references = {bar.system for group in groups for bar in group.bars if bar.reference}
    palettes = {True: cycle(style.GREYS), False: cycle(style.COLOURS)}
    return {name: next(palettes[name in references]) for name in _systems(groups)}


def _rows(block: Sequence[Panel]) -> list[list[Panel]]:
    """Panels side by side, in as few rows as possible, each with about the same width."""
    panels = [part for panel in block for part in _parts(panel)]
    rows = _packed(panels, style.WIDTH)
    rooms = (tenths / 10 for tenths in range(1, int(10 * style.WIDTH)))
    return next((found for room in rooms if len(found := _packed(panels, room)) == len(rows)), rows)


def _packed(panels: Sequence[Panel], room: float) -> list[list[Panel]]:
    rows: list[list[Panel]] = [[]]
    for panel in panels:
        if rows[-1] and sum(map(_narrowest, [*rows[-1], panel])) > room:
            rows.append([])
        rows[-1].append(panel)
    return rows


def _parts(panel: Panel) -> list[Panel]:
    """The panel, split into several if its groups need more than one row."""
    fit = max(1, int((style.WIDTH - _AROUND) / _per_group(panel, _NARROW)))
    starts = range(0, len(panel.groups), fit)
    return [Panel(panel.title, panel.groups[start : start + fit]) for start in starts]


def _per_group(panel: Panel, bar: float) -> float:
    """Inches of a group with bars of this width; its label has to fit, too."""
    labels = [group.label for group in panel.groups]
    letters = max(_letters(label, _LABEL_LINES) for label in labels)
    return max(bar * (len(panel.systems) + 1), _LETTER * letters)


def _letters(text: str, lines: int) -> int:
    """Width in letters of a text that is wrapped between words into `lines` lines."""
    return max(-(-len(text) // lines), *map(len, text.split()), 1)


def _narrowest(panel: Panel) -> float:
    title = _BOLD * _letters(panel.title, _TITLE_LINES)
    return _AROUND + max(title, len(panel.groups) * _per_group(panel, _NARROW))


def _widths(row: Sequence[Panel]) -> list[float]:
    """Inches of each panel. A row with few bars is narrower than the picture."""
    narrowest = [_narrowest(panel) for panel in row]
    most = [_AROUND + len(panel.groups) * _per_group(panel, _WIDE) for panel in row]
    share = style.WIDTH / sum(narrowest)
    return [max(low, min(high, share * low)) for low, high in zip(narrowest, most, strict=True)]


@dataclass(frozen=True)
class _Legend:
    colours: Mapping[str, str]  # by system

    @property
    def width(self) -> float:
        """Inches, one system below the other."""
        return _KEY + _LETTER * max(map(len, self.colours))

    @property
    def columns(self) -> int:
        """The number of columns that fit into the picture."""
        names = list(self.colours)
        for columns in range(len(names), 1, -1):
            widths = [_KEY + _LETTER * max(map(len, names[first::columns])) for first in range(columns)]
            if sum(widths) <= style.WIDTH:
                return columns
        return 1

    @property
    def height(self) -> float:
        return 0.1 + _PER_LINE * -(-len(self.colours) // self.columns)

    def draw(self, cell: SubFigure) -> None:
        # matplotlib fills column by column; bars and readers go row by row.
        columns = self.columns
        names = [name for first in range(columns) for name in list(self.colours)[first::columns]]
        cell.legend(handles=self.handles(names), loc="lower left", ncols=columns, handlelength=1.2)

    def handles(self, names: Iterable[str]) -> list[Patch]:
        return [Patch(color=self.colours[name], label=name) for name in names]


@dataclass
class _Row:
    panels: Sequence[Panel]
    widths: Sequence[float]  # inches
    legend: _Legend
    has_legend: bool = False
    height = _PER_ROW

    @property
    def room(self) -> float:
        """Inches to the right of the panels."""
        return max(style.WIDTH - sum(self.widths), 0.0)

    def draw(self, cell: SubFigure) -> None:
        ratios = [*self.widths, self.room + 0.01]
        *places, rest = cell.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
        for axes, panel, width in zip(places, self.panels, self.widths, strict=True):
            _panel(axes, panel, self.legend.colours, width)
        rest.set_axis_off()
        if self.has_legend:
            rest.legend(handles=self.legend.handles(self.legend.colours), loc="center left", handlelength=1.2)


def _panel(axes: Axes, panel: Panel, colours: Mapping[str, str], width: float) -> None:
    systems = panel.systems
    step = 1 / (len(systems) + 1)
    bars = [
        (place + (systems.index(bar.system) - (len(systems) - 1) / 2) * step, bar)
        for place, group in enumerate(panel.groups)
        for bar in group.bars
    ]
    for at, bar in bars:
        axes.bar(at, bar.value, width=0.92 * step, color=colours[bar.system])
        if bar.interval is not None:
            # A bootstrap's interval need not hold the value itself.
            low, high = bar.interval
            reach = [[max(bar.value - low, 0.0)], [max(high - bar.value, 0.0)]]
            axes.errorbar(at, bar.value, yerr=reach, fmt="none", ecolor="black", capsize=1.5, linewidth=0.8)
        axes.plot(
            [at] * len(bar.points), bar.points, "o", color="white", markeredgecolor="black", markersize=3
        )
    per_group = (width - _AROUND) / len(panel.groups)
    labels = [_wrapped(group.label, per_group / _LETTER - 1) for group in panel.groups]
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params("x", length=0)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(bottom=min([0.0, *(bar.interval[0] for _, bar in bars if bar.interval is not None)]))
    axes.set_title(_wrapped(panel.title, (width - 0.3) / _BOLD))
    axes.grid(visible=False, axis="x")


def _wrapped(text: str, letters: float) -> str:
    return textwrap.fill(text, max(int(letters), 1), break_long_words=False, break_on_hyphens=False)
