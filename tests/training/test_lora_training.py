"""Runs with LoRA on the LLM: what they train, save and resume, what they cost, and where they are refused."""

from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from tiny import as_if_trained

from diva.config import check_overrides
from diva.errors import UserError
from diva.models.build import build
from diva.models.parts import load_tokenizer
from diva.plan import compose
from diva.planning.counting import Batch, Work, count_flops
from diva.planning.memory import resident
from diva.planning.run import Run
from diva.run import make_data, make_module
from diva.training.distributed.checks import check_settings
from diva.training.model_card import _introduction, _lora_recipe
from diva.training.module import DivaTraining
from diva.training.results import sample_responses

LORA = ["model.llm.lora.r=2", "objective.distill_from_step=0", "optimizer.warmup_steps=0", "max_steps=4"]
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


def test_the_plan_counts_its_weights_and_their_products():
    """Of the 8 B model: 41.9 M in rank 16 on all linear layers."""
    overrides = ["experiment=diva_llama3_8b", "hardware=gpu_ddp", NO_DATA]
    plain, lora = (Run(compose([*overrides, *more])) for more in ([], ["model.llm.lora.r=16"]))
    width, inner, keys, rank, layers = 4096, 14_336, 1024, 16, 32
    sides = 2 * (width + width) + 2 * (width + keys) + 3 * (width + inner)
    parameters = layers * rank * sides
    assert parameters == 41_943_040
    assert lora.weights.lora == 4 * parameters
    assert lora.weights.lora_optimizer == pytest.approx(8 * parameters, rel=1e-3)
    assert (lora.weights.llm, lora.weights.adapter) == (plain.weights.llm, plain.weights.adapter)
    assert (plain.weights.lora, plain.weights.lora_optimizer) == (0, 0)
    lines, without = resident(lora), resident(plain)
    assert lines["gradients"] - without["gradients"] == 4 * parameters
    more = sum(lines.values()) - sum(without.values())
    assert more == pytest.approx(5 * 4 * parameters, rel=0.01)  # weights, gradients, buckets, two moments
    batch = Batch(1, 16_000 * 30, 20, 20)
    flops, before = (count_flops(run.model, run.parts, batch, run.work) for run in (lora, plain))
    suffix, prefix = 4, 5
    frozen = layers * (2 * width * width + 2 * width * keys + 3 * width * inner)
    for stage, passes in (("student", 1), ("student, backward", 2)):
        # The prefix is read by the student at each step, and the backward pass goes through it.
        product = 2 * (parameters * passes * (prefix + 448 + suffix) + frozen * prefix)
        assert flops[stage] - before[stage] == pytest.approx(product, rel=0.05)
    assert flops["teacher"] == before["teacher"]


def test_a_steps_memory_grows_by_what_its_backward_pass_needs(tiny_overrides, tiny_release):
    overrides = [*tiny_overrides, "data=common_voice", f"data.root={tiny_release}", "data.batch_size=4"]
    plain, lora = (Run(compose([*overrides, f"model.llm.lora.r={r}"])) for r in ("null", 2))
    assert max(lora.training_bytes.values()) > max(plain.training_bytes.values())
    assert isinstance(lora.work, Work)


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
    config = compose(["model.llm.lora={r: 8, alpha: 4, target_modules: [q_proj, v_proj]}"])
    assert _lora_recipe(config) == "rank 8, alpha 4, q_proj, v_proj"
    assert "pip install peft" in _introduction(config, "x", "y")
    assert _lora_recipe(compose([])) == "none"
    assert "LoRA" not in _introduction(compose([]), "x", "y")
    del config.model.llm.lora  # a run of an earlier revision
    assert _lora_recipe(config) == "none"
