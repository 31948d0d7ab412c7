"""The picture of a run: a panel a measure, and a legend that covers no line."""

import pyarrow as pa
import pytest

from diva.errors import UserError
from diva.plots.curves import curves, draw

STEPS = list(range(20, 220, 20))


def metrics(sets: tuple[str, ...]) -> pa.Table:
    """Losses in every row, distillation in the second half, validation in every other row."""
    columns = {
        "step": STEPS,
        "train/align": [1.0 / step for step in STEPS],
        "train/distill": [None if step <= 100 else 5.0 for step in STEPS],
    }
    for of in sets:
        for measure, value in (("alignment_accuracy", 0.5), ("first_token_agreement", 0.25), ("kl", 3.0)):
            columns[f"{of}/{measure}"] = [value if step % 40 == 0 else None for step in STEPS]
    return pa.table(columns)


def panels(figure) -> dict:
    return {axes.get_title("left").replace("\n", " "): axes for axes in figure.axes if axes.lines}


def test_curves_have_one_measure_a_panel():
    found = panels(curves(metrics(("val", "val_unseen_voice"))))
    assert list(found) == [
        "alignment loss, per token",
        "distillation loss, per clip",
        "alignment accuracy",
        "first-token agreement with the text teacher",
        "KL to the text teacher, nats",
    ]
    assert [len(axes.lines) for axes in found.values()] == [1, 1, 2, 2, 2]
    assert [axes.get_yscale() for axes in found.values()] == ["linear"] * 4 + ["log"]
    # A step stands at the same place in every panel, whenever a measure begins.
    assert len({axes.get_xlim() for axes in found.values()}) == 1
    line = found["KL to the text teacher, nats"].lines[0]
    assert (list(line.get_xdata()), set(line.get_ydata())) == ([40, 80, 120, 160, 200], {3.0})


def test_the_legend_of_curves_covers_no_panel():
    figure = curves(metrics(("val", "val_unseen_voice")))
    figure.draw_without_rendering()
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    (legend,) = legends
    assert [text.get_text() for text in legend.get_texts()] == ["held-out sentences", "unseen voice"]
    box = legend.get_window_extent()
    assert not [axes for axes in panels(figure).values() if axes.get_tightbbox().overlaps(box)]
    assert figure.bbox.x1 >= box.x1


def test_a_run_without_validation_has_curves_of_its_losses():
    figure = curves(metrics(()))
    assert len(panels(figure)) == 2
    assert not [axes for axes in figure.axes if axes.get_legend()]


def test_a_folder_that_is_no_run_has_no_curves(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no metrics\.csv"):
        draw(tmp_path)
