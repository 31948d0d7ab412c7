"""A run's losses against loops over single clips, and what its steps leave alone."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import losses, run, run_ranks
from hydra.utils import instantiate
from lightning import Trainer

from diva.audio.frames import pad_clips
from diva.config import check_overrides
from diva.errors import UserError
from diva.models.build import build
from diva.models.configuration import AdapterConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.parts import load_tokenizer
from diva.run import make_data, make_module
from diva.training.frozen import Precompute

EXACT = [
    "hardware.precision=32-true",
    "model.frozen_dtype=float32",
    "precompute.teacher_states=false",
    "precompute.encoder_frames_gb=0",
    "objective.distill_weight=0.7",
    "objective.align_weight=1.3",
    "objective.distill_from_step=0",
    "optimizer.lr=0",  # so that the export is what every step has seen
    "max_steps=6",  # one epoch, the last batch of which is not full
    "val_every=6",
    "sample_responses=0",
]


def states_alone(
    model: DivaForConditionalGeneration, v: torch.Tensor, ids: torch.Tensor
) -> list[torch.Tensor]:
    """h_student and h_teacher [D] of a clip with virtual tokens [Q, D] and transcript [N], each in its own pass."""
    embed, llm = model.llm.get_input_embeddings(), model.llm.base_model
    return [
        llm(
            inputs_embeds=torch.cat([embed(model.prefix_ids), x, embed(model.suffix_ids)])[None]
        ).last_hidden_state[0, -1]
        for x in (v, embed(ids))
    ]


def read(model: DivaForConditionalGeneration, waveform) -> tuple[torch.Tensor, torch.Tensor]:
    """All virtual tokens of a clip, and those that the LLM reads."""
    v = model.virtual_tokens(*pad_clips([waveform]))[0]
    rate = model.config.adapter.tokens_per_second
    return v, v if rate is None else v[-min(len(v), math.ceil((len(waveform) // 320 + 50) * 0.02 * rate)) :]


def by_the_formula(model: DivaForConditionalGeneration, waveform, ids: torch.Tensor) -> tuple[float, float]:
    """L_distill of a clip and the sum of its tokens' L_align (DiVA section 3.2), one position after the other."""
    embed = model.llm.get_input_embeddings()
    v, heard = read(model, waveform)
    student, teacher = states_alone(model, heard, ids)
    distill = math.sqrt(sum((float(s) - float(t)) ** 2 for s, t in zip(student, teacher, strict=True)))
    align = 0.0
    for n, token in enumerate(ids.tolist()):
        facing, target = v[len(v) - len(ids) + n], embed.weight[token]
        align += math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(facing, target, strict=True)))
    return distill, align


@pytest.mark.integration
@pytest.mark.parametrize(
    "change",
    [[], ["hardware=cpu_ddp", "hardware.micro_batch_size=1"], ["model.adapter.tokens_per_second=16"]],
    ids="-".join,
)  # fmt: skip
def test_logged_losses_are_those_of_a_loop_over_clips(tiny_run, shared_cache, tmp_path, change):
    folder = tmp_path / "run"
    given = [*tiny_run, *EXACT, *change, f"hydra.run.dir={folder}"]
    start = run_ranks if "hardware=cpu_ddp" in change else lambda *a, **k: run("diva.train", *a, **k)
    done = start(*given, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = DivaForConditionalGeneration.from_pretrained(folder)
    config = check_overrides("train", [*tiny_run, *EXACT, *(c for c in change if c.startswith("model."))])
    tokenizer = model.processor.tokenizer
    data = make_data(config.data, tokenizer, model.config.adapter, tmp_path)
    data.setup("fit")
    logged = losses(folder)
    assert len(logged) == 6
    assert len(data.train_dataloader()) == 6
    for step, batch in enumerate(data.train_dataloader()):
        clips = batch.clips[batch.valid].tolist()
        distill = align = tokens = 0.0
        for clip in clips:
            ids = torch.tensor(tokenizer(data.train.text(clip), add_special_tokens=False)["input_ids"])
            with torch.no_grad():
                of_clip = by_the_formula(model, data.train.waveform(clip), ids)
            distill, align, tokens = distill + of_clip[0], align + of_clip[1], tokens + len(ids)
        terms = align / tokens, distill / len(clips)
        expected = (1.3 * terms[0] + 0.7 * terms[1], *terms)
        assert [float(term) for term in logged[step]] == pytest.approx(expected, abs=1e-5)
    kl = []
    for clip in range(len(data.val["val"])):
        ids = torch.tensor(tokenizer(data.val["val"].text(clip), add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            _, heard = read(model, data.val["val"].waveform(clip))
            said, wanted = (model.logits(h).softmax(-1) for h in states_alone(model, heard, ids))
        kl.append(float((wanted * (wanted / said).log()).sum()))
    figures = json.loads((folder / "summary.json").read_text())
    assert figures["val/kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-4)


def fit(overrides: list[str], folder: Path, steps: int) -> torch.nn.Module:
    """The model after so many steps in this process; `before` holds what its weights were."""
    config = check_overrides("train", overrides)
    model_config = instantiate(config.model)
    tokenizer = load_tokenizer(model_config.llm.name)
    data = make_data(config.data, tokenizer, model_config.adapter, folder)
    model = build(model_config, tokenizer)
    model.before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, barebones=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(make_module(config, model), datamodule=data)
    return model


def test_steps_move_the_adapter_and_nothing_frozen(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path))
    given = [*tiny_run, "max_steps=3", "objective.distill_from_step=0", "optimizer.warmup_steps=0"]
    model = fit([*given, "optimizer.weight_decay=0.5"], tmp_path, 3)
    for name, weight in model.named_parameters():
        moved = not torch.equal(weight, model.before[name])
        assert moved == name.startswith("adapter."), name
        assert name.startswith("adapter.") or weight.grad is None


def test_an_llm_that_cannot_teach_ends_a_run_before_its_first_step(tiny_run, tmp_path, monkeypatch):
    embed = DivaForConditionalGeneration.embed
    monkeypatch.setattr(DivaForConditionalGeneration, "embed", lambda self, ids: embed(self, ids) * 2)
    with pytest.raises(
        UserError, match=r"model\.llm\.name=.* cannot teach: after a transcript of \d+ tokens"
    ):
        fit([*tiny_run, "max_steps=1", "precompute.teacher_states=false"], tmp_path, 1)


@pytest.mark.integration
def test_tables_are_kept_of_what_is_seen_often_enough(tiny_run, tmp_path):
    """22 training clips, batches of 4; validation has 6, in a table of their own."""
    given = [*tiny_run, "val_every=6", "sample_responses=0", "objective.distill_from_step=3"]
    for steps, teacher, frames in ((5, 1, 1), (6, 1, 2), (9, 2, 2)):
        cache = tmp_path / str(steps)
        done = run("diva.train", *given, f"max_steps={steps}", "hydra.run.dir=run", cache=cache, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = [len(list(cache.glob(f"{kind}/*/table.safetensors"))) for kind in ("teacher", "frames")]
        assert found == [teacher, frames], steps


def test_nothing_is_cached_that_was_not_asked_for():
    nothing = Precompute(teacher_states=False)
    assert not nothing.caches_teacher(1, 100, 1)
    assert not nothing.caches_frames(1, 100, 1.0, "bucket", decoded=True)
    everything = Precompute(encoder_frames_gb=3.0)
    assert everything.caches_teacher(100, 100, 1e9)
    assert not everything.caches_teacher(100, 100, 17e9)
    assert not everything.caches_teacher(100, 99, 1e9)
    assert everything.caches_frames(100, 100, 3e9, "bucket", decoded=True)
    for but in ((100, 99, 3e9, "bucket", True), (100, 100, 3.1e9, "bucket", True), (100, 100, 3e9, "full", True),
                (100, 100, 3e9, "bucket", False)):  # fmt: skip
        assert not everything.caches_frames(*but)


@pytest.mark.integration
def test_a_run_that_never_distils_says_so(tiny_run, shared_cache, tmp_path):
    given = [
        *tiny_run,
        "max_steps=2",
        "val_every=2",
        "sample_responses=0",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    done = run("diva.train", *given, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "this run only aligns: objective.distill_from_step=1100 is not below max_steps=2" in done.stderr
    # What is printed is what this validation found, and not the one before.
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert f"step 2: val/alignment_accuracy {figures['val/alignment_accuracy']:.3f}" in done.stderr
    assert 0 <= figures["data_wait_fraction"] < 1
    assert 0 < figures["seconds_of_data"] < figures["seconds"]


def test_clips_longer_than_whispers_window_are_refused(tiny_run, tmp_path):
    config = check_overrides("train", [*tiny_run, "data.max_seconds=60", "max_steps=1"])
    with pytest.raises(UserError, match=r"data\.max_seconds=60: Whisper hears 30 s"):
        make_data(config.data, SimpleNamespace(), AdapterConfig(8), tmp_path)
