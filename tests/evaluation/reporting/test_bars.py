"""Groups of bars: where they stand, which colours they have, and that nothing covers anything."""

from itertools import pairwise

from matplotlib.figure import Figure

from diva.evaluation.reporting.bars import Bar, Group, Panel, picture
from diva.plots import style

SYSTEMS = [f"system {letter}" for letter in "abcdefg"]


def group(label: str, systems: list[str] = SYSTEMS, **kwargs) -> Group:
    return Group(label, [Bar(name, 0.5, (0.4, 0.6), **kwargs) for name in systems])


def bars(figure: Figure) -> list:
    """The axes with bars, in reading order."""
    return [axes for axes in figure.axes if axes.patches]


def legends(figure: Figure) -> list:
    beside = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    return [*beside, *(legend for strip in figure.subfigs for legend in strip.legends)]


def test_ten_groups_of_seven_bars_are_one_panel():
    labels = ["Australia", "Great Britain", "Philippines", "New Zealand", "South Africa"] * 2
    figure = picture([Panel("by accent", [group(label) for label in labels])])
    (axes,) = bars(figure)
    assert [text.get_text().replace("\n", " ") for text in axes.get_xticklabels()] == labels
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_a_system_keeps_its_place_and_its_colour_where_others_are_missing():
    panel = Panel("p", [group("all"), group("some", ["system c"])])
    (axes,) = bars(picture([panel, Panel("q", [group("x", ["system c"])])]))[:1]
    places = [round(bar.get_x() + bar.get_width() / 2, 6) for bar in axes.patches]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert places[7] == round(places[2] + 1, 6)
    assert colours[7] == colours[2]
    assert len(set(colours[:7])) == 7


def test_references_are_grey():
    panel = Panel("p", [Group("g", [Bar("a", 0.5, None), Bar("ceiling", 0.9, None, reference=True)])])
    colours = [_hex(bar.get_facecolor()) for bar in bars(picture([panel]))[0].patches]
    assert colours == [style.COLOURS[0].lower(), style.GREYS[0]]


def _hex(colour) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])


def test_panels_of_the_same_systems_share_a_legend_and_others_have_their_own():
    shared = [Panel("p", [group("x"), group("y")]), Panel("q", [group("x", SYSTEMS[:3])])]
    own = Panel("r", [group("x", ["another"])])
    figure = picture([*shared, own])
    names = [[text.get_text() for text in legend.get_texts()] for legend in legends(figure)]
    assert sorted(map(sorted, names)) == [["another"], SYSTEMS]


def test_legends_cover_no_panel_and_stay_inside_the_picture():
    long = [f"system with a long name, number {number}" for number in range(7)]
    wide = Panel("wide", [group(f"group {number}", long) for number in range(6)])
    narrow = Panel("narrow", [group("one", ["alone"])])
    figure = picture([wide, wide, narrow])
    figure.draw_without_rendering()
    found = legends(figure)
    assert len(found) == 2
    for legend in found:
        box = legend.get_window_extent()
        assert not [axes for axes in bars(figure) if axes.get_tightbbox().overlaps(box)]
        assert (box.x0, box.y0) >= (0, 0)
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


def test_more_groups_than_a_row_holds_go_on_in_the_next():
    labels = [f"group {number}" for number in range(30)]
    found = bars(picture([Panel("p", [group(label) for label in labels])]))
    shown = [text.get_text().replace("\n", " ") for axes in found for text in axes.get_xticklabels()]
    assert shown == labels
    assert {axes.get_title("left") for axes in found} == {"p"}


def test_an_interval_below_zero_is_shown():
    (axes,) = bars(picture([Panel("p", [Group("g", [Bar("a", 0.1, (-0.2, 0.3))])])]))
    assert axes.get_ylim()[0] <= -0.2
