"""The step that trains is the step that is counted, timed and benchmarked."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from test_training import fit
from tiny import noise

from benchmarks.measure import Parts
from benchmarks.step import OurTraining, Variant
from diva.audio.frames import pad_clips
from diva.data.batch import SpeechBatch
from diva.models.build import build
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.parts import load_tokenizer
from diva.models.skeleton import architecture
from diva.planning import counting
from diva.planning.calibration import stage_seconds
from diva.planning.counting import Batch, Work, count_bytes, count_flops
from diva.training import step
from diva.training.frozen import FrozenParts
from diva.training.losses import Objective
from diva.training.measures import MEASURES

FORWARD = ["encoder", "adapter", "alignment", "student", "teacher"]
STAGES = [*FORWARD, "distance", "student, backward"]


@pytest.fixture
def config(tiny_whisper: Path, tiny_llm: Path) -> DivaConfig:
    return DivaConfig(
        EncoderConfig(str(tiny_whisper)),
        AdapterConfig(num_query_tokens=12, projection_init="embeddings"),
        LLMConfig(str(tiny_llm)),
        frozen_dtype="float32",
    )


@pytest.fixture
def model(config: DivaConfig) -> DivaForConditionalGeneration:
    torch.manual_seed(0)
    return build(config, load_tokenizer(config.llm.name))


@pytest.fixture
def batch() -> SpeechBatch:
    waveforms, samples = pad_clips([noise(seconds, seed) for seed, seconds in enumerate((0.7, 1.5))])
    tokens = torch.tensor([9, 4])
    ids = torch.randint(3, 300, (2, 9)) * (torch.arange(9) < tokens.unsqueeze(1))
    return SpeechBatch(waveforms, samples, ids, tokens, torch.arange(2), ["a", "b"], waveforms.shape[1])


def test_stages_are_reported_in_their_order(model, batch):
    seen: list[str] = []
    sums = step.loss_sums(model, FrozenParts(model), batch, Objective(), distills=True, on_stage=seen.append)
    assert seen == STAGES[:-1]
    (sums.distill + sums.align).backward()
    assert seen == STAGES
    seen.clear()
    step.measure_sums(model, FrozenParts(model), batch, on_stage=seen.append)
    assert seen == [*FORWARD, "logits"]


def test_a_step_computes_only_what_the_objective_asks_for(model, batch):
    frozen = FrozenParts(model)
    both = step.loss_sums(model, frozen, batch, Objective(), distills=True)
    aligned = step.loss_sums(model, frozen, batch, Objective(), distills=False)
    distilled = step.loss_sums(model, frozen, batch, Objective(align_weight=0.0), distills=True)
    assert (float(aligned.distill), float(distilled.align)) == (0.0, 0.0)
    assert torch.equal(aligned.align, both.align)
    assert torch.equal(distilled.distill, both.distill)


def test_measures_with_static_shapes_are_those_without(model, batch):
    dynamic, static = (
        step.measure_sums(model, FrozenParts(model), batch, static_shapes=static) for static in (False, True)
    )
    assert dynamic.keys() == set(MEASURES)
    for name, sums in dynamic.items():
        torch.testing.assert_close(static[name], sums, msg=name)
    assert dynamic["alignment_accuracy"][1] == 13
    assert dynamic["kl"][1] == 2


@pytest.fixture
def users(tiny_run, config, model, batch, tmp_path, monkeypatch):
    """All who run the step, by name."""
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    parts, shape, work = architecture(config), Batch(2, 32_000, 9, 9), Work(autocast=None)
    adamw = partial(torch.optim.AdamW, lr=1e-3)
    return {
        "training": lambda: fit([*tiny_run, "max_steps=1", "objective.distill_from_step=0"], tmp_path, 1),
        "FLOPs": lambda: count_flops(config, parts, shape, work),
        "bytes": lambda: count_bytes(config, parts, shape, work),
        "timing": lambda: stage_seconds(config, parts, shape, work, torch.device("cpu"), adamw, 1.0),
        "benchmark": lambda: OurTraining(model, None).losses(batch, Variant("bucket", "trimmed"), Parts()),
    }


@pytest.mark.parametrize("function", ["align_distances", "position_weights"])
def test_a_broken_step_breaks_all_who_run_it(users, function, monkeypatch):
    for run in users.values():
        run()

    def broken(*given):
        raise ArithmeticError(f"{function} is broken")

    monkeypatch.setattr(sys.modules["diva.training.step"], function, broken)
    monkeypatch.setattr(counting, "KNOWN", {})
    for run in users.values():
        with pytest.raises(ArithmeticError, match=function):
            run()
