"""What a run needs in memory, what would fit, and the refusal of what cannot."""

import pytest
from llms import make_llm_of
from omegaconf import OmegaConf

import diva.planning.memory
import diva.planning.run
from diva.data.corpora.common_voice import CommonVoice
from diva.errors import UserError
from diva.plan import compose
from diva.planning.bound import bound_bytes
from diva.planning.counting import count_bytes
from diva.planning.duration import Timing
from diva.planning.memory import check_memory, largest_micro_batch, largest_val_batch, memory_of, resident
from diva.planning.run import Run
from diva.training.distributed.devices import Device, is_sharded

# A rate, so that nothing is timed.
GIVEN = ["plan.device_tflops=100", "plan.mfu=0.5"]
NO_DATA = "data.root=/no/such/folder"


def test_sharing_out_leaves_each_device_a_part():
    ddp, fsdp = (
        resident(Run(compose(["experiment=diva_llama3_8b", f"hardware={name}", NO_DATA])))
        for name in ("gpu_ddp", "gpu_fsdp")
    )
    assert fsdp["optimizer state"] == ddp["optimizer state"] // 8
    assert fsdp["LLM, frozen"] < ddp["LLM, frozen"] / 4
    # What is no layer stays whole: input and output embeddings.
    assert fsdp["LLM, frozen"] > 2 * 2 * 128_256 * 4096
    assert "gradient buckets of DDP" in ddp
    assert is_sharded(OmegaConf.create({"_target_": "diva.training.distributed.fsdp.FSDP2Strategy"}))
    assert not is_sharded("ddp")


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    overrides = ["experiment=diva_llama3_8b", "hardware=gpu_ddp", NO_DATA, *GIVEN]
    largest = largest_micro_batch(Run(compose(overrides)))
    for rows, fits in ((largest, True), (largest + 2, False)):
        run = Run(compose([*overrides, f"hardware.micro_batch_size={rows}"]))
        assert (memory_of(run).device_total <= run.device.memory) == fits


def test_the_largest_validation_batch_fits_and_the_next_does_not():
    overrides = ["experiment=diva_llama3_8b", "hardware=gpu_ddp", NO_DATA, *GIVEN, "plan.device_memory_gb=50"]
    largest = largest_val_batch(Run(compose(overrides)))
    for rows, fits in ((largest, True), (largest + 1, False)):
        run = Run(compose([*overrides, f"data.val_batch_size={rows}", "hardware.micro_batch_size=1"]))
        assert (memory_of(run).device_total <= run.device.memory) == fits
    assert largest_val_batch(Run(compose([*overrides, "plan.device_memory_gb=35"]))) == 0


def test_activation_checkpointing_saves_memory_and_costs_flops():
    overrides = ["experiment=diva_llama3_8b", "hardware=gpu_ddp", NO_DATA, *GIVEN]
    plain, saving = (
        Run(compose([*overrides, f"hardware.activation_checkpointing={value}"]))
        for value in ("false", "true")
    )
    assert memory_of(saving).device["activations"] < memory_of(plain).device["activations"] / 3
    ours, theirs = (sum(Timing(run).flops_per_clip.values()) for run in (saving, plain))
    assert ours > 1.2 * theirs


@pytest.fixture
def mini_clips(tiny_release):
    return CommonVoice(str(tiny_release)).manifest("train")


def with_memory(monkeypatch, size: int) -> None:
    device = Device("cpu", size, None, "a CPU of the test", True)
    monkeypatch.setattr(diva.planning.run, "find_device", lambda *arguments: device)
    # What this process holds depends on the tests before.
    monkeypatch.setattr(diva.planning.memory, "resident_bytes", lambda: 500_000_000)


def test_only_what_cannot_fit_is_refused(mini_clips, monkeypatch):
    config = compose(["precompute.teacher_states=false", "precompute.encoder_frames_gb=0"])
    with_memory(monkeypatch, 10**12)
    run = Run(config, diva.planning.memory.lengths_of(mini_clips))
    needs = sum(resident(run).values()) + max(run.training_bytes.values())
    for size in (10**12, needs, round(0.95 * needs)):
        with_memory(monkeypatch, size)
        check_memory(config, mini_clips)
    with_memory(monkeypatch, round(0.6 * needs))
    with pytest.raises(UserError, match=r"this run needs \d.* GB .* each has"):
        check_memory(config, mini_clips)


def test_a_refusal_names_a_micro_batch_that_would_fit(mini_clips, monkeypatch):
    config = compose(
        ["data.batch_size=256", "hardware.micro_batch_size=256", "precompute.teacher_states=false"]
    )
    with_memory(monkeypatch, 10**12)
    run = Run(config, diva.planning.memory.lengths_of(mini_clips))
    stays, peak = sum(resident(run).values()), max(run.training_bytes.values())
    with_memory(monkeypatch, round(stays + peak / 2))
    with pytest.raises(UserError) as caught:
        check_memory(config, mini_clips)
    fits = int(str(caught.value).partition("hardware.micro_batch_size=")[2].split()[0])
    assert 64 <= fits < 200
    check_memory(compose(["data.batch_size=256", f"hardware.micro_batch_size={fits}"]), mini_clips)


def test_validation_that_cannot_fit_is_refused_by_its_own_key(mini_clips, monkeypatch):
    """Of 22 clips, so a batch has no more, where training takes one at a time."""
    given = ["hardware.micro_batch_size=1", "precompute.teacher_states=false", "model.encoder.context=full"]
    config = compose([*given, "data.val_batch_size=64"])
    with_memory(monkeypatch, 10**12)
    run = Run(config, diva.planning.memory.lengths_of(mini_clips))
    stays, batch = sum(resident(run).values()), run.batch(22, run.longest_samples)
    of_all = max(run.count_validation(batch).values())
    room = round(0.74 * of_all)
    with_memory(monkeypatch, stays + room)
    check_memory(config, mini_clips)
    with pytest.raises(UserError, match=r"validation needs \d.* GB .* each has") as caught:
        check_memory(config, mini_clips, [mini_clips])
    fits = int(str(caught.value).partition("data.val_batch_size=")[2].split()[0])
    needs = max(run.count_validation(run.batch(fits, run.longest_samples)).values())
    assert 0.95 * room < needs <= room
    check_memory(compose([*given, f"data.val_batch_size={fits}"]), mini_clips, [mini_clips])
    assert diva.planning.memory._val_rows_within(1e7, run, batch, run.count_validation(batch)) == 0


@pytest.mark.parametrize(
    ("rows", "more"),
    [(1, []), (32, ["model.encoder.context=full", "objective.answer_tokens=8", "objective.distance=kl"])],
    ids=["mini", "full windows and answers"],
)
def test_the_quick_bound_is_above_what_is_counted(rows, more):
    """By no more than a factor of eight, or it would show nothing."""
    run = Run(compose(["precompute.teacher_states=false", "precompute.encoder_frames_gb=0", *more, NO_DATA]))
    weights = run.weights
    stays = weights.encoder + weights.llm + 4 * weights.adapter + weights.prefix_cache
    for batch, work in (
        (run.batch(rows, run.longest_samples), run.work),
        (run.val_batch(rows, run.longest_samples), run.val_work),
    ):
        counted = stays + max(count_bytes(run.model, run.parts, batch, work).values())
        assert 1.3 * counted < bound_bytes(run.model, run.parts, batch, work) < 8 * counted


def test_no_bound_is_known_of_other_layers_than_the_usual(tmp_path, tiny_whisper):
    run = Run(
        compose([f"model.llm.name={make_llm_of('gpt_oss', tmp_path)}", f"model.encoder.name={tiny_whisper}"])
    )
    assert bound_bytes(run.model, run.parts, run.batch(1, 32_000), run.work) is None


def test_memory_that_is_not_known_refuses_nothing(mini_clips, monkeypatch):
    for device in (Device("cpu", None, None, "?", True), Device("gpu", 1, None, "elsewhere", False)):
        monkeypatch.setattr(diva.planning.run, "find_device", lambda *arguments, device=device: device)
        check_memory(compose([]), mini_clips)
