"""Training under real torch_xla, on its CPU device (`make test-xla`)."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from command_line import environment, losses, run
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.xla,
    pytest.mark.integration,
    pytest.mark.timeout(7000),
    pytest.mark.skipif(find_spec("torch_xla") is None, reason="torch_xla has an environment of its own"),
]
STEPS = 8
BUCKETS = 2


@pytest.fixture(scope="module")
def arguments(tiny_overrides: list[str], tiny_release: Path) -> list[str]:
    return [
        "experiment=diva_llama3_8b",
        *tiny_overrides,
        "model.encoder.context=bucket",
        f"data.root={tiny_release}",
        "data.batch_size=4",
        f"data.num_buckets={BUCKETS}",
        "data.num_workers=0",
        "optimizer.warmup_steps=2",
        "optimizer.lr=1e-3",
        f"max_steps={STEPS}",
        f"val_every={STEPS}",
        "log_every=1",
        "sample_responses=0",
    ]


EXACT = ["hardware.precision=32-true", "model.frozen_dtype=float32"]


@pytest.fixture(scope="module")
def on_cpu(arguments, shared_cache, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cpu"
    given = [*arguments, "hardware=cpu", *EXACT, f"hydra.run.dir={folder}"]
    done = run("diva.train", *given, cache=shared_cache, cwd=folder.parent, timeout=3000)
    assert done.returncode == 0, done.stderr
    return folder


def train_on_xla(folder: Path, cache: Path, *given: str) -> list[dict[str, int]]:
    counts = folder.parent / "counts.json"
    script = str(Path(__file__).parent / "xla_train.py")
    done = subprocess.run(
        [sys.executable, script, str(counts), *given, f"hydra.run.dir={folder}"],
        cwd=folder.parent,
        env=environment(cache) | {"PJRT_DEVICE": "CPU"},
        capture_output=True,
        text=True,
        timeout=6500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(counts.read_text())


@pytest.mark.parametrize("hardware", ["tpu_v4_256", "tpu_v5e"])
def test_losses_are_those_of_the_cpu(on_cpu, arguments, shared_cache, tmp_path, hardware):
    """With activation checkpointing, gradient clipping and validation, as the configs have them."""
    folder = tmp_path / "run"
    one_chip = [f"hardware={hardware}", "hardware.devices=1", "hardware.num_nodes=1"]
    steps = train_on_xla(folder, shared_cache, *arguments, *one_chip, *EXACT)
    expected, ours = losses(on_cpu), losses(folder)
    assert list(ours) == list(expected) == list(range(STEPS))
    for step, terms in expected.items():
        assert [float(x) for x in ours[step]] == pytest.approx([float(x) for x in terms], abs=1e-4)
    summaries = [json.loads((run_folder / "summary.json").read_text()) for run_folder in (on_cpu, folder)]
    for figure in ("val/kl", "val/alignment_accuracy", "val/first_token_agreement"):
        assert summaries[1][figure] == pytest.approx(summaries[0][figure], abs=1e-3)
    weights = [load_file(each / "export" / "model.safetensors") for each in (on_cpu, folder)]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, atol=1e-3, rtol=0)
    # A v4 takes one clip at a time: making gradients of zero and updating weights are then programs of their own.
    check_programs(steps, beside=5 if hardware == "tpu_v4_256" else 3)


def check_programs(steps: list[dict[str, int]], beside: int) -> None:
    """One for each shape, and so many that do not depend on shapes."""
    shapes = {step["samples"] for step in steps}
    assert len(shapes) == BUCKETS, "both shapes have to come"
    assert sum(step["compiles"] for step in steps) <= len(shapes) + beside
    on_host = {name: n for step in steps for name, n in step.items() if name.startswith("aten::") and n}
    assert not on_host, "operations of a step that XLA leaves to the host"


def test_autocast_to_bfloat16(arguments, shared_cache, tmp_path):
    folders = [tmp_path / "cpu", tmp_path / "xla"]
    short = [*arguments, "max_steps=2", "val_every=2"]
    done = run(
        "diva.train", *short, "hardware=cpu", f"hydra.run.dir={folders[0]}", cache=shared_cache, cwd=tmp_path,
        timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = train_on_xla(folders[1], shared_cache, *short, "hardware=tpu_v5e", "hardware.devices=1")
    assert len(steps) == 2
    expected, ours = (losses(folder) for folder in folders)
    for step, terms in expected.items():
        assert [float(x) for x in ours[step]] == pytest.approx([float(x) for x in terms], rel=0.02)
    assert ours != expected
