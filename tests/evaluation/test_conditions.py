"""The robustness task: every clip in every condition, and the picture of what systems answer."""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch
from fakes import in_process, write_result
from tiny import noise

from diva.audio.augmentation import telephone_band, transcode
from diva.data.manifest import Manifest
from diva.errors import UserError
from diva.evaluation.conditions import UnderConditions
from diva.evaluation.reporting import curves
from diva.evaluation.reporting.tables import Result, table
from diva.evaluation.results import read_results
from diva.evaluation.samples import Answer
from diva.plots import style

LABELS = ["clean", "20 dB", "5 dB", "telephone", "opus"]


@dataclass(frozen=True)
class Sounds:
    def waveform(self, row: int) -> np.ndarray:
        return noise(0.5, row)


class Two:
    def manifest(self, split: str) -> Manifest:
        clips = pa.table(
            {"clip_id": ["a", "b"], "text": ["x", "y"], "duration": [0.5, 0.5], "speaker": ["", ""]}
        )
        return Manifest(clips, Sounds(), np.array([7, 3]))


def under(**given) -> UnderConditions:
    defaults = {
        "snr": [20.0, 5.0],
        "noise": "white",
        "channels": ["telephone", "opus"],
        "kilobits": 16.0,
        "seed": 0,
    }
    return UnderConditions(Two, **defaults | given)


def test_every_clip_comes_in_every_condition():
    manifest = under().manifest("test")
    assert manifest.column("condition") == LABELS * 2
    details = [
        "clean",
        "white noise 20 dB, seed 0",
        "white noise 5 dB, seed 0",
        "telephone",
        "opus 16 kbit/s",
    ]
    assert manifest.column("clip_id") == [f"{name} [{detail}]" for name in "ab" for detail in details]
    assert manifest.column("text") == ["x"] * 5 + ["y"] * 5
    for clip, row in enumerate((7, 3)):
        clean = torch.from_numpy(noise(0.5, row))
        found = [torch.from_numpy(manifest.waveform(5 * clip + number)) for number in range(5)]
        assert found[0].equal(clean)
        added = [found[1] - clean, found[2] - clean]
        for snr, of in zip((20.0, 5.0), added, strict=True):
            measured = 10 * math.log10(float(clean.square().mean() / of.square().mean()))
            assert measured == pytest.approx(snr, abs=0.1)
        assert torch.allclose(added[0] * 10 ** (15 / 20), added[1], atol=1e-5)  # the same noise at every SNR
        assert found[3].equal(telephone_band(clean))
        assert found[4].equal(transcode(clean, "opus", 16.0))


def test_the_noise_depends_on_the_seed_and_the_clip_alone():
    first = under().manifest("test").waveform(1)
    assert np.array_equal(under(snr=[10.0, 20.0]).manifest("test").waveform(2), first)
    assert not np.array_equal(under(seed=1).manifest("test").waveform(1), first)


def test_names_that_do_not_exist_are_the_users_to_mend():
    with pytest.raises(UserError, match=r"task\.corpus\.noise=grey is none of white, pink, brown"):
        under(noise="grey")
    with pytest.raises(
        UserError, match=r"task\.corpus\.channels: fax is none of telephone, mu_law, opus, mp3"
    ):
        under(channels=["fax", "opus"])


# ---- the picture


def result(folder, right: dict[str, int], role: str = "system", system: str = "diva") -> Result:
    """A result in which so many of ten answers are right in each condition."""
    of = [
        Answer(f"{n} {label}", "Paris" if n < right[label] else "Rome", ("Paris",), group=label)
        for n in range(10)
        for label in LABELS
    ]
    metrics = [{"_target_": "diva.evaluation.metrics.ContainsAnswer"}]
    config = {"task": {"metrics": metrics, "group": "condition"}}
    write_result(folder, [], role=role, system=system, task="robustness", of=of, config=config)
    return Result.read(folder)


def drawn(figure) -> list[dict[str, list[float]]]:
    """Label of each system -> its values, for each panel."""
    return [
        {bars.get_label(): [float(y) for y in bars.lines[0].get_ydata()] for bars in axes.containers}
        for axes in figure.axes
    ]


SCORES = dict(zip(LABELS, (9, 8, 3, 5, 7), strict=True))


def test_systems_have_curves_over_the_snr_and_points_for_the_channels(tmp_path):
    results = [
        result(tmp_path / "a", SCORES, system="mine"),
        result(tmp_path / "b", dict.fromkeys(LABELS, 10), "ceiling"),
    ]
    figure = curves.picture(results)
    ceiling = "text LLM, true transcript (ceiling)"
    assert drawn(figure) == [
        {"mine": [0.9, 0.8, 0.3], ceiling: [1.0, 1.0, 1.0]},
        {"mine": [0.5, 0.7], ceiling: [1.0, 1.0]},
    ]
    ticks = [[text.get_text() for text in axes.get_xticklabels()] for axes in figure.axes]
    assert ticks == [["clean", "20 dB", "5 dB"], ["telephone", "Opus"]]
    colours = [bars.lines[0].get_color() for bars in figure.axes[0].containers]
    assert colours == [style.COLOURS[0], style.GREYS[0]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["mine", ceiling]
    figure.draw_without_rendering()
    assert not any(axes.get_tightbbox().overlaps(legend.get_window_extent()) for axes in figure.axes)


def test_two_ceilings_have_two_names(tmp_path):
    results = [result(tmp_path / name, SCORES, "ceiling", f"teacher of {name}") for name in ("a", "b")]
    (legend,) = curves.picture(results).legends
    names = [text.get_text().rpartition(", ")[2] for text in legend.get_texts()]
    assert names == ["teacher of a", "teacher of b"]


def test_results_of_other_data_have_no_common_picture(tmp_path):
    results = [result(tmp_path / name, SCORES, system=name) for name in ("a", "b")]
    results[1].values["data_hash"] = "other"
    with pytest.raises(UserError, match="were not asked the same"):
        curves.draw(results)


def test_the_table_has_the_conditions_in_their_order(tmp_path):
    lines = table([result(tmp_path / "a", SCORES)]).splitlines()
    header = next(line for line in lines if line.startswith("| by group"))
    assert [cell.strip() for cell in header.split("|")[2:-1]] == LABELS


def test_the_task_writes_a_metric_for_each_condition_and_the_picture(export, tiny_release, tmp_path):
    made = in_process(
        [
            "task=robustness", f"system.model={export}", f"folder={tmp_path}", "report=html", "batch_size=8",
            "task.corpus.corpus._target_=diva.data.corpora.common_voice.CommonVoice",
            f"task.corpus.corpus.root={tiny_release}", "task.split=train", "task.reference=text",
            "task.corpus.snr=[10.0]", "task.corpus.channels=[telephone]", "task.max_samples=6",
            "task.max_new_tokens=2", "name=tiny",
        ],
        "diva",
    )  # fmt: skip
    for folder in made:  # the system, its ceiling and its cascade
        groups = read_results(folder)["groups"]
        assert list(groups) == ["clean", "10 dB", "telephone"]
        assert [figure["n"] for figure in groups.values()] == [2, 2, 2]
    assert len(made) == 3
    assert (made[0] / curves.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert "10 dB" in (made[0] / "report.html").read_text(encoding="utf-8")
