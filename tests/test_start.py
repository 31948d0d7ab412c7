"""Commands look at their command line before they import anything slow; `import diva` imports next to nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from diva.config import CONFIG_DIR
from diva.config.targets import current, import_parameters, read_parameters
from tests.command_line import environment
from tests.test_targets import targets

SLOW = {
    "torch",
    "torchaudio",
    "transformers",
    "lightning",
    "scipy",
    "sklearn",
    "gradio",
    "fastapi",
    "matplotlib",
}
COMMANDS = ("train", "plan", "evaluate", "generate", "serve", "demo", "curves")


def python(cwd: Path, *arguments: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    """A Python of its own, and the packages that it imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=cwd,
        env=environment(cwd),
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done, {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_slow(command, tmp_path):
    done, imported = python(tmp_path, "-m", f"diva.{command}", "--help")
    assert done.returncode == 0
    assert f"diva.{command}" in done.stdout or "Hydra" in done.stdout
    assert "diva" in imported
    assert not imported & SLOW


@pytest.mark.parametrize(
    ("command", "wrong", "right"),
    [
        ("train", "sed=1", "seed"),
        ("train", "+objective.aline_weight=1", "objective.align_weight"),
        ("train", "+precompute.teacher=1", "precompute.teacher_states"),
        ("plan", "data.batchsize=1", "data.batch_size"),
        ("evaluate", "nam=x", "name"),
        ("evaluate", "+task.max_new_token=1", "task.max_new_tokens"),
    ],
)
def test_a_misspelt_key_is_said_before_anything_slow_is_imported(command, wrong, right, tmp_path):
    needed = ["system.model=x"] if command == "evaluate" else []
    done, imported = python(tmp_path, "-m", f"diva.{command}", *needed, wrong)
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert len(said) == 1
    assert f"did you mean '{right}'" in said[0]
    assert not imported & SLOW


def test_a_misspelt_key_of_a_sweep_is_said_before_anything_slow_is_imported(tmp_path):
    done, imported = python(tmp_path, "-m", "diva.train", "-m", "sed=1,2")
    assert done.returncode == 2
    assert "did you mean 'seed'" in done.stderr
    assert not imported & SLOW


def test_parameters_read_from_source_are_those_of_the_imported_target():
    from omegaconf import OmegaConf

    files = Path(CONFIG_DIR).glob("**/*.yaml")
    found = set().union(*(targets(OmegaConf.to_container(OmegaConf.load(file))) for file in files))
    read = {target: read_parameters(current(target)) for target in found}
    known = {target: names for target, names in read.items() if names is not None}
    assert {
        "diva.training.losses.Objective",
        "diva.training.frozen.Precompute",
        "diva.evaluation.task.Task",
    } <= set(known)
    for target, names in known.items():
        assert names == import_parameters(target, ""), target


def test_a_target_that_is_not_there_is_named(tmp_path):
    done, _ = python(tmp_path, "-m", "diva.train", "objective._target_=diva.training.losses.Objektive")
    assert done.returncode == 2
    assert "objective._target_=diva.training.losses.Objektive cannot be found" in done.stderr


# ---- import diva


def test_import_diva_imports_next_to_nothing(tmp_path):
    done, imported = python(tmp_path, "-c", "import diva; print(sorted(dir(diva)))")
    assert done.returncode == 0
    assert "DivaProcessor" in done.stdout
    assert not imported & (SLOW | {"hydra", "numpy", "rich"})


@pytest.mark.parametrize(
    "lines",
    [
        "from transformers import AutoModel; import diva; found = AutoModel.from_pretrained(EXPORT)",
        "import diva; from transformers import AutoProcessor; found = AutoProcessor.from_pretrained(EXPORT)",
        "import diva; from transformers import WhisperModel, AutoModel; found = AutoModel.from_pretrained(EXPORT)",
        "import diva, transformers; c = diva.DivaConfig.from_pretrained(EXPORT)\n"
        "found = transformers.AutoModelForMultimodalLM.from_pretrained(EXPORT, config=c)",
    ],
)
def test_auto_classes_know_diva_after_its_import(lines, export, tmp_path):
    code = (
        lines.replace("EXPORT", repr(str(export))) + "\nprint(type(found).__module__, type(found).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    module, name = done.stdout.split()
    assert module.startswith("diva.models.")
    assert name.startswith("Diva")
