"""What has to hold on a CUDA device; the whole suite's other tests run on the CPU. Skipped where there is none."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command, losses
from steps import batch_of, both_losses, learn
from tiny import make_model, noise

from diva.data.batch import SpeechBatch
from diva.models.modeling import DivaForConditionalGeneration
from diva.training.distributed.compilation import compile_layers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def on_cpu(tiny_whisper: Path, tiny_llm: Path) -> DivaForConditionalGeneration:
    return make_model(tiny_whisper, tiny_llm, 5)


@pytest.fixture(scope="module")
def on_gpu(on_cpu: DivaForConditionalGeneration) -> DivaForConditionalGeneration:
    return copy.deepcopy(on_cpu).to(CUDA)


@pytest.fixture
def batch() -> SpeechBatch:
    return batch_of(0.7, 1.5, 2.1)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share: float) -> None:
    """Each gradient within this share of the largest of all."""
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=share * largest, msg=name)


def test_losses_and_gradients_are_those_of_the_cpu(on_cpu, on_gpu, batch):
    (loss, found), (expected_loss, expected) = learn(on_gpu, batch), learn(on_cpu, batch)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert_close(found, expected, 1e-3)


def test_autocast_in_bfloat16_stays_near_float32(on_gpu, batch):
    expected = float(sum(both_losses(on_gpu, batch)))
    with torch.autocast("cuda", torch.bfloat16):
        v = on_gpu.virtual_tokens(*(x.to(CUDA) for x in (batch.waveforms, batch.samples)))
        assert v.dtype == torch.bfloat16
        found = float(sum(both_losses(on_gpu, batch)))
    assert found == pytest.approx(expected, rel=0.05)
    assert found != expected


def test_compiled_losses_and_gradients_are_the_uncompiled_ones(on_gpu, batch):
    compiled = copy.deepcopy(on_gpu)
    compile_layers(compiled)
    (loss, found), (expected_loss, expected) = learn(compiled, batch), learn(on_gpu, batch)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_close(found, expected, 1e-4)


def test_greedy_answers_are_those_of_the_cpu_and_of_single_clips(on_cpu, on_gpu):
    clips = [noise(seconds, seed) for seed, seconds in enumerate((0.6, 1.9, 1.1))]

    def answer(model: DivaForConditionalGeneration, some: list[np.ndarray]) -> list[list[int]]:
        inputs = model.processor.spoken_turns(some, [None] * len(some)).to(model.prefix_ids.device)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=12, min_new_tokens=12)
        return ids[:, -12:].tolist()

    together = answer(on_gpu, clips)
    assert together == answer(on_cpu, clips)
    assert together == [answer(on_gpu, [clip])[0] for clip in clips]


def test_a_pinned_batch_arrives_whole(batch):
    pinned = batch.pin_memory()
    assert pinned.waveforms.is_pinned()
    moved = pinned.to(CUDA)
    torch.cuda.synchronize()
    for name in ("waveforms", "samples", "token_ids", "tokens", "clips"):
        assert torch.equal(getattr(moved, name).cpu(), getattr(batch, name)), name


def test_fused_adamw_steps_as_the_plain_one(on_gpu, batch):
    states = []
    for fused in (False, True):
        model = copy.deepcopy(on_gpu)
        optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1e-3, weight_decay=0.1, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            sum(both_losses(model, batch)).backward()
            optimizer.step()
        states.append({name: weight.detach() for name, weight in model.adapter.named_parameters()})
    for name, weight in states[0].items():
        torch.testing.assert_close(states[1][name], weight, rtol=1e-4, atol=1e-6, msg=name)


# ---- whole runs


@pytest.fixture
def train(tiny_run, shared_cache, tmp_path):
    """Runs diva.train on the first GPU; its losses by step."""

    def start(folder: str, *given: str) -> dict[int, tuple[str, ...]]:
        exact = ["hardware.precision=32-true", "model.frozen_dtype=float32", "objective.distill_from_step=0"]
        few = ["max_steps=6", "val_every=6", "checkpoint_every=3", "sample_responses=2"]
        run = f"hydra.run.dir={tmp_path / folder}"
        done = Command(
            "diva.train", *tiny_run, *exact, *few, run, *given,
            cache=shared_cache, cwd=tmp_path, CUDA_VISIBLE_DEVICES="0",
        ).wait(200)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return losses(tmp_path / folder)

    return start


def numbers(rows: dict[int, tuple[str, ...]]) -> list[float]:
    return [float(value) for _, row in sorted(rows.items()) for value in row]


@pytest.mark.integration
def test_a_run_on_the_gpu_loses_what_one_on_the_cpu_loses(train):
    on_gpu, on_cpu = train("gpu", "hardware=gpu"), train("cpu", "hardware=cpu")
    assert len(on_gpu) == 6
    assert numbers(on_gpu) == pytest.approx(numbers(on_cpu), rel=1e-3)


@pytest.mark.integration
def test_ddp_of_one_process_is_a_run_without_it(train):
    assert numbers(train("ddp", "hardware=gpu_ddp")) == pytest.approx(
        numbers(train("one", "hardware=gpu")), rel=1e-5
    )


@pytest.mark.integration
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(train, tmp_path):
    whole = train("whole", "hardware=gpu")
    train("half", "hardware=gpu", "max_steps=3", "val_every=3", "optimizer.schedule.num_training_steps=6")
    resumed = train("half", f"resume={tmp_path / 'half'}", "max_steps=6")
    assert numbers(resumed) == pytest.approx(numbers(whole), rel=1e-5)
