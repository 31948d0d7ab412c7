"""A search as a sweep: its space, and how it is continued."""

import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from diva.config import hydra_private
from diva.errors import UserError
from diva.sweeps.folder import Outcome, write_outcome
from diva.sweeps.optuna_study import Study, distribution


def study(trials: int) -> Study:
    sampler = {"_target_": "optuna.samplers.TPESampler", "seed": 1}
    pruner = {"_target_": "optuna.pruners.MedianPruner"}
    return Study(trials, OmegaConf.create(sampler), OmegaConf.create(pruner))


def parse(*texts: str) -> list:
    return hydra_private.parse(texts)


def test_a_study_continued_retakes_what_was_under_way_and_replaces_what_failed(tmp_path):
    space = parse("max_steps=5", "optimizer.lr=tag(log,interval(1e-5,1e-3))")
    first = study(4)
    first.open(tmp_path, space)
    runs = [first.take() for _ in range(3)]
    assert runs[0].overrides[0] == "max_steps=5"
    assert 1e-5 <= float(runs[0].values["optimizer.lr"]) <= 1e-3
    runs[0].begin()
    (runs[0].folder / "summary.json").write_text('{"val/kl": 0.5}')
    write_outcome(runs[1].folder, Outcome("failed"))
    for one in runs:  # the third was killed with the sweep
        first.ended(one)
    again = study(4)
    again.open(tmp_path, space)
    taken = [again.take() for _ in range(4)]
    assert [one.folder.name if one else None for one in taken] == ["2", "3", "4", None]
    assert taken[0].overrides == runs[2].overrides
    chosen = {one.values["optimizer.lr"] for one in (*runs, *taken[1:3])}
    assert len(chosen) == 5, "a continued search proposes nothing twice"
    with pytest.raises(UserError, match="searches something else"):
        study(4).open(tmp_path, parse("max_steps=6", "optimizer.lr=tag(log,interval(1e-5,1e-3))"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=interval(1,5)", FloatDistribution(1, 5)),
        ("a=int(interval(1,5))", IntDistribution(1, 5)),
        ("a=tag(log,interval(1,5))", FloatDistribution(1, 5, log=True)),
        ("a=range(1,9,2)", IntDistribution(1, 7, step=2)),
        ("a=range(0.5,2,0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
        ("a=x,y", CategoricalDistribution(("x", "y"))),
        ("a=1,0.5", CategoricalDistribution(("1", "0.5"))),
    ],
)
def test_hydras_words_as_a_search_space(text, expected):
    assert distribution(parse(text)[0]) == expected


def test_an_unknown_tag_is_named():
    with pytest.raises(UserError, match="no tag lgo"):
        distribution(parse("a=tag(lgo,interval(1,5))")[0])
