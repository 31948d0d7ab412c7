"""The paper's figures: committed tables are current, and tables show the measured results."""

import json
import shutil
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from fakes import METRICS, write_result
from matplotlib.image import imread

from diva.errors import UserError
from diva.evaluation.paper.comparison import (
    Authors,
    Cell,
    Column,
    Part,
    Row,
    constant_rows,
    our_rows,
    panels,
    table,
)
from diva.evaluation.paper.rebuild import Experiment, outcome, rebuild
from diva.evaluation.reporting.bars import Bar, Group, Panel, draw
from diva.evaluation.reporting.tables import Result
from tests.command_line import run

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
NAMES = sorted(file.parent.name for file in EXPERIMENTS.glob("*/experiment.yaml"))
ACCENTS = ("aus", "gbr", "ind_n", "ind_s", "irl", "nga", "nzl", "phl", "usa", "zaf")


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experiments") / "experiments"
    shutil.copytree(EXPERIMENTS, folder, ignore=shutil.ignore_patterns("table.md", "figure.png"))
    assert [found.name for found in rebuild(folder)] == NAMES
    return folder


@pytest.fixture(scope="module")
def authors() -> Authors:
    return Authors.read(EXPERIMENTS / "authors.json")


# ---- what is committed


def test_every_figure_has_its_folder():
    assert NAMES == [
        "fig2_qa", "fig3_classification", "fig4_translation", "fig6_user_study", "fig7_ablation", "table2_language",
    ]  # fmt: skip
    for name in NAMES:
        assert (EXPERIMENTS / name / "README.md").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_committed_tables_and_pictures_are_current(name, rebuilt):
    assert (EXPERIMENTS / name / "table.md").read_bytes() == (rebuilt / name / "table.md").read_bytes()
    old, new = (imread(folder / name / "figure.png") for folder in (EXPERIMENTS, rebuilt))
    # Pixels, with room for another machine's rounding: bytes are the same on one machine only.
    assert old.shape == new.shape
    assert float(np.sqrt(np.mean((old - new) ** 2))) < 2e-3


def test_rebuilding_gives_the_same_bytes(rebuilt, monkeypatch):
    files = sorted([*rebuilt.glob("*/table.md"), *rebuilt.glob("*/figure.png")])
    before = [file.read_bytes() for file in files]
    assert len(files) == 2 * len(NAMES)
    monkeypatch.setitem(mpl.rcParams, "font.size", 31.0)
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "red")
    rebuild(rebuilt)
    assert [file.read_bytes() for file in files] == before


def test_a_picture_names_no_program_and_no_date():
    png = draw([Panel("a", [Group("b", [Bar("x", 0.5, (0.4, 0.6))])])])
    assert b"tEXt" not in png
    assert b"tIME" not in png


def test_figure_2_is_a_panel_of_benchmarks_a_panel_of_accents_and_ours(authors):
    folder = EXPERIMENTS / "fig2_qa"
    _, found = outcome(Experiment.read(folder / "experiment.yaml"), authors, folder / "results")
    assert [len(panel.groups) for panel in found] == [2, 10, 1]
    assert {len(group.bars) for panel in found[:2] for group in panel.groups} == {7}


@pytest.mark.parametrize("name", NAMES)
def test_pictures_say_what_a_reader_knows(name, authors):
    folder = EXPERIMENTS / name
    _, found = outcome(Experiment.read(folder / "experiment.yaml"), authors, folder / "results")
    shown = [
        text for panel in found for text in (panel.title, *panel.systems, *(g.label for g in panel.groups))
    ]
    assert shown
    assert not [text for text in shown if "_" in text]


# ---- the authors' side


def test_the_authors_figures_are_those_of_the_source(authors):
    diva = authors.figures["DiVA"]
    assert diva["heysquad", "pedants"] == Cell(0.551744, (0.538889, 0.56453), 1002, 0)
    assert authors.figures["salmonn"]["covost2_zh-CN", "sentence_bleu"].errors == 56
    votes = diva["user_study", "win_rate"]
    assert (votes.value, votes.n) == (374 / 522, 522)
    assert votes.interval == (pytest.approx(0.6763385), pytest.approx(0.7534488))
    assert diva["mustard", "accuracy"].value == 363 / 690


def test_unsound_results_are_excluded(authors):
    assert "DiVA_twin" not in authors.labels
    for system, task in (("DiVA_noinit", "covost2"), ("DiVA_do", "covost2_"), ("qwen2", "covost2_ta")):
        assert not [key for key in authors.figures[system] if key[0].startswith(task)]
    assert not [key for of in authors.figures.values() for key in of if key[0] == "sdqa_kenya"]


def test_means_are_over_every_part_or_not_at_all(authors):
    accents = Column("mean", "sdqa", "pedants", [f"sdqa_{name}" for name in ACCENTS])
    found = accents.of(authors.figures["DiVA"])
    assert (found.value, found.interval, found.n) == (pytest.approx(0.53581772, abs=1e-6), None, 4940)
    languages = [f"covost2_{name}" for name in ("ar", "de", "id", "ja", "ta", "tr", "zh-CN")]
    bleu = Column("mean", "covost2", "sentence_bleu", languages)
    assert bleu.of(authors.figures["DiVA"]).value == pytest.approx(12.480010, abs=1e-5)
    assert bleu.of(authors.figures["salmonn"]).errors == 56
    assert bleu.of(authors.figures["qwen2"]) is None
    # A result of the whole task is used before the mean of its parts.
    parts = {("a", "m"): Cell(1.0), ("b", "m"): Cell(0.0), ("all", "m"): Cell(0.9)}
    assert Column("x", "all", "m", ["a", "b"]).of(parts) == Cell(0.9)


def test_two_values_for_one_system_task_and_metric_are_refused(tmp_path):
    record = {"task": "t", "metric": "m", "system": "A", "value": 0.5}
    source = {"repository": "r", "commit": "c", "how": "h"}
    file = tmp_path / "authors.json"
    file.write_text(json.dumps({"source": source, "systems": {"A": "A"}, "figures": [record, record]}))
    with pytest.raises(UserError, match="two figures for A, t/m"):
        Authors.read(file)
    file.write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        Authors.read(file)


# ---- ours beside them

COLUMNS = Part("p", [Column("T", "t", "contains_answer"), Column("U", "u", "contains_answer")])


def test_table_has_our_rows_beside_the_authors(tmp_path, authors):
    write_result(tmp_path / "a", [True, True, False, None], task="t", system="mini")
    write_result(tmp_path / "b", [True] * 3 + [False] * 2, task="u", system="mini")
    ours = our_rows(Result.read(folder) for folder in (tmp_path / "a", tmp_path / "b"))
    rule = constant_rows({"always right": {"u/contains_answer": 1.0}})
    lines = table(COLUMNS, [*authors.rows(["DiVA"]), *rule, *ours])
    assert lines == [
        "| system | whose | T, contains_answer | U, contains_answer |",
        "|---|---:|---:|---:|",
        "| n, unless said otherwise |  | 3 | 5 |",
        "| always right | by definition |  | 1.000 |",
        "| mini | ours | 0.667 [0.208, 0.939], 1 failed | 0.600 [0.231, 0.882] |",
    ]
    (panel,) = panels(COLUMNS, [*rule, *ours])
    first, second = panel.groups
    assert (panel.title, first.label, second.label) == ("p: share of right answers", "T", "U")
    assert [(bar.system, bar.reference) for bar in second.bars] == [
        ("always right", True),
        ("mini DiVA (ours)", False),
    ]
    assert [bar.value for bar in first.bars] == [pytest.approx(2 / 3)]
    assert second.bars[1].interval == (pytest.approx(0.2307, abs=1e-4), pytest.approx(0.8824, abs=1e-4))


def test_a_ceiling_and_a_cascade_are_named_by_what_they_are(tmp_path):
    for role in ("cascade", "system", "ceiling"):
        write_result(tmp_path / role, [True, False], task="t", system=f"{role} of x", role=role)
    rows = our_rows(Result.read(tmp_path / role) for role in ("cascade", "system", "ceiling"))
    (panel,) = panels(COLUMNS, rows)
    assert [(bar.system, bar.reference) for bar in panel.groups[0].bars] == [
        ("text LLM, true transcript (ceiling)", True),
        ("system of x (ours)", False),
        ("Whisper, then the LLM (cascade)", True),
    ]
    (panel,) = panels(COLUMNS, [*rows, Row("another", "ours", rows[0].figures, "ceiling")])
    assert panel.groups[0].bars[0].system == "ceiling of x (ours)"  # there are two


def test_a_panel_has_one_metric_and_a_group_a_column():
    part = Part("p", [Column("A", "a", "accuracy"), Column("A", "a", "f1_yes"), Column("B", "b", "accuracy")])
    row = Row("x", "authors", {(task, m): Cell(0.5) for task in "ab" for m in ("accuracy", "f1_yes")})
    found = panels(part, [row])
    assert [(panel.title, [group.label for group in panel.groups]) for panel in found] == [
        ("p: accuracy", ["A", "B"]),
        ("p: F1 of “Yes”", ["A"]),
    ]


def test_skipped_clips_are_in_the_table(tmp_path):
    write_result(tmp_path, [True, True, None], task="t", system="mini", skipped={"missing file": 2})
    row = table(COLUMNS, our_rows([Result.read(tmp_path)]))[-1]
    assert row == "| mini | ours | 1.000 [0.342, 1.000], 1 failed, 2 skipped |  |"
    mean = Column("mean", "both", "m", ["a", "b"]).of({(of, "m"): Cell(0.5, left_out=2) for of in "ab"})
    assert mean.left_out == 4


def test_a_cell_with_another_n_names_it():
    rows = [*constant_rows({}), *[_row(str(n), n) for n in (100, 100, 7)]]
    lines = table(Part("p", [Column("T", "t", "m")]), rows)
    assert lines[2:6] == [
        "| n, unless said otherwise |  | 100 |",
        "| 100 | authors | 0.500 |",
        "| 100 | authors | 0.500 |",
        "| 7 | authors | 0.500, n 7 |",
    ]
    assert lines[6] == "| not run | ours |  |"


def _row(label: str, n: int) -> Row:
    return Row(label, "authors", {("t", "m"): Cell(0.5, None, n)})


def test_two_results_of_one_system_on_one_task_are_refused(tmp_path):
    for name in ("a", "b"):
        write_result(tmp_path / name, [True, False])
    with pytest.raises(UserError, match="two results of diva on spoken_mini_by_voice"):
        our_rows(Result.read(tmp_path / name) for name in ("a", "b"))


def test_results_put_into_the_folder_change_table_and_picture(rebuilt, tmp_path):
    folder = tmp_path / "experiments"
    shutil.copytree(rebuilt, folder)
    result = folder / "fig2_qa" / "results" / "heysquad" / "diva-12345678"
    metrics = [METRICS[0] | {"name": "pedants"}]
    write_result(result, [True, False] * 4, task="heysquad", system="mini", metrics=metrics)
    rebuild(folder)
    text = (folder / "fig2_qa" / "table.md").read_text()
    assert "| mini | ours | 0.500 [0.215, 0.785], n 8 |" in text
    assert "## Ours in full" in text
    assert "| text LLM, true transcript (ceiling) | not run |" in text
    for name in NAMES:
        pairs = [[root / name / file for root in (folder, rebuilt)] for file in ("table.md", "figure.png")]
        same = [new.read_bytes() == old.read_bytes() for new, old in pairs]
        assert same == [name != "fig2_qa"] * 2


# ---- experiment.yaml

PLAIN = "title: x\nsystems: []\nparts: [{title: p, columns: [{title: T, task: t, metric: m}]}]\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PLAIN.replace("systems", "sistems"), "sistems"),
        (PLAIN.replace("metric: m", "metrik: m"), "metrik"),
        (PLAIN.replace("title: x\n", ""), "title"),
        (PLAIN + "notes: [a: b]\n", "a note is no text"),
        (PLAIN + "ablation: {task: t}\n", "metric"),
        (PLAIN + "title: [", "describes no experiment"),
    ],
)
def test_descriptions_that_cannot_be_used(tmp_path, text, problem):
    file = tmp_path / "experiment.yaml"
    file.write_text(PLAIN)
    assert Experiment.read(file).title == "x"
    file.write_text(text)
    with pytest.raises(UserError, match=problem):
        Experiment.read(file)


def test_an_unknown_system_is_named(authors):
    with pytest.raises(UserError, match="no system 'DiVA_twin', only DiVA"):
        authors.rows(["DiVA_twin"])


@pytest.mark.integration
def test_a_folder_without_experiments_is_one_line(tmp_path, shared_cache):
    done = run("diva.evaluation.paper", str(tmp_path), cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"diva: {tmp_path} holds no folder with an experiment.yaml\n"
