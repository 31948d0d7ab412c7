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
# What a choice cannot be composed without.
NEEDED = {"data=mixture": ["data.parts.en.corpus=common_voice", "data.parts.spoken.corpus=spoken_mini"]}


def test_every_group_has_configs():
    assert {choice.split("=")[0] for choice in CHOICES} == set(GROUPS)


@pytest.mark.parametrize("choice", CHOICES)
def test_config_builds_what_it_names(choice, tiny_overrides, tiny_release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    root = tmp_path if choice == "data=jsonl" else tiny_release
    needed = [*NEEDED.get(choice, []), f"data.root={root}", "max_steps=3"]
    config = check_overrides("train", [choice, *tiny_overrides, *needed])
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


# -- parts of a mixture ---------------------------------------------------------------------------------------------

EN = "data.parts.en={corpus: common_voice, root: /d/cv, locale: en, weight: 2}"


def parts_of(*overrides: str) -> dict:
    config = check_overrides("train", ["data=mixture", *overrides])
    return OmegaConf.to_container(config.data, resolve=True)["corpus"]["parts"]


def test_a_part_is_given_whole_or_key_by_key():
    whole = parts_of(EN)
    keys = {"corpus": "common_voice", "root": "/d/cv", "locale": "en", "weight": 2}
    assert parts_of(*(f"data.parts.en.{key}={value}" for key, value in keys.items())) == whole
    assert whole["en"] == {
        "_target_": "diva.data.mixture.Part",
        "corpus": {
            "_target_": "diva.data.corpora.common_voice.CommonVoice",
            "root": "/d/cv",
            "locale": "en",
            "max_seconds": 30.0,
            "_partial_": True,
        },
        "train_split": "train",
        "weight": 2,
        "limit": None,
    }


def test_parts_of_an_experiment_are_changed_added_and_removed():
    changes = ["data.parts.de.limit=5", "data.parts.it.corpus=jsonl", "~data.parts.spoken"]
    config = check_overrides("train", ["experiment=cv_mixture", "data.root=/d/cv", *changes])
    parts = config.data.corpus.parts
    assert list(parts) == ["en", "de", "fr", "it"]
    assert [parts["de"]["limit"], parts["de"]["weight"], parts["it"]["limit"]] == [5, 2, None]
    # The mixture's root is that of the parts that give none.
    assert [parts["de"]["corpus"]["root"], parts["it"]["corpus"]["manifests"]] == ["/d/cv"] * 2


def test_validations_are_named_after_their_parts():
    spoken, none = (
        "data.parts.sp.corpus=spoken_mini",
        "data.parts.x={corpus: jsonl, root: r, val_splits: null}",
    )
    own = "data.parts.de={corpus: hub, root: r, val_splits: {val: test}}"
    config = check_overrides("train", ["data=mixture", EN, spoken, none, own])
    assert dict(config.data.val_splits) == {
        "val_en": "en/dev",
        "val_sp": "sp/dev",
        "val_de": "de/test",
        "val_unseen_voice_sp": "sp/unseen_voice",
    }
    assert config.data.pooled_val == {
        "val": ["val_en", "val_sp", "val_de"],
        "val_unseen_voice": ["val_unseen_voice_sp"],
    }


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            "data.parts.en.wieght=2",
            "there is no key 'data.parts.en.wieght'; did you mean 'data.parts.en.weight'?",
        ),
        ("data.parts.en.batch_size=2", "there is no key 'data.parts.en.batch_size'"),
        ("data.parts.en.text_column=x", "there is no key 'data.parts.en.text_column'"),
        (
            "data.parts.de.corpus=comon_voice",
            "there is no data.parts.de.corpus=comon_voice; there are: common_voice",
        ),
        ("data.parts.de.corpus=mixture", "there is no data.parts.de.corpus=mixture"),
        ("data.parts.de.locale=de", "data.parts.de.corpus has no value"),
        ("data.parts.de.corpus=common_voice", "data.parts.de.root has no value"),
        ("data.parts.de=jsonl", "data.parts.de=jsonl must be a mapping"),
        ("data.parts.en.weight=0", "data.parts.en.weight=0 must be a number above 0"),
        ("data.parts.en.weight=much", "data.parts.en.weight=much must be a number above 0"),
        ("data.parts.en.limit=0", "data.parts.en.limit=0 must be a whole number at least 1 or null"),
        ("data.parts.en.max_seconds=0", "data.parts.en.max_seconds=0 must be"),
        ("data.parts.en.val_splits=dev", "data.parts.en.val_splits=dev must be a mapping"),
        ("data.parts.en.val_splits=null", "no part of the mixture is validated on"),
        ("data.part.en.weight=2", "'data.part.en.weight'"),
        ("data=jsonl", "data.parts are those of a mixture: choose data=mixture"),
        ("~data.parts.en", "a mixture needs parts"),
        (
            "data.parts={unseen_voice: {corpus: jsonl, root: r}, sp: {corpus: spoken_mini}}",
            "two validations of the mixture are named 'val_unseen_voice'",
        ),
        ("data.parts={a/b: {corpus: jsonl, root: r}}", "the name of a part has letters"),
    ],
)
def test_a_wrong_part_is_one_line_before_anything_is_loaded(wrong, said):
    with pytest.raises(UserError) as caught:
        check_overrides("train", ["data=mixture", EN, wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sweep_over_the_weight_of_a_part_is_checked_by_its_first_choice():
    config = check_overrides("train", ["data=mixture", EN, "data.parts.en.weight=3,4"])
    assert config.data.parts.en.weight == 3


def test_a_part_longer_than_a_window_is_refused_by_its_name(tiny_overrides, tmp_path):
    config = check_overrides("train", ["data=mixture", EN, "data.parts.en.max_seconds=31", *tiny_overrides])
    with pytest.raises(UserError, match=r"data\.parts\.en\.max_seconds=31: Whisper hears 30 s"):
        make_data(config.data, None, None, tmp_path)
