"""Configs of earlier revisions: the modules that their targets name have moved."""

import importlib
import json
from pathlib import Path
from pydoc import locate

import pytest
from omegaconf import OmegaConf

from diva.config import check_overrides, make
from diva.config.targets import MOVED, current, with_current
from diva.data.corpora.jsonl import JsonlCorpus
from diva.errors import UserError
from diva.training.losses import Objective

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def targets(node) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(targets, node))
    if not isinstance(node, dict):
        return set()
    own = {node["_target_"]} if "_target_" in node else set()
    return own.union(*map(targets, node.values()))


def committed() -> set[str]:
    files = [*EXPERIMENTS.glob("*/results/**/*.json")]
    return set().union(*(targets(json.loads(file.read_text())) for file in files))


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_every_entry_names_a_module_that_imports(old, new):
    importlib.import_module(new)
    assert current(f"{old}.Name") == f"{new}.Name"
    assert current(f"{new}.Name") == f"{new}.Name"


def test_every_target_in_committed_results_is_found():
    found = committed()
    assert any(current(target) != target for target in found)
    assert [target for target in found if not callable(locate(current(target)))] == []


def test_moved_targets_are_made_at_any_depth_and_interpolations_resolve(tmp_path):
    config = OmegaConf.create(
        {
            "weight": 2.0,
            "folder": str(tmp_path),
            "objective": {
                "_target_": "diva.objectives.Objective",
                "distill_weight": "${weight}",
                "align_weight": 1.0,
                "distill_from_step": 0,
            },
            "corpora": [
                {"_target_": "diva.data.jsonl.JsonlCorpus", "_partial_": True, "manifests": "${folder}"}
            ],
        }
    )
    assert make(config.objective) == Objective(2.0, 1.0, 0)
    (corpus,) = make(config.corpora)
    assert corpus.func is JsonlCorpus
    assert corpus.keywords == {"manifests": str(tmp_path)}
    assert with_current({"a": [{"_target_": "diva.tpu.strategy"}]}) == {
        "a": [{"_target_": "diva.training.distributed.xla.strategy"}]
    }


def test_a_users_config_of_an_earlier_revision_is_checked_as_one_of_today(tmp_path):
    (tmp_path / "objective").mkdir()
    file = tmp_path / "objective" / "mine.yaml"
    given = "_target_: diva.objectives.Objective\ndistill_weight: 0.5\nalign_weight: 1.0\n"
    file.write_text(f"{given}distill_from_step: 3\n")
    config = check_overrides("train", ["objective=mine"], config_dir=str(tmp_path))
    assert make(config.objective) == Objective(0.5, 1.0, 3)
    file.write_text(f"{given}distil_from_step: 3\n")
    with pytest.raises(UserError, match=r"did you mean 'objective\.distill_from_step'"):
        check_overrides("train", ["objective=mine"], config_dir=str(tmp_path))


def test_a_renamed_key_goes_on_working():
    config = check_overrides("train", ["data.root=x", "data.query_tokens_per_second=8"])
    assert config.model.adapter.tokens_per_second == 8
