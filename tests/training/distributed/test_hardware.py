"""The same run on other hardware: sharded, on several nodes, under SLURM, as the other experiments' configs ask."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from command_line import Command, command, environment, free_port, losses, run, run_ranks
from llms import make_llm_of
from safetensors.torch import load_file
from tiny import make_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import diva.training.distributed.checks
from diva.config import CONFIG_DIR, check_overrides
from diva.errors import UserError
from diva.models.llm import decoder
from diva.models.modeling import DivaForConditionalGeneration
from diva.run import make_trainer
from diva.train import check_shared_folder
from diva.training.distributed.activation_checkpointing import checkpoint_activations
from diva.training.distributed.checks import check_hardware
from diva.training.distributed.fsdp import shard_model, whole
from diva.training.losses import align_distances, distill_distances

pytestmark = pytest.mark.timeout(1500)  # a test here may be several runs of two processes each
STEPS = 6
STOPPED = 3


@pytest.fixture(scope="session")
def arguments(tiny_overrides: list[str], tiny_release: Path) -> list[str]:
    """In float32, and with a learning rate that does not depend on where the run ends."""
    return [
        *tiny_overrides,
        "data=common_voice",
        f"data.root={tiny_release}",
        "data.batch_size=4",
        "model.frozen_dtype=float32",
        "hardware.precision=32-true",
        "objective=diva",
        "optimizer.schedule._target_=transformers.get_constant_schedule_with_warmup",
        "~optimizer.schedule.num_training_steps",
        "optimizer.warmup_steps=2",
        "precompute.teacher_states=false",
        "precompute.encoder_frames_gb=0",
        f"max_steps={STEPS}",
        f"val_every={STEPS}",
        "checkpoint_every=100",
        "log_every=1",
        "sample_responses=1",
    ]


def launch(*given: str, cache: Path, cwd: Path) -> subprocess.CompletedProcess:
    """diva.train, as two processes where the hardware is for more than one."""
    several = any(each in given for each in ("hardware=cpu_ddp", "hardware=cpu_fsdp", "hardware.devices=2"))
    if several:
        return run_ranks(*given, cache=cache, cwd=cwd, timeout=600)
    return run("diva.train", *given, cache=cache, cwd=cwd, timeout=600)


@pytest.fixture(scope="session")
def train(arguments, shared_cache, tmp_path_factory):
    """Runs with these arguments and more; once for each name."""
    done: dict[str, Path] = {}

    def run_once(name: str, *more: str) -> Path:
        if name not in done:
            folder = tmp_path_factory.mktemp("runs") / name
            given = [*arguments, *more, f"hydra.run.dir={folder}"]
            result = launch(*given, cache=shared_cache, cwd=folder.parent)
            assert result.returncode == 0, result.stderr
            done[name] = folder
        return done[name]

    return run_once


@pytest.fixture
def single(train) -> Path:
    return train("single")


def check_same_run(ours: Path, theirs: Path) -> None:
    """Losses of every step and the weights at the end."""
    got, expected = losses(ours), losses(theirs)
    assert list(got) == list(expected)
    for step, terms in expected.items():
        assert [float(x) for x in got[step]] == pytest.approx([float(x) for x in terms], abs=1e-5)
    weights = [load_file(folder / "export" / "model.safetensors") for folder in (theirs, ours)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        # Adam turns the sign of a gradient of next to nothing into a step of the learning rate.
        torch.testing.assert_close(weights[1][key], value, atol=5e-5, rtol=1e-5)


# ---- FSDP2


@pytest.mark.integration
def test_fsdp_is_the_run_of_one_process(train, single):
    sharded = train("fsdp", "hardware=cpu_fsdp", "hardware.precision=32-true")
    check_same_run(sharded, single)
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (sharded, single))
    for figure in ("val/kl", "val/alignment_accuracy", "val/first_token_agreement"):
        assert ours[figure] == pytest.approx(theirs[figure], abs=1e-4)
    assert ours["responses"] == theirs["responses"]
    assert DivaForConditionalGeneration.from_pretrained(sharded).generate([torch.rand(9000).numpy()])


@pytest.mark.integration
def test_checkpoints_of_fsdp_are_those_of_one_process(train, single):
    sharded = train("fsdp", "hardware=cpu_fsdp", "hardware.precision=32-true")
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (sharded, single)
    )
    assert shapes(ours["state_dict"]) == shapes(theirs["state_dict"])
    assert shapes(ours["optimizer_states"]) == shapes(theirs["optimizer_states"])


def shapes(node):
    if isinstance(node, torch.Tensor):
        assert not isinstance(node, DTensor)
        return tuple(node.shape), node.dtype
    if isinstance(node, dict):
        return {key: shapes(value) for key, value in node.items()}
    return [shapes(value) for value in node] if isinstance(node, list) else node


@pytest.mark.integration
@pytest.mark.parametrize(
    ("begins", "continues"), [("cpu_fsdp", "cpu_fsdp"), ("cpu_fsdp", "cpu"), ("cpu", "cpu_fsdp")]
)
def test_a_run_goes_on_with_another_strategy(train, single, shared_cache, tmp_path, begins, continues):
    stopped = train(
        f"{begins}_stopped", f"hardware={begins}", "hardware.precision=32-true", f"max_steps={STOPPED}"
    )
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    changes = [f"hardware={continues}", "hardware.precision=32-true", f"max_steps={STEPS}"]
    done = launch(f"resume={folder}", *changes, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    undisturbed = train("fsdp", "hardware=cpu_fsdp", "hardware.precision=32-true")
    if begins == continues:
        assert losses(folder) == losses(undisturbed)
    check_same_run(folder, single)


def rank_of_two(rank: int, folder: Path, whisper: Path, llm: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = make_model(whisper, llm)
    before = {key: value.clone() for key, value in model.adapter.state_dict().items()}
    v = torch.randn(2, 12, 32)
    states = model.student_states(v)
    shard_model(model, init_device_mesh("cpu", (2,)))
    model._prefix_cache = None
    read_alike = torch.allclose(model.student_states(v), states, atol=1e-5)
    held = {}
    for part in ("adapter", "encoder", "llm"):
        tensors = [p.to_local() if isinstance(p, DTensor) else p for p in getattr(model, part).parameters()]
        held[part] = sum(tensor.numel() for tensor in tensors)
    trained = all(isinstance(p, DTensor) for p in model.adapter.parameters())
    after = whole(model.adapter.state_dict())
    same = all(torch.equal(after[key], value) for key, value in before.items())
    torch.save(
        {"held": held, "trained": trained, "same": same, "read_alike": read_alike}, folder / f"{rank}.pt"
    )
    dist.destroy_process_group()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_each_rank_holds_its_share(family, tiny_whisper, tmp_path):
    """Of a multi-modal LLM the text part is shared out, whose layers look through windows of two widths."""
    tiny_llm = make_llm_of(family, tmp_path / "llm")
    mp.start_processes(rank_of_two, (tmp_path, tiny_whisper, tiny_llm), nprocs=2, start_method="fork")
    model = make_model(tiny_whisper, tiny_llm)
    layers = {
        "adapter": model.adapter,
        "encoder": model.encoder.body.layers,
        "llm": decoder(model.llm).layers,
    }
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for part, sharded in layers.items():
        total, shared = (sum(p.numel() for p in x.parameters()) for x in (getattr(model, part), sharded))
        assert sum(each["held"][part] for each in found) == 2 * (total - shared) + shared
    assert all(each["trained"] and each["same"] and each["read_alike"] for each in found)


# ---- processes that something else starts


NODES = ["hardware.accelerator=cpu", "hardware.devices=1", "hardware.precision=32-true"]


@pytest.mark.integration
def test_two_nodes_by_torchrun(single, arguments, shared_cache, tmp_path):
    folder = tmp_path / "run"
    launcher = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    launcher += [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "-m", "diva.train"]
    given = [*arguments, "hardware=gpu_nodes", *NODES, f"hydra.run.dir={folder}"]
    command_line = command("torch.distributed.run", *launcher, *given)
    agents = [
        subprocess.Popen(
            command_line, cwd=tmp_path, env=environment(shared_cache),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [agent.communicate(timeout=600)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    check_same_run(folder, single)


@pytest.mark.integration
def test_two_tasks_by_slurm(single, arguments, shared_cache, tmp_path):
    """What srun sets, without SLURM: a job of two nodes with one task each."""
    folder = tmp_path / "run"
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "diva", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    job |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_LOCALID": "0"}
    job |= {"SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    given = [*arguments, "hardware=gpu_nodes", *NODES, f"hydra.run.dir={folder}"]
    tasks = [
        Command(
            "diva.train", *given, cache=shared_cache, cwd=tmp_path, **job, SLURM_PROCID=rank, SLURM_NODEID=rank
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    for done in [task.wait(600) for task in tasks]:
        assert done.returncode == 0, done.stderr
    check_same_run(folder, single)


@pytest.mark.parametrize(
    "environ",
    [{"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2"}],
)
def test_processes_started_together_need_one_folder(environ):
    with pytest.raises(UserError, match=r"hydra\.run\.dir=runs/NAME"):
        check_shared_folder(["seed=2"], environ)
    check_shared_folder(["seed=2", "hydra.run.dir=runs/a"], environ)
    check_shared_folder(["resume=runs/a"], environ)


def test_a_process_by_itself_needs_no_folder():
    for environ in ({}, {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1"}, {"WORLD_SIZE": "2"}):
        check_shared_folder(["seed=2"], environ)


# ---- the hardware configs that the other tests do not run


@pytest.mark.integration
@pytest.mark.parametrize(
    "hardware",
    [["gpu", "accelerator=cpu"], ["gpu_ddp", "accelerator=cpu", "devices=2"],
     ["gpu_fsdp", "accelerator=cpu", "devices=2"]],
    ids=lambda given: given[0],
)  # fmt: skip
def test_the_papers_recipe_with_tiny_parts(tiny_overrides, tiny_release, shared_cache, tmp_path, hardware):
    name, *changes = hardware
    folder = tmp_path / "run"
    done = launch(
        "experiment=diva_llama3_8b", f"hardware={name}", *(f"hardware.{x}" for x in changes),
        *tiny_overrides, f"data.root={tiny_release}", "data.batch_size=4", "data.num_workers=0", "max_steps=2",
        "val_every=2", "sample_responses=1", "log_every=1", f"hydra.run.dir={folder}",
        cache=shared_cache, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(losses(folder)) == [0, 1]
    assert (folder / "export" / "model.safetensors").is_file()


# ---- what contradicts the hardware


@pytest.mark.parametrize(
    ("given", "mend"),
    [
        (["hardware=cpu_fsdp", "precompute.teacher_states=true"], "precompute.teacher_states=false"),
        (["hardware=gpu_fsdp", "precompute.encoder_frames_gb=1"], "precompute.encoder_frames_gb=0"),
        (["hardware=tpu_v5e", "precompute.encoder_frames_gb=1"], "precompute.encoder_frames_gb=0"),
        (["hardware=tpu_v4_256", "sample_responses=1"], "sample_responses=0"),
        (["hardware=tpu_v4_256", "optimizer.algorithm.fused=true"], "optimizer.algorithm.fused=false"),
        (["hardware=tpu_v4_256", "answers.val_tokens=4"], "answers.val_tokens=0"),
        (["hardware=gpu_fsdp", "objective.answer_tokens=4"], "objective.answer_tokens=0"),
    ],
)
def test_contradictions_say_how_to_mend_them(given, mend):
    with pytest.raises(UserError, match=mend.replace(".", r"\.")):
        check_hardware(check_overrides("train", given))


HARDWARE = sorted(file.stem for file in (Path(CONFIG_DIR) / "hardware").glob("*.yaml"))


@pytest.mark.parametrize("experiment", ["mini", "diva_llama3_8b", "diva_llama32_1b"])
@pytest.mark.parametrize("hardware", HARDWARE)
def test_an_experiment_needs_no_flag_for_any_hardware(experiment, hardware, monkeypatch):
    monkeypatch.setattr(
        diva.training.distributed.checks, "find_spec", lambda name: name
    )  # torch_xla is there
    config = check_overrides("train", [f"experiment={experiment}", f"hardware={hardware}", "data.root=x"])
    check_hardware(config)
    # Of the 8 B model: as many as a TPU v4 of 32 GB and a GPU of 80 GB have room for.
    fits = {"tpu_v4_256": 1, "tpu_v5e": 8} | dict.fromkeys(("gpu", "gpu_ddp", "gpu_fsdp", "gpu_nodes"), 8)
    assert config.hardware.micro_batch_size == fits.get(hardware, 32)
    assert config.data.val_batch_size == {"tpu_v4_256": 1, "tpu_v5e": 8}.get(hardware, 32)


def test_hardware_that_is_not_there_is_the_users_to_mend(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for given in (["hardware=gpu"], ["hardware.devices=0"], ["hardware.precision=8-true"]):
        with pytest.raises(UserError, match="hardware"):
            make_trainer(check_overrides("train", [*given, "logger=csv"]), tmp_path, [])


# ---- activation checkpointing


def test_activation_checkpointing_saves_memory_and_changes_no_number(tiny_whisper, tiny_llm):
    model = make_model(tiny_whisper, tiny_llm, frozen_dtype="bfloat16")
    torch.manual_seed(0)
    waveforms, samples = torch.randn(3, 24_000), torch.tensor([16_000, 20_000, 9_000])
    ids, tokens = torch.randint(5, 300, (3, 10)), torch.tensor([4, 10, 1])

    def step() -> tuple[float, list[torch.Tensor], int]:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.zero_grad()
        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            v = model.virtual_tokens(waveforms, samples)
            loss = align_distances(v, model.embed(ids), tokens)[0].sum()
            loss = loss + distill_distances(model.student_states(v), model.teacher_states(ids, tokens)).sum()
        loss.backward()
        return float(loss), [p.grad.clone() for p in model.adapter.parameters()], sum(kept.values())

    loss, gradients, memory = step()
    checkpoint_activations(model)
    again, recomputed, saved = step()
    assert again == loss
    for ours, theirs in zip(recomputed, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert saved < memory / 2


@pytest.mark.integration
def test_activation_checkpointing_is_a_key_of_the_hardware(train, single):
    checkpointed = train("checkpointed", "hardware.activation_checkpointing=true")
    assert losses(checkpointed) == losses(single)
