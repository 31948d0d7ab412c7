"""Runs with LoRA on the LLM: what they train, save and resume, what they cost, and where they are refused."""

from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from tiny import as_if_trained, make_model

from diva.config import check_overrides
from diva.errors import UserError
from diva.models.build import build
from diva.models.configuration import LoraConfig
from diva.models.llm import decoder
from diva.models.lora import lora_state
from diva.models.parts import load_tokenizer
from diva.models.skeleton import architecture
from diva.plan import compose
from diva.planning.counting import Batch, Work, _count, fake_tensors
from diva.planning.memory import resident
from diva.planning.run import Run
from diva.run import make_data, make_module
from diva.training.distributed.checks import check_settings
from diva.training.model_card import _introduction, _lora_recipe
from diva.training.module import DivaTraining
from diva.training.results import sample_responses

LORA = [
    "model.llm.lora={r: 2, target_modules: [q_proj, down_proj]}",
    "objective.distill_from_step=0",
    "optimizer.warmup_steps=0",
    "max_steps=4",
]
NO_DATA = "data.root=/no/such/folder"


@pytest.fixture
def given(tiny_run, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    return [*tiny_run, *LORA]


def made(overrides: list[str], folder) -> tuple[DivaTraining, object]:
    config = check_overrides("train", overrides)
    model_config = instantiate(config.model)
    tokenizer = load_tokenizer(model_config.llm.name)
    torch.manual_seed(0)
    model = build(model_config, tokenizer)
    return make_module(config, model), make_data(config.data, tokenizer, model_config.adapter, folder)


def train(
    overrides: list[str], folder, steps: int, checkpoint=None, **options
) -> tuple[DivaTraining, Trainer]:
    """A run in this process that ends after so many steps; it resumes from `checkpoint`."""
    module, data = made(overrides, folder)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        use_distributed_sampler=False, default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return module, trainer


def trained(module: DivaTraining) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in module.model.named_parameters() if p.requires_grad}


def test_a_checkpoint_has_what_is_trained_alone_and_resumes_to_the_bit(given, tmp_path):
    whole, _ = train(given, tmp_path, 4)
    half, trainer = train(given, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    found = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert found["state_dict"].keys() == {f"model.{name}" for name in trained(half)}
    assert len(found["optimizer_states"][0]["state"]) == len(trained(half))
    resumed, _ = train(given, tmp_path, 4, tmp_path / "last.ckpt")
    for name, value in trained(whole).items():
        assert torch.equal(trained(resumed)[name], value), name
    assert not any(torch.equal(value, trained(half)[name]) for name, value in trained(whole).items())
    with pytest.raises(UserError, match=r"another adapter: missing keys \[\], unexpected keys .*lora_A"):
        train([*given, "model.llm.lora.r=null"], tmp_path, 4, tmp_path / "last.ckpt")


def test_gradients_are_clipped_together(given, tmp_path):
    module, _ = made([*given, "optimizer.gradient_clip=0.5"], tmp_path)
    weights = module.model.trained_parameters()
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    module.on_before_optimizer_step(None)
    assert float(torch.cat([w.grad.flatten() for w in weights]).norm()) == pytest.approx(0.5, rel=1e-4)


@contextmanager
def one_rank(folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_ddp_aligns_first_as_one_device_does(given, tmp_path):
    """DDP waits for gradients of all that is trained, and a step that only aligns does not run the LLM."""
    change = [*given, "objective.distill_from_step=2"]
    alone, _ = train(change, tmp_path, 4)
    with one_rank(tmp_path):
        together, _ = train(change, tmp_path, 4, strategy=DDPStrategy(process_group_backend="gloo"))
    for name, value in trained(alone).items():
        torch.testing.assert_close(trained(together)[name], value, msg=name)


def test_sample_responses_are_the_teachers_without_lora_and_the_students_with_it(given, tmp_path):
    module, data = made(given, tmp_path)
    data.setup("fit")
    before = sample_responses(module, data, 2)
    as_if_trained(module.model)
    after = sample_responses(module, data, 2)
    assert [row[:2] for row in after] == [row[:2] for row in before]
    assert [row[2] for row in after] != [row[2] for row in before]


# ---- what it costs


def test_the_plan_counts_the_weights_of_the_8b_model():
    """41.9 M in rank 16 on all linear layers; gradients, DDP's buckets and two moments are as large."""
    run = Run(compose(["experiment=diva_llama3_8b", "hardware=gpu_ddp", NO_DATA, "model.llm.lora.r=16"]))
    width, inner, keys, layers = 4096, 14_336, 1024, 32
    parameters = 16 * layers * (2 * (width + width) + 2 * (width + keys) + 3 * (width + inner))
    assert parameters == 41_943_040
    assert run.weights.lora == 4 * parameters
    assert run.weights.lora_optimizer == pytest.approx(8 * parameters, rel=1e-3)
    assert run.weights.llm == 2 * 8_030_261_248
    assert run.weights.prefix_cache == 5 * 2 * 32 * 8 * 128 * 2  # the teacher's
    lines = resident(run)
    assert lines["LoRA"] == 4 * parameters
    for name in ("gradients", "gradient buckets of DDP"):
        assert lines[name] == run.weights.adapter + 4 * parameters
    assert lines["optimizer state"] == run.weights.optimizer + run.weights.lora_optimizer


def test_the_plan_counts_a_step(tiny_whisper, tiny_llm):
    """The matrices' products, and the prefix, which the student reads at each step with a gradient."""
    batch, work, counted = Batch(2, 32_000, 9, 9), Work(autocast=None), []
    for lora in (None, LoraConfig(r=4)):
        config = make_model(tiny_whisper, tiny_llm, lora=lora).config
        with fake_tensors():
            counted.append(_count(config, architecture(config), batch, work))
    model = make_model(tiny_whisper, tiny_llm, lora=LoraConfig(r=4))
    linear = [layer for layer in decoder(model.llm).layers.modules() if isinstance(layer, torch.nn.Linear)]
    matrices = sum(weight.numel() for weight in lora_state(model.llm).values())
    frozen = sum(layer.weight.numel() for layer in linear) - matrices
    prefix, read = len(model.prefix_ids), 2 * (12 + len(model.suffix_ids))
    attention = 4 * prefix**2 * 32 * 3  # of 3 layers of width 32
    (before, held_before), (after, held) = counted
    forward = 2 * (matrices * (prefix + read) + frozen * prefix) + attention
    assert after["student"] - before["student"] == forward
    # Gradients of matrices and of their inputs. The prefix has none in part of the first and of the last layer.
    backward = after["student, backward"] - before["student, backward"]
    assert (
        4 * matrices * read < backward < 4 * matrices * (prefix + read) + 2 * frozen * prefix + 3 * attention
    )
    assert after["teacher"] == before["teacher"]
    assert held["student"] > held_before["student"]


# ---- where it is refused, and what the card says


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["hardware=gpu_fsdp"], r"not supported on a hardware config that shards .* take hardware=gpu_ddp"),
        (["hardware=tpu_v4_256"], r"not supported on a TPU: set model\.llm\.lora\.r=null"),
        (["objective=align_only"], r"trained by distillation only: set objective\.distill_weight above 0"),
    ],
)
def test_where_it_cannot_be_trained_is_one_line(change, said):
    config = compose([*change, "model.llm.lora.r=4", "sample_responses=0", "optimizer.algorithm.fused=false"])
    with pytest.raises(UserError, match=said) as error:
        check_settings(config)
    assert "\n" not in str(error.value)
    config.model.llm.lora = None
    check_settings(config)


def test_the_model_card_names_it_and_what_it_needs():
    config = compose(["name=x", "model.llm.lora={r: 8, alpha: 4, target_modules: [q_proj, v_proj]}"])
    assert _lora_recipe(config) == "rank 8, alpha 4, q_proj, v_proj"
    assert "pip install peft" in _introduction(config, "x", "y")
    assert _lora_recipe(compose([])) == "none"
    assert "LoRA" not in _introduction(compose(["name=x"]), "x", "y")
    del config.model.llm.lora  # a run of an earlier revision
    assert _lora_recipe(config) == "none"
