"""Systems over seeds: means and intervals against naive loops, the order, and results that do not belong together."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import answers, write_result, write_summary

from diva.errors import UserError
from diva.evaluation.paper.ablation import Ablation
from diva.evaluation.paper.comparison import Authors, Cell
from diva.evaluation.paper.seeds import Runs, difference, interval

KEY = ("heysquad", "pedants")
ABLATION = Ablation(
    task="spoken_mini_by_voice", metric="contains_answer", systems={"both": "A", "one": "B", "mlp": "C"},
    against="both", order_by=KEY, seeds=[1, 2], unseen=["awb"],
)  # fmt: skip
AUTHORS = Authors(
    {"A": "a", "B": "b", "C": "c"},
    {"A": {KEY: Cell(0.9)}, "B": {KEY: Cell(0.5)}, "C": {KEY: Cell(0.1)}},
    "",
)


def chance(share: float, seed: int, n: int = 80) -> list[bool]:
    """n answers of which about this share is right; the same samples are hard for every system."""
    noise, hard = random.Random(seed), random.Random(0)
    return [hard.random() + noise.gauss(0, 0.1) < share for _ in range(n)]


def replication(folder: Path, shares: dict[str, float], n: int = 80) -> Path:
    """Both seeds of systems whose answers are right at these rates."""
    for name, share in shares.items():
        for seed in (1, 2):
            run = write_result(folder / f"{name}_seed{seed}", chance(share, seed, n), system=name)
            write_summary(run, agreement=share + seed / 100, kl=seed / 10)
    return folder


def text(folder: Path, ablation: Ablation = ABLATION) -> str:
    return "\n".join(ablation.outcome(folder, AUTHORS).lines)


# ---- numbers


def test_the_mean_is_over_seeds_of_each_seeds_mean():
    scores = np.array([[1, 1, 0, np.nan], [1, 0, 0, 0]])
    runs = Runs("x", (1, 2), scores)
    assert runs.each_seed == [pytest.approx(2 / 3), 0.25]
    assert runs.mean == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert runs.among(np.array([True, False, False, True])).mean == pytest.approx((1 + 0.5) / 2)


def test_the_interval_draws_seeds_and_samples():
    """Against the same written as loops, with draws of its own: wider than that of the samples alone."""
    rng = np.random.default_rng(1)
    scores = (rng.random((3, 100)) < np.array([[0.3], [0.5], [0.7]])).astype(float)
    low, high = Runs("x", (1, 2, 3), scores).interval
    draws = []
    for _ in range(4000):
        seeds, samples = rng.integers(3, size=3), rng.integers(100, size=100)
        draws.append(sum(scores[s, n] for s in seeds for n in samples) / 300)
    assert (low, high) == (
        pytest.approx(np.quantile(draws, 0.025), abs=0.02),
        pytest.approx(np.quantile(draws, 0.975), abs=0.02),
    )
    alone = interval((3, 100), lambda _, n: scores[:, n].mean(axis=(0, 2)))
    assert high - low > 1.5 * (alone[1] - alone[0])
    assert Runs("x", (1, 2, 3), scores[:, :1]).interval is None


def test_differences_are_of_the_same_seed_and_sample():
    hard = np.random.default_rng(0).integers(0, 2, size=(3, 60)).astype(float)
    ours, theirs = Runs("a", (1, 2, 3), hard), Runs("b", (3, 1), hard[[2, 0]])
    alike = difference(ours, theirs)
    assert (alike.value, alike.interval, alike.n) == (0.0, (0.0, 0.0), 60)
    better = hard.copy()
    better[:, :12] = 1.0
    ahead = difference(Runs("c", (1, 2, 3), better), ours)
    assert ahead.value == pytest.approx(better.mean() - hard.mean())
    assert 0 < ahead.interval[0] < ahead.value < ahead.interval[1]
    ceiling = Runs("t", (), np.ones((1, 60)))
    assert difference(ours, ceiling).value == pytest.approx(hard.mean() - 1)
    with pytest.raises(UserError, match="a and d have no seed in common"):
        difference(ours, Runs("d", (4,), hard[:1]))


def test_a_sample_that_one_side_failed_on_counts_for_neither():
    """Alike wherever both answered: that the ceiling failed on a hard one is no difference."""
    nan = np.nan
    ours = Runs("a", (1, 2), np.array([[1.0, 0.0, 1.0, nan], [1.0, 0.0, 1.0, 0.0]]))
    ceiling = Runs("t", (), np.array([[1.0, nan, 1.0, 0.0]]))
    alike = difference(ours, ceiling)
    assert (alike.value, alike.interval) == (pytest.approx(0.0), (0.0, 0.0))
    assert difference(ours, Runs("b", (1,), np.array([[1.0, nan, 0.0, 1.0]]))).value == pytest.approx(0.5)


# ---- the table


def test_all_results_of_a_system_are_in_its_row(tmp_path):
    replication(tmp_path, {"both": 0.8, "one": 0.5, "mlp": 0.1})
    right = {seed: chance(0.5, seed) for seed in (1, 2)}
    (row,) = [line for line in text(tmp_path).splitlines() if line.startswith("| one | 1, 2")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    means = [np.mean(right[1]), np.mean(right[2])]
    assert cells[2].startswith(f"{np.mean(means):.3f} [")
    assert cells[3] == f"{means[0]:.3f}, {means[1]:.3f}"
    assert cells[4] == f"{np.std(means, ddof=1):.3f}"
    unseen = np.array([a.group == "awb" for a in answers(right[1])])
    for cell, of in ((cells[5], ~unseen), (cells[6], unseen)):
        assert cell.startswith(f"{np.mean([np.array(right[k])[of].mean() for k in (1, 2)]):.3f} [")
    assert cells[7] == ""
    both = np.mean([np.mean(chance(0.8, k)) for k in (1, 2)])
    assert cells[8].startswith(f"{np.mean(means) - both:+.3f} [")
    assert cells[9] == "0"


def test_the_ceiling_and_failures_are_shown(tmp_path):
    replication(tmp_path, {"both": 0.8})
    write_result(tmp_path / "teacher", [True] * 80, role="ceiling", system="teacher of x")
    failing = [None, *chance(0.5, 1)[1:]]
    write_result(tmp_path / "one_seed2", failing, system="one")
    lines = text(tmp_path).splitlines()
    (ceiling,) = [line for line in lines if line.startswith("| text LLM")]
    assert "1.000 [1.000, 1.000]" in ceiling
    (both,) = [line for line in lines if line.startswith("| both | 1, 2")]
    mean = np.mean([np.mean(chance(0.8, k)) for k in (1, 2)])
    assert both.split("|")[8].strip().startswith(f"{mean - 1:+.3f} [")
    (one,) = [line for line in lines if line.startswith("| one | 2 ")]
    assert one.endswith("| 1 |")
    assert one.split("|")[3].strip().startswith(f"{np.mean(failing[1:]):.3f} [")


def test_training_figures_stand_beside_the_answers(tmp_path):
    replication(tmp_path, {"both": 0.8, "one": 0.5, "mlp": 0.1})
    lines = text(tmp_path).splitlines()
    header = next(line for line in lines if line.startswith("| training"))
    assert "first-token agreement | KL, nats | alignment accuracy | training, minutes" in header
    assert "| both | 0.815 ± 0.007 | 0.150 ± 0.071 | 0.900 ± 0.000 | 10.0 ± 0.0 |" in lines
    for file in tmp_path.glob("*/train_summary.json"):
        file.unlink()
    assert "Metrics of training: not on this machine." in text(tmp_path)


def test_ablation_says_whether_the_papers_order_holds(tmp_path):
    said = text(replication(tmp_path / "a", {"both": 0.9, "one": 0.5, "mlp": 0.1}))
    assert "At this size the paper's order holds." in said
    assert "(heysquad/pedants): both 0.900 > one 0.500 > mlp 0.100." in said
    assert "By first-token agreement in training it holds: both 0.915 > one 0.515 > mlp 0.115." in said
    assert "Of the 3 pairs 3 are as in the paper, 0 the other way round, and 0 cannot be told apart" in said
    said = text(replication(tmp_path / "b", {"both": 0.5, "one": 0.9, "mlp": 0.1}))
    assert "At this size the paper's order does not hold." in said
    assert "Of the 3 pairs 2 are as in the paper, 1 the other way round, and 0 cannot be told apart" in said
    means = {
        name: np.mean([np.mean(chance(p, k)) for k in (1, 2)]) for name, p in (("one", 0.9), ("both", 0.5))
    }
    assert (
        f"Ours (spoken_mini_by_voice/contains_answer): one {means['one']:.3f} > both {means['both']:.3f}"
        in said
    )
    said = text(replication(tmp_path / "c", {"both": 0.5, "one": 0.5, "mlp": 0.1}))
    assert "the paper's order does not hold. " in said  # a tie is no order
    assert "in training it does not hold: both 0.515 > one 0.515 > mlp 0.115." in said
    (tmp_path / "c" / "one_seed1" / "train_summary.json").unlink()
    (tmp_path / "c" / "one_seed2" / "train_summary.json").unlink()
    assert "in training it" not in text(tmp_path / "c")
    assert "2 are as in the paper, 0 the other way round, and 1 cannot be told apart" in said


def test_what_is_not_run_is_said(tmp_path):
    assert text(tmp_path).endswith(
        "Not run: teacher, cascade, both (seed 1, 2), one (seed 1, 2), mlp (seed 1, 2)."
    )
    replication(tmp_path, {"both": 0.9, "mlp": 0.1})
    (tmp_path / "mlp_seed1" / "results.json").unlink()
    said = text(tmp_path)
    assert "Not run: teacher, cascade, one (seed 1, 2), mlp (seed 1)." in said
    assert "Ours is not known yet: one not run." in said


def test_panels_show_each_seed(tmp_path):
    replication(tmp_path, {"both": 0.8, "one": 0.5, "mlp": 0.1})
    panels = ABLATION.outcome(tmp_path, AUTHORS).panels
    assert [(panel.title, [group.label for group in panel.groups]) for panel in panels] == [
        ("Ours: share of right answers", ["all voices", "seen voices", "unseen voice"]),
        ("Ours: first-token agreement with the text teacher", ["held-out sentences"]),
        ("Ours: KL to the text teacher, nats", ["held-out sentences"]),
    ]
    first = panels[0].groups[0].bars[0]
    assert first.points == tuple(pytest.approx(np.mean(chance(0.8, k))) for k in (1, 2))
    assert first.interval[0] < first.value < first.interval[1]
    agreement = panels[1].groups[0].bars
    assert [bar.value for bar in agreement] == pytest.approx([0.815, 0.515, 0.115])
    assert agreement[0].points == pytest.approx((0.81, 0.82))


# ---- results that do not belong together


@pytest.mark.parametrize("name", ["two_seed1", "both", "both_seedx", "both_seed1_old"])
def test_a_folder_of_another_name_is_refused(tmp_path, name):
    write_result(tmp_path / name, [True, False])
    with pytest.raises(
        UserError, match=f"{name} is none of teacher, cascade and SYSTEM_seedK .* both, one, mlp"
    ):
        text(tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task": "spoken_mini_qa"}, "is of spoken_mini_qa/contains_answer, not of"),
        ({"data_hash": "other"}, "data_hash differs"),
        ({"task_hash": "other"}, "task_hash differs"),
        ({"value": 0.99}, "its samples do not give the figure of its results.json"),
        ({"of": answers([True] * 7)}, "other samples"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(tmp_path, changes, problem):
    write_result(tmp_path / "both_seed1", [True, False] * 4)
    write_result(tmp_path / "one_seed1", [True, False] * 4, **changes)
    with pytest.raises(UserError, match=problem):
        text(tmp_path)


def test_a_metric_that_the_authors_do_not_have_is_named(tmp_path):
    replication(tmp_path, {"both": 0.8})
    with pytest.raises(UserError, match=r"authors\.json has no figure of A for meld/pedants"):
        text(tmp_path, replace(ABLATION, order_by=("meld", "pedants")))


def test_a_training_summary_that_cannot_be_read_is_named(tmp_path):
    replication(tmp_path, {"both": 0.8})
    file = tmp_path / "both_seed1" / "train_summary.json"
    file.write_text(json.dumps({"val/kl": 1})[:-3])
    with pytest.raises(UserError, match=r"both_seed1/train_summary\.json cannot be read"):
        text(tmp_path)
