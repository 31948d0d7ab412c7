"""One look and one set of names for all pictures."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread

from diva.evaluation import metrics
from diva.evaluation.metrics import F1
from diva.plots import style


@style.applied()
def drawn() -> bytes:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2], [3, 4])
    return style.png(figure)


def test_a_users_matplotlibrc_changes_nothing(monkeypatch):
    before = drawn()
    monkeypatch.setitem(mpl.rcParams, "font.size", 31.0)
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "red")
    assert drawn() == before
    assert mpl.rcParams["font.size"] == 31.0


def test_the_background_is_white_on_a_dark_page_too(tmp_path):
    (tmp_path / "a.png").write_bytes(drawn())
    pixels = imread(tmp_path / "a.png")
    assert pixels.shape == (200, 400, 4)
    assert (pixels[..., 3] == 1).all()
    np.testing.assert_array_equal(pixels[0, 0], 1)


def test_a_logarithmic_axis_has_plain_numbers():
    axes = Figure().subplots()
    axes.plot([1, 2], [0.04, 3])
    style.logarithmic(axes)
    axes.figure.draw_without_rendering()
    assert axes.get_yscale() == "log"
    shown = {label.get_text() for label in axes.get_yticklabels()}
    assert {"0.05", "0.1", "0.2", "0.5", "1", "2"} <= shown


def test_every_metric_has_a_name():
    classes = [of for of in vars(metrics).values() if isinstance(of, type)]
    names = [of.name for of in classes if isinstance(getattr(of, "name", None), str)]
    assert {"contains_answer", "sentence_bleu"} <= set(names)
    assert not [name for name in (*names, F1({"Yes": "yes"}, "Yes").name) if name not in style.NAMES]


def test_what_has_no_name_loses_its_underscores():
    assert style.named("val_unseen_voice") == "unseen voice"
    assert style.named("my_system") == "my system"
