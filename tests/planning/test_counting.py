"""Counts of a step, compared with published numbers, direct counts and real runs."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import diva.planning.calibration
from diva.models.configuration import DivaConfig, LLMConfig
from diva.models.prompts import user_turn
from diva.models.skeleton import assemble
from diva.plan import compose
from diva.planning.counting import (
    Batch,
    Tally,
    Work,
    _count,
    _tally,
    attention_on,
    count_bytes,
    count_flops,
    fake_tensors,
    prepare,
    step,
)
from diva.planning.run import Run

NO_DATA = "data.root=/no/such/folder"


@pytest.fixture(scope="module")
def big():
    """The paper's model with a micro-batch of its recipe."""
    return Run(compose(["experiment=diva_llama3_8b", "hardware=gpu_ddp", NO_DATA]))


def test_parameters_are_those_published(big):
    assert big.weights.llm == 2 * 8_030_261_248
    assert big.weights.whisper_parameters == 1_543_490_560
    assert big.weights.encoder == 2 * 636_968_960
    # Layers of Whisper's decoder (self- and cross-attention, MLP, norms), queries and positions, norm, projection.
    layer = 2 * (4 * 1280**2 + 3 * 1280) + 2 * 1280 * 5120 + 5120 + 1280 + 3 * 2 * 1280
    assert big.weights.adapter == 4 * (32 * layer + 2 * 448 * 1280 + 2 * 1280 + 1280 * 4096 + 4096)
    assert big.weights.optimizer == pytest.approx(2 * big.weights.adapter, rel=1e-6)
    assert (
        big.weights.prefix_cache == 5 * 2 * 32 * 8 * 128 * 2
    )  # tokens, keys and values, layers, heads, width, bytes
    small = Run(compose(["experiment=diva_llama32_1b", NO_DATA]))
    assert small.weights.llm == 2 * 1_235_814_400


@pytest.mark.parametrize(
    ("text_width", "tokens", "teacher"), [(20, 20, 0.35), (448, 448, 6.4)], ids=["trimmed", "padded"]
)
def test_flops_of_the_8b_model_are_those_of_the_arithmetic(big, text_width, tokens, teacher):
    flops = count_flops(big.model, big.parts, Batch(1, 16_000 * 30, tokens, text_width), big.work)
    assert flops["encoder"] / 1e12 == pytest.approx(2.3, rel=0.03)
    # By hand 3.3, as if the backward pass also went on to the frozen frames' keys and values.
    assert (flops["adapter"] + flops["adapter, backward"]) / 1e12 == pytest.approx(3.3, rel=0.07)
    assert (flops["student"] + flops["student, backward"]) / 1e12 == pytest.approx(12.8, rel=0.03)
    assert flops["teacher"] / 1e12 == pytest.approx(teacher, rel=0.03)


@pytest.fixture(scope="module")
def small(tiny_llm, tiny_whisper, tiny_release):
    """Tiny models and a corpus at hand."""
    return Run(
        compose(
            [
                f"model.llm.name={tiny_llm}",
                f"model.encoder.name={tiny_whisper}",
                "model.adapter.num_query_tokens=48",
                "data=common_voice",
                f"data.root={tiny_release}",
                "data.batch_size=4",
            ]
        )
    )


WORKS = {
    "both": Work(),
    "alignment": Work(distills=False),
    "tables": Work(frames_at_hand=True, teacher_at_hand=True, accumulates=False),
    "validation": Work(trains=False, accumulates=False),
    "recomputing": Work(recomputes=True),
    "bfloat16": Work(autocast=None, adapter_dtype=torch.bfloat16),
    "gpu": Work(accelerator="gpu"),
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS.keys())
def test_counts_of_shallow_models_tell_those_of_a_deep_one(small, work):
    parts = small.parts.with_layers((4, 5, 7))
    batch = Batch(3, 40_000, 9, 48)
    with fake_tensors(), attention_on(work.accelerator):
        flops, held = _count(small.model, parts, batch, work)
    assert count_flops(small.model, parts, batch, work) == pytest.approx(flops)
    assert count_bytes(small.model, parts, batch, work) == pytest.approx(held, rel=0.01)


@pytest.mark.parametrize("work", [Work(), Work(trains=False)], ids=["training", "validation"])
def test_fake_tensors_take_as_much_as_real_ones(small, work):
    batch = Batch(3, 40_000, 9, 48)
    with fake_tensors():
        flops, held = _count(small.model, small.parts, batch, work)
    real_flops, real_held = _tally(prepare(small.model, small.parts, work), batch, work)
    assert real_flops == flops
    assert real_held == pytest.approx(held, rel=0.01)


def test_a_model_that_was_counted_before_counts_the_same(small):
    """A step leaves gradients behind."""
    batch, count = Batch(3, 40_000, 9, 48), partial(_count, small.model, small.parts)
    works = [WORKS["both"], replace(WORKS["both"], accumulates=False)]
    with fake_tensors():
        fresh = [_tally(prepare(small.model, small.parts, work), batch, work) for work in works]
        again = [count(batch, work) for work in (*works, works[0])]
    assert again == [*fresh, fresh[0]]


def test_virtual_tokens_that_are_not_read_are_not_counted(small):
    batch, work = Batch(3, 40_000, 9, 48), WORKS["both"]  # 40,000 samples are 2.5 s: 20 virtual tokens
    adapters = {
        "read": replace(small.model.adapter, tokens_per_second=8.0),
        "fewer": replace(small.model.adapter, num_query_tokens=20),
    }
    flops = {}
    for name, adapter in adapters.items():
        config = DivaConfig(small.model.encoder, adapter, small.model.llm)
        flops[name] = count_flops(config, small.parts, batch, work)
    assert flops["read"]["student"] == flops["fewer"]["student"]
    assert flops["read"]["student, backward"] == flops["fewer"]["student, backward"]
    assert flops["read"]["adapter"] > flops["fewer"]["adapter"]


def test_tally_knows_what_lives_and_what_lived():
    with Tally(tokens=3) as tally:
        first = torch.zeros(1000)
        second = first.view(10, 100) + 1
        assert tally.bytes == 8000
        del first
        assert tally.bytes == 4000
        second @ second.T
        second.mul_(2)
        assert tally.bytes == 4000
    assert tally.peak == 8000
    assert tally.flops == 2 * 10 * 100 * 10


def test_tally_tells_how_long_transcripts_are():
    with fake_tensors(), Tally(tokens=7):
        assert int(torch.zeros(4, dtype=torch.long).max()) == 7


def test_the_students_activations_are_what_autograd_keeps(small):
    """What is live between the forward and the backward pass, weighed by autograd's own hooks on real tensors."""
    model = assemble(small.model, small.parts)
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def weigh(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch, marks = Batch(8, 40_000, 9, 48), []
    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        step(model, batch, Work(distills=False), marks.append)
    assert marks == ["encoder", "adapter", "alignment", "student, backward", "adapter, backward"]
    held = count_bytes(small.model, small.parts, batch, Work(distills=False))["alignment"]
    assert sum(kept.values()) <= held <= 1.2 * sum(kept.values())


def test_a_model_is_made_on_one_device(small):
    model = assemble(small.model, small.parts, device=torch.device("meta"))
    elsewhere = [name for name, x in [*model.named_parameters(), *model.named_buffers()] if not x.is_meta]
    assert elsewhere == []


def test_a_prompt_with_words_beyond_the_timed_vocabulary(tiny_llm, small, monkeypatch):
    config = DivaConfig(
        small.model.encoder, small.model.adapter, LLMConfig(str(tiny_llm), system_prompt="be brief")
    )
    prompt = user_turn(small.parts.tokenizer, "be brief")
    monkeypatch.setattr(diva.planning.calibration, "_VOCABULARY", max(prompt.suffix_ids))
    seen = []
    monkeypatch.setattr(
        diva.planning.calibration,
        "prepare",
        lambda *given, prepare=prepare: seen.append(prepare(*given)) or seen[-1],
    )
    optimizer = partial(torch.optim.AdamW, lr=1e-4)
    given = Batch(2, 40_000, 9, 48), Work(accumulates=False), torch.device("cpu"), optimizer, 1.0
    seconds = diva.planning.calibration.stage_seconds(config, small.parts, *given)
    assert {"student", "teacher", "optimizer"} <= seconds.keys()
    for model in seen:
        assert len(model.prefix_ids) == len(prompt.prefix_ids)
        assert len(model.suffix_ids) == len(prompt.suffix_ids)
