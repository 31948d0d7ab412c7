"""`python -m diva.train` as users run it: real subprocesses, real signals, real files."""

import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command, losses, metrics, run, run_ranks
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tiny import SENTENCES, write_release

from diva.audio.frames import pad_clips
from diva.config.precision import autocast_dtype
from diva.data.corpora.common_voice import CommonVoice
from diva.models.modeling import DivaForConditionalGeneration

pytestmark = pytest.mark.integration
STEPS = 10


@pytest.fixture(scope="session")
def arguments(tiny_run: list[str]) -> list[str]:
    return [
        *tiny_run,
        "objective.distill_from_step=3",
        "optimizer.warmup_steps=2",
        f"max_steps={STEPS}",
        "val_every=5",
        "checkpoint_every=2",
        "sample_responses=2",
    ]


@pytest.fixture(scope="session")
def undisturbed(arguments: list[str], shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = run("diva.train", *arguments, f"hydra.run.dir={folder}", cache=shared_cache, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_starts_from_anothers_adapter_and_resumes_without_it(
    undisturbed: Path, arguments: list[str], shared_cache: Path, tmp_path: Path
):
    source, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(undisturbed / "export", source)
    given = [
        *arguments,
        "optimizer.lr=0",
        "max_steps=1",
        f"model.start_from={source}",
        f"hydra.run.dir={folder}",
    ]
    done = run("diva.train", *given, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"the adapter starts from {source}\n" in done.stderr.replace("\n ", " ")
    assert f"start_from: {source}" in (folder / "config.yaml").read_text()
    expected = load_file(source / "model.safetensors")
    shutil.rmtree(source)
    again = [f"resume={folder}", f"model.start_from={source}", "max_steps=2"]  # as a sweep does it
    done = run("diva.train", *again, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the adapter starts from" not in done.stderr
    found = load_file(folder / "export" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    done = run("diva.train", f"resume={folder}", "model.start_from=x", cache=shared_cache, cwd=tmp_path)
    assert (done.returncode, "leave out model.start_from" in done.stderr) == (2, True)


def test_a_run_leaves_what_it_promises(undisturbed: Path, tiny_release: Path):
    summary = json.loads((undisturbed / "summary.json").read_text())
    for figure in ("val/alignment_accuracy", "val/first_token_agreement", "val/kl"):
        assert math.isfinite(summary[figure])
    assert summary["clips_in_corpus"] == {"train": 22, "val": 6}
    words = {word for sentence in SENTENCES for word in sentence.split()}
    assert summary["trained_on"] == {"corpus": "common_voice", "clips": 22, "words": len(words)}
    exported = json.loads((undisturbed / "export" / "config.json").read_text())
    assert exported["trained_on"] == summary["trained_on"]
    assert exported["hearing_threshold"] == summary["hearing_threshold"] > 0
    # Batches of 4 from 22 clips: five full ones and one of 2 an epoch, in an order that the seed decides.
    assert STEPS * 4 - 4 <= summary["clips_seen"] <= STEPS * 4
    assert len(summary["responses"]) == 2
    card = (undisturbed / "export" / "README.md").read_text()
    for said in (
        f"{summary['val/kl']:.3f}",
        f"{summary['val/first_token_agreement']:.3f}",
        "CC0-1.0",
        f"| distinct words in training | {len(words)} |",
        "10 of 4",
    ):
        assert said in card
    assert summary["responses"][0]["question"] in card
    assert (undisturbed / "skipped.tsv").is_file()
    assert f"root: {tiny_release}" in (undisturbed / "config.yaml").read_text()
    rows = metrics(undisturbed)
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(STEPS))
    assert [int(row["step"]) for row in rows if row["val/kl"]] == [4, 9]
    terms = losses(undisturbed)
    assert all(terms[step][2] == "" for step in range(3)), "no distillation before its step"
    assert all(float(terms[step][2]) > 0 for step in range(3, STEPS))
    for step in range(3, STEPS):
        assert float(terms[step][0]) == pytest.approx(float(terms[step][1]) + float(terms[step][2]), rel=1e-5)


def test_validation_metrics_are_means_over_the_held_out_clips(undisturbed: Path, tiny_release: Path):
    """Each clip by itself, through the exported model, in the trainer's precision."""
    model = DivaForConditionalGeneration.from_pretrained(undisturbed)
    tokenizer, embeddings = model.processor.tokenizer, model.llm.get_input_embeddings().weight
    manifest = CommonVoice(str(tiny_release)).manifest("dev")
    autocast = autocast_dtype(OmegaConf.load(undisturbed / "config.yaml").hardware.precision)
    aligned, agreement, kl = [], [], []
    for clip in range(len(manifest)):
        ids = torch.tensor(tokenizer(manifest.text(clip), add_special_tokens=False)["input_ids"])
        with torch.no_grad(), torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            v = model.virtual_tokens(*pad_clips([manifest.waveform(clip)]))[0].float()
            student = model.logits(model.student_states(v.unsqueeze(0)))[0]
        teacher = model.logits(model.teacher_states(ids.unsqueeze(0), torch.tensor([len(ids)])))[0]
        facing = v[len(v) - len(ids) :]
        aligned += [
            int((x - embeddings.float()).norm(dim=1).argmin()) == int(t)
            for x, t in zip(facing, ids, strict=True)
        ]
        agreement.append(int(student.argmax()) == int(teacher.argmax()))
        p, q = teacher.softmax(0), student.softmax(0)
        kl.append(float((p * (p / q).log()).sum()))
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["val/alignment_accuracy"] == pytest.approx(sum(aligned) / len(aligned), abs=1e-6)
    assert summary["val/first_token_agreement"] == pytest.approx(sum(agreement) / len(agreement), abs=1e-6)
    assert summary["val/kl"] == pytest.approx(sum(kl) / len(kl), rel=0.05)


def test_the_hearing_threshold_is_that_of_the_held_out_clips(undisturbed: Path, tiny_release: Path):
    model = DivaForConditionalGeneration.from_pretrained(undisturbed, dtype="float32")
    manifest = CommonVoice(str(tiny_release)).manifest("dev")
    distances = [model.hearing_distance(manifest.waveform(clip)) for clip in range(len(manifest))]
    assert model.config.hearing_threshold == pytest.approx(np.quantile(distances, 0.95), rel=0.02)
    assert sum(distance <= model.config.hearing_threshold for distance in distances) >= len(distances) - 1


def test_checkpoints_hold_the_adapter_and_no_frozen_weight(undisturbed: Path):
    checkpoint = torch.load(undisturbed / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]
    assert all(key.startswith("model.adapter.") for key in checkpoint["state_dict"])
    adapter = sum(value.numel() for value in checkpoint["state_dict"].values())
    optimizer = checkpoint["optimizer_states"][0]["state"]
    assert sum(state["exp_avg"].numel() for state in optimizer.values()) == adapter
    exported = load_file(undisturbed / "export" / "model.safetensors")
    for key, value in checkpoint["state_dict"].items():
        torch.testing.assert_close(exported[key.removeprefix("model.adapter.")], value, rtol=0, atol=0)


def wait_for_step(folder: Path, process: Command, step: int, seconds: float = 120) -> None:
    deadline = time.time() + seconds
    while time.time() < deadline and process.poll() is None:
        if (folder / "checkpoints" / "last.ckpt").is_file() and (folder / "metrics.csv").is_file():
            logged = losses(folder)
            if logged and max(logged) >= step:
                return
        time.sleep(0.02)
    raise AssertionError(f"the run ended or hung before step {step}")


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_a_killed_run_resumes_to_the_bit(undisturbed, arguments, shared_cache, tmp_path, sent, status):
    folder = tmp_path / "killed"
    # log_every=1 flushes metrics.csv, in which the test watches for the step
    given = [*arguments, f"hydra.run.dir={folder}"]
    process = Command("diva.train", *given, cache=shared_cache, cwd=tmp_path)
    wait_for_step(folder, process, 3)
    os.kill(process.pid, sent)
    assert process.wait(60).returncode == status
    before = losses(folder)
    assert max(before) < STEPS - 1, "it was to be killed on its way"
    if sent == signal.SIGTERM:
        saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        assert saved == max(before) + 1, "a preempted run saves the step it is at"
    (folder / "checkpoints" / "last.tmp").write_bytes(b"half a checkpoint")
    done = run("diva.train", f"resume={folder}", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "another config" not in done.stderr
    expected = losses(undisturbed)
    resumed = losses(folder)
    assert resumed.keys() == expected.keys()
    assert resumed == expected
    final, ours = (json.loads((f / "summary.json").read_text()) for f in (undisturbed, folder))
    assert final["val/kl"] == ours["val/kl"]
    assert final["responses"] == ours["responses"]


def test_ranks_stop_together_whichever_gets_the_signal(arguments, shared_cache, tmp_path):
    folder = tmp_path / "stopped"
    given = [*arguments, "hardware=cpu_ddp", f"hydra.run.dir={folder}", "max_steps=200"]
    first = Command("diva.train", *given, cache=shared_cache, cwd=tmp_path)
    wait_for_step(folder, first, 3)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    (second,) = [
        int(child)
        for child in children
        if "train_ddp_process_1" in Path(f"/proc/{child}/cmdline").read_text()
    ]
    os.kill(second, signal.SIGTERM)
    assert first.wait(60).returncode == 128 + signal.SIGTERM
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert saved == max(losses(folder)) + 1 < 200
    deadline = time.time() + 60
    while Path(f"/proc/{second}").exists() and time.time() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{second}").exists()


def test_a_run_stopped_in_its_last_validation_gets_its_metrics(undisturbed, shared_cache, tmp_path):
    """Its last checkpoint is of its last step: nothing is left to train."""
    folder = tmp_path / "stopped"
    shutil.copytree(
        undisturbed, folder, ignore=shutil.ignore_patterns("summary.json", "export", "responses.tsv")
    )
    last = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    (times,) = [state for state in checkpoint["callbacks"].values() if "seconds_of_data" in state]
    times["seconds"] = 1000.0
    torch.save(checkpoint, last)
    done = run("diva.train", f"resume={folder}", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    final, ours = (json.loads((f / "summary.json").read_text()) for f in (undisturbed, folder))
    for key in ("val/kl", "val/alignment_accuracy", "responses", "clips_seen", "clips_skipped"):
        assert ours[key] == final[key], key
    assert ours["seconds"] >= 1000, "a resumed run goes on counting"
    assert load_file(folder / "export" / "model.safetensors").keys()


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(undisturbed, shared_cache, tmp_path):
    folder = tmp_path / "kept"
    shutil.copytree(undisturbed, folder)
    for wrong in ("data.batch_size=8", "model.adapter.num_query_tokens=40"):
        done = run("diva.train", f"resume={folder}", wrong, "max_steps=12", cache=shared_cache, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert (folder / "overrides.yaml").read_text() == (undisturbed / "overrides.yaml").read_text()
    done = run("diva.train", f"resume={folder}", "max_steps=12", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumed with another config: .*\bmax_steps 10 -> 12\b", done.stderr.replace("\n", " "))
    assert "max_steps=12" in (folder / "overrides.yaml").read_text()
    assert max(losses(folder)) == 11


def test_resuming_refuses_what_is_no_whole_checkpoint(undisturbed, shared_cache, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(undisturbed, damaged)
    checkpoint = damaged / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    for folder, message in ((damaged, "damaged"), (tmp_path, "not a run")):
        done = run("diva.train", f"resume={folder}", cache=shared_cache, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="session")
def reference(arguments, shared_cache, tmp_path_factory) -> Path:
    """An epoch in float32 with every clip of a global batch in one pass."""
    folder = tmp_path_factory.mktemp("runs") / "reference"
    done = run(
        "diva.train", *exact(arguments), f"hydra.run.dir={folder}", cache=shared_cache, cwd=folder.parent
    )
    assert done.returncode == 0, done.stderr
    return folder


def exact(arguments: list[str]) -> list[str]:
    changes = ["hardware.precision=32-true", "model.frozen_dtype=float32", "objective.distill_from_step=0"]
    changes += ["precompute.teacher_states=false", "precompute.encoder_frames_gb=0"]
    return [
        *arguments,
        *changes,
        "max_steps=6",  # an epoch, for which tables pay
        "sample_responses=0",
    ]


@pytest.mark.parametrize(
    "change",
    [["hardware.micro_batch_size=3"], ["hardware=cpu_ddp"],
     ["hardware.micro_batch_size=1", "hardware=cpu_ddp"],
     ["precompute.teacher_states=true", "precompute.encoder_frames_gb=1"]],
    ids="-".join,
)  # fmt: skip
def test_accumulation_and_ddp_do_not_change_the_loss(reference, arguments, shared_cache, tmp_path, change):
    folder = tmp_path / "run"
    given = [*exact(arguments), *change, f"hydra.run.dir={folder}"]
    if "hardware=cpu_ddp" in change[1:]:
        done = run_ranks(*given, cache=shared_cache, cwd=tmp_path)
    else:  # with hardware=cpu_ddp Lightning starts the other process
        done = run("diva.train", *given, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected, ours = losses(reference), losses(folder)
    assert expected.keys() == ours.keys()
    for step, terms in expected.items():
        assert [float(x) for x in ours[step]] == pytest.approx([float(x) for x in terms], abs=1e-4)
    weights = [load_file(f / "export" / "model.safetensors") for f in (reference, folder)]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, atol=2e-4, rtol=0)


def test_misspelt_keys_fail_with_the_nearest_right_one(shared_cache, tmp_path, tiny_overrides):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text(
        "# @package _global_\nmax_steps: 3\ndata:\n  batchsize: 3\n"
    )
    for wrong, right in (
        (["data.rot=x"], "data.root"),
        (["--config-dir", ".", "experiment=typo"], "data.batch_size"),
    ):
        done = run("diva.train", *wrong, cache=shared_cache, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert right in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "runs").exists()


def test_wrong_input_is_one_line_and_exit_code_2(shared_cache, tmp_path, arguments):
    empty = write_release(tmp_path / "empty", {"train": 0, "dev": 1})
    for changes, message in (
        ([f"data.root={tmp_path / 'nowhere'}"], "nowhere"),
        ([f"data.root={empty}"], "train"),
        (["data=common_voice", "data.root=???"], "data.root"),
        (["data.train_split=trian"], "train"),
        (["model.llm.name=no/such-model"], "no/such-model"),
        (["model.adapter.kind=mpl"], "mlp"),
        (["hardware.micro_batch_size=0"], "micro_batch_size"),
    ):
        done = run("diva.train", *arguments, *changes, cache=shared_cache, cwd=tmp_path)
        assert done.returncode == 2, (changes, done.stderr)
        lines = [line for line in done.stderr.strip().splitlines() if line.startswith("diva:")]
        assert len(lines) == 1, done.stderr
        assert message in lines[0]
        assert "Traceback" not in done.stderr


def test_one_sample_and_an_odd_batch(shared_cache, tmp_path, arguments):
    release = write_release(tmp_path / "one", {"train": 1, "dev": 1})
    folder = tmp_path / "run"
    done = run(
        "diva.train", *arguments, f"data.root={release}", "max_steps=4", "val_every=2", "data.batch_size=3",
        f"hydra.run.dir={folder}", cache=shared_cache, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "summary.json").read_text())["clips_seen"] == 4
