"""Every shipped config composes and builds what it names, with tiny models in place of big ones."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from diva.config import CONFIG_DIR, check_overrides
from diva.errors import UserError
from diva.models.build import build
from diva.models.parts import load_tokenizer
from diva.run import make_data, make_module

GROUPS = ("data", "model", "objective", "optimizer", "hardware", "logger", "experiment")
CHOICES = [
    f"{group}={file.stem}"
    for group in GROUPS
    for file in sorted((Path(CONFIG_DIR) / group).glob("*.yaml"))
    if file.stem != "base"  # what the other files of its group share
]


def test_every_group_has_configs():
    assert {choice.split("=")[0] for choice in CHOICES} == set(GROUPS)


@pytest.mark.parametrize("choice", CHOICES)
def test_config_builds_what_it_names(choice, tiny_overrides, tiny_release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    root = tmp_path if choice == "data=jsonl" else tiny_release
    config = check_overrides("train", [choice, *tiny_overrides, f"data.root={root}", "max_steps=3"])
    OmegaConf.set_struct(config, False)
    for logger in (config.logger or {}).values():
        logger.save_dir = str(tmp_path)
        logger.name = "name"
        assert issubclass(type(instantiate(logger)), Logger)
    model_config = instantiate(config.model)
    tokenizer = load_tokenizer(model_config.llm.name)
    data = make_data(config.data, tokenizer, model_config.adapter, tmp_path)
    assert data.batch_size == config.data.batch_size
    module = make_module(config, build(model_config, tokenizer))
    (optimizer,), (schedule,) = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    rates = []
    for _ in range(config.optimizer.warmup_steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] < config.optimizer.lr


def test_the_model_cards_recipe():
    config = check_overrides("train", ["experiment=diva_llama3_8b", "data.root=x"])
    assert config.max_steps == 7000
    assert config.data.batch_size == 512
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.warmup_steps, optimizer.weight_decay) == (5e-5, 70, 0.1)
    assert (list(optimizer.betas), optimizer.gradient_clip) == ([0.9, 0.95], 1.0)
    assert config.model.adapter.num_query_tokens == 448
    assert config.model.encoder.context == "full"
    assert (config.objective.distill_weight, config.objective.align_weight) == (1.0, 1.0)
    assert config.objective.distill_from_step == 0


def test_experiments_open_with_the_command_that_runs_them():
    for file in (Path(CONFIG_DIR) / "experiment").glob("*.yaml"):
        lines = file.read_text().splitlines()
        assert lines[0] == "# @package _global_"
        assert lines[1].startswith("# python -m diva.train")


def test_a_key_without_a_value_is_named():
    with pytest.raises(UserError, match=r"data\.root has no value.*data\.root=VALUE"):
        check_overrides("train", ["data=common_voice"])


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (["data.rot=x"], "data.root"),
        (["optimizer.lrr=1"], "optimizer.lr"),
        (["experiment=minni"], "mini"),
        (["objective.aline_weight=1"], "objective.align_weight"),
        (["+objective.aline_weight=1"], "objective.align_weight"),
        (["sed=1"], "seed"),
        (["+precompute.teacher=1"], "precompute.teacher_states"),
        (["data.batch_size=="], "data.batch_size"),
        (["model.llm.lora.alfa=16"], "model.llm.lora.alpha"),
        (["model.llm.lora={r: 8, alfa: 16}"], "model.llm.lora.alpha"),
    ],
)
def test_misspelt_overrides_name_the_nearest_right_key(wrong, right):
    with pytest.raises(UserError) as caught:
        check_overrides("train", wrong)
    assert right in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_in_a_users_own_experiment(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text(
        "# @package _global_\nmax_steps: 3\ndata:\n  batchsize: 3\n"
    )
    with pytest.raises(UserError, match=r"'data\.batchsize'; did you mean 'data\.batch_size'"):
        check_overrides("train", ["experiment=typo"], config_dir=str(tmp_path))


def test_sweeps_are_checked_by_their_first_choice():
    config = check_overrides("train", ["objective.align_weight=0.5,1", "seed=range(1,3)"])
    assert config.objective.align_weight == 0.5
