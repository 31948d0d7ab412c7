"""The style of all pictures, and the names in them.

A picture is 8 inches wide with letters of 9 to 10 points, at 200 dots an inch. A README shows it at about half of its
pixels; the letters are then as large as the text around them. The background is white and not transparent, so that the
picture looks the same on a dark page. The colours are those of Okabe and Ito (2008, "Color Universal Design"), which
can be distinguished with all common kinds of colour blindness. Yellow is too pale for a line on white. It is the
seventh colour, so lines use at most six.
"""

import io
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

WIDTH = 8.0  # inches
COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#000000")
# For systems that are not under test: ceilings, cascades, rules.
GREYS = ("#4d4d4d", "#8c8c8c", "#bfbfbf")
# For the lines of one metric, so that they differ without colour, too.
LINES = ("-", "--", ":", "-.")
_FEW = 40
_INK, _FAINT = "#222222", "#dddddd"

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # it comes with matplotlib, so every machine has it
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#666666",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "axes.prop_cycle": cycler(color=COLOURS),
    "figure.dpi": 200,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "savefig.dpi": "figure",
}

# Names in configs and files -> names in pictures and tables.
NAMES = {
    # losses and metrics of validation
    "train/loss": "training loss",
    "train/align": "alignment loss, per token",
    "train/distill": "distillation loss, per clip",
    "alignment_accuracy": "alignment accuracy",
    "first_token_agreement": "first-token agreement with the text teacher",
    "kl": "KL to the text teacher, nats",
    "answer_agreement": "next-token agreement over the answer",
    "answer_kl": "KL over the answer, nats",
    "shared_tokens": "tokens that both answers begin with",
    "same_answer": "share of equal answers",
    # sets of clips
    "val": "held-out sentences",
    # metrics of tasks
    "accuracy": "accuracy",
    "contains_answer": "share of right answers",
    "corpus_bleu": "corpus BLEU",
    "exact_match": "share of exact matches",
    "f1_yes": "F1 of “Yes”",
    "pedants": "PEDANTS score",
    "sentence_bleu": "sentence BLEU",
    "target_language": "share in the target language",
    "token_f1": "token F1",
    "weighted_f1": "weighted F1",
    "win_rate": "share of votes",
    # channels
    "mu_law": "mu-law",
    "opus": "Opus",
    # systems
    "mini": "mini DiVA",
    "ablation_both": "DiVA, both losses",
    "ablation_distill_only": "DiVA, distillation only",
    "ablation_align_only": "DiVA, alignment only",
    "ablation_no_init": "DiVA, no Whisper-decoder init",
    "ablation_mlp": "DiVA, MLP instead of Q-Former",
}


def named(key: str) -> str:
    """The name for a reader; without one, the key without underscores. `val/` before a metric is not shown."""
    key = key.removeprefix("val/")
    return NAMES.get(key) or key.removeprefix("val_").replace("_", " ")


@contextmanager
def applied() -> Iterator[None]:
    """The style, for a `with` statement or as a decorator. The user's matplotlibrc has no effect."""
    settings: dict[Any, Any] = {**mpl.rcParamsDefault, **_STYLE}
    with mpl.rc_context(settings):
        yield


def logarithmic(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers (0.05, not 5·10⁻²), even if it spans less than a decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def marker(steps: Sized) -> str:
    """A dot if there are only few points, else nothing."""
    return "o" if len(steps) < _FEW else ""


@applied()
def png(figure: Figure) -> bytes:
    """A PNG without date and program name, so that one matplotlib writes the same bytes for the same picture."""
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()
