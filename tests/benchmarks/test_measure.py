"""What benchmarks share, apart from their timing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import write_results
from diva.training import run_folder as records

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository in place of this one, with a committed source and a committed result."""

    def git(*command: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True, capture_output=True)

    for file in ("diva/training/run_folder.py", "benchmarks/results/training.json"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("{}\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(records, "__file__", str(tmp_path / "diva" / "training" / "run_folder.py"))
    return tmp_path


def test_a_result_of_another_benchmark_is_no_change(clone):
    committed = records.git_revision()
    (clone / "benchmarks" / "results" / "training.json").write_text("[]\n")
    write_results("savings", {"rows": []}, "a table", clone / "benchmarks" / "results")
    found = json.loads((clone / "benchmarks" / "results" / "savings.json").read_text())
    assert found["revision"] == committed
    assert committed in (clone / "benchmarks" / "results" / "savings.md").read_text()
    assert records.git_revision() == f"{committed}-dirty", "of a run it is one"


def test_a_changed_source_is_a_change(clone):
    committed = records.git_revision()
    (clone / "diva" / "training" / "run_folder.py").write_text("[]\n")
    assert records.git_revision() == records.git_revision("benchmarks/results") == f"{committed}-dirty"


def test_the_gpu_benchmark_needs_little():
    """A machine with a GPU and torch has not all that training may want."""
    spared = {"datasets", "wandb", "optuna", "submitit", "tensorboard", "gguf", "sacrebleu", "sklearn"}
    script = f"import sys; import benchmarks.gpu; print(sorted({spared} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_what_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(records, "_VERSIONS", ("torch", "no-such-package"))
    assert records.environment()["versions"].keys() == {"python", "torch"}


def test_outside_a_clone_the_revision_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "__file__", str(tmp_path / "run_folder.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records.git_revision() == records.git_revision("benchmarks/results") == "unknown"
