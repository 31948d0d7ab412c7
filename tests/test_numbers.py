"""Numbers and switches of the configs: each has a line in one table, and a wrong one is one line and exit code 2."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diva.config import CONFIG_DIR, check_overrides
from diva.config.numbers import NUMBERS
from diva.errors import UserError
from tests.test_start import SLOW, python

GROUPS = {
    "train": (
        "data",
        "data/augment",
        "model",
        "objective",
        "optimizer",
        "hardware",
        "logger",
        "sweep",
        "experiment",
    )
}
GROUPS["evaluate"] = ("task", "system")
# What is null until it is given, and then a text or a mapping.
TEXTS = {
    "resume", "checkpoint_best", "model.start_from", "answers.endpoint", "answers.model",
    "plan.json", "model.llm.system_prompt", "logger.tensorboard.name", "data.locale", "data.subset",
    "data.corpus.locale", "data.corpus.name", "predictions", "report", "whisper", "system.dtype", "system.llm",
    "data.augment.noise.folder", "data.augment.reverberation.folder", "data.teacher_text",
    "data.wordnet", "data.corpus.wordnet", "model.llm.lora.target_modules",
    "model.encoder.dtype", "model.adapter.decoder", "system.encoder_dtype",
    "system.model", "system.encoder", "system.whisper", "task.corpus", "task.split", "task.group", "task.separator",
    "task.system_prompt", "task.question", "task.labels", "task.variant", "task.reference", "task.corpus.list_field",
}  # fmt: skip


def composed():
    for name, groups in GROUPS.items():
        needed = {"train": ["data.root=x", "max_steps=1"], "evaluate": ["system.model=x"]}[name]
        for group in groups:
            for file in sorted((Path(CONFIG_DIR) / group).glob("*.yaml")):
                if file.stem != "base":
                    own = [] if group == "system" and file.stem == "predictions" else needed
                    own = [*own, "data.parts.a={corpus: hub, limit: null}"] if file.stem == "mixture" else own
                    yield pytest.param(name, [f"{group}={file.stem}", *own], id=f"{group}={file.stem}")


def leaves(node, path=""):
    if isinstance(node, dict):
        for key, child in node.items():
            if not str(key).startswith("_"):
                yield from leaves(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list) and not any(isinstance(child, (int, float)) for child in node):
        for child in node:
            yield from leaves(child, f"{path}.*")
    else:
        yield path, node


def resolved(config, key, value):
    """What a reference stands for; where only a run can tell, it is a text."""
    if "${" not in str(value):
        return value
    try:
        found = OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return value
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


@pytest.mark.parametrize(("name", "overrides"), composed())
def test_every_number_switch_and_null_of_every_config_is_in_the_table(name, overrides):
    config = check_overrides(name, overrides)
    found = {key: resolved(config, key, value) for key, value in leaves(OmegaConf.to_container(config))}
    free = "model.llm.template_kwargs."  # a chat template's variables are of any kind
    found = {re.sub(r"^data\.parts\.[^.]+", "data.parts.*", key): value for key, value in found.items()}
    numbers = {
        key
        for key, value in found.items()
        if isinstance(value, int | float | list) and not key.startswith(free)
    }
    assert numbers <= NUMBERS.keys()
    assert {key for key, value in found.items() if value is None} <= TEXTS | NUMBERS.keys()


WRONG = [
    ("val_every=0", "a whole number at least 1"),
    ("data.batch_size=0", "a whole number at least 1"),
    ("data.batch_size=2.5", "a whole number at least 1"),
    ("data.batch_size=true", "a whole number at least 1"),
    ("data.num_workers=-1", "a whole number at least 0"),
    ("seed=-1", "a whole number at least 0 and at most 4294967295"),
    ("seed=4294967296", "at most 4294967295"),
    ("seed=null", "a whole number at least 0"),
    ("optimizer.lr=abc", "a number at least 0"),
    ("optimizer.lr=nan", "a number at least 0"),
    ("optimizer.lr=inf", "a number at least 0"),
    ("optimizer.algorithm.lr=-1", "a number at least 0"),
    ("optimizer.betas=[0.9]", "a list of 2, each a number at least 0 and below 1"),
    ("optimizer.betas=[0.9,1.0]", "below 1"),
    ("max_steps=-5", "a whole number at least 1"),
    ("optimizer.warmup_steps=-1", "a whole number at least 0"),
    ("objective.distill_weight=abc", "a number at least 0"),
    ("hardware.micro_batch_size=0", "a whole number at least 1"),
    ("hardware.devices=0", "a whole number at least 1"),
    ("hardware.devices=two", "a whole number at least 1"),
    ("log_every=0", "a whole number at least 1"),
    ("checkpoint_every=0", "a whole number at least 1"),
    ("sample_responses=-1", "a whole number at least 0"),
    ("precompute.teacher_states=maybe", "true or false"),
    ("data.max_train_clips=0", "a whole number at least 1 or null"),
    ("model.llm.lora.r=0", "a whole number at least 1 or null"),
    ("model.llm.lora.alpha=0", "a number above 0"),
    ("data.augment.noise.probability=1.5", "a number at least 0 and at most 1"),
    ("data.augment.noise.snr=[20.0,0.0]", "a list of 2, the smaller first, each a number at least -30"),
    ("data.augment.speed.factor=[0.1,1.1]", "at least 0.5 and at most 2"),
    ("plan.mfu=1.5", "a number above 0 and at most 1 or null"),
]


@pytest.mark.parametrize(("wrong", "allowed"), WRONG)
def test_a_number_out_of_its_range_names_key_value_and_what_is_allowed(wrong, allowed):
    key, _, value = wrong.partition("=")
    with pytest.raises(UserError) as caught:
        check_overrides("train", [wrong])
    shown = value.replace(",", ", ").replace("true", "True")
    assert str(caught.value).startswith(f"{key}={shown} must be ")
    assert allowed in str(caught.value)


@pytest.mark.parametrize(
    "right",
    [
        "hardware.devices=-1", "hardware.devices=auto", "hardware.devices=[0,1]", "hardware.devices='0,1'", "seed=0",
        "optimizer.lr=1", "optimizer.lr=0", "data.max_val_clips=null", "data.val_batch_size=${data.batch_size}",
    ],
)  # fmt: skip
def test_values_in_their_range_pass(right):
    check_overrides("train", [right])


def test_what_a_reference_stands_for_is_checked():
    with pytest.raises(UserError, match=r"^data\.batch_size=0 must be"):
        check_overrides("train", ["data.batch_size=${sample_responses}", "sample_responses=0"])


@pytest.mark.parametrize(
    ("command", "wrong"),
    [("train", "val_every=0"), ("plan", "seed=-1"), ("evaluate", "batch_size=0"), ("train", "-m seed=-1,2")],
)
def test_a_wrong_number_is_one_line_and_exit_code_2_before_anything_is_loaded(command, wrong, tmp_path):
    needed = ["system.model=x"] if command == "evaluate" else []
    done, imported = python(tmp_path, "-m", f"diva.{command}", *needed, *wrong.split())
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, len(said)) == (2, 1), said
    assert said[0].startswith("diva: ")
    assert "must be a whole number" in said[0]
    assert not imported & SLOW
    assert not list(tmp_path.glob("runs/*"))
