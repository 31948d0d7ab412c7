"""A run's folder has one run at a time, and what its disk or its user's rights refuse is one line."""

import getpass
import os
import pwd
import resource
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from command_line import losses, run
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from safetensors.torch import save_file
from stand_ins import FORK, wait_until

from diva.command import name_user, refusal
from diva.errors import UserError
from diva.evaluation.runner import Runner
from diva.folders import is_first_process, take, take_new
from diva.training import run_folder
from diva.training.checkpoints import StreamedCheckpointIO

pytestmark = pytest.mark.faults
SHORT = ["checkpoint_every=2", "sample_responses=0", "logger=csv", "objective.distill_from_step=0"]


def holds(folder: Path) -> None:
    take(folder)
    (folder / "here").touch()
    signal.pause()


@pytest.fixture
def another(tmp_path):
    """A process that has `tmp_path/run`, and a fork of its own."""
    process = FORK.Process(target=holds, args=(tmp_path / "run",))
    process.start()
    wait_until((tmp_path / "run" / "here").exists)
    yield process
    process.kill()
    process.join()


def test_a_folder_is_one_process_s_until_it_ends_however_it_ends(another, tmp_path):
    with pytest.raises(UserError, match="run is in use: another process writes into it"):
        take(tmp_path / "run")
    assert take_new(tmp_path / "run") == tmp_path / "run_2"
    another.kill()
    another.join()
    take(tmp_path / "run")
    take(tmp_path / "run")  # its own is no other's


def test_a_fork_does_not_keep_the_folder_of_a_killed_process(tmp_path):
    """DataLoader workers live on for some seconds."""

    def forks() -> None:
        take(tmp_path / "run")
        if os.fork():
            (tmp_path / "worker").touch()
            signal.pause()
        os.setsid()
        (tmp_path / "pid").write_text(str(os.getpid()))
        signal.pause()

    process = FORK.Process(target=forks)
    process.start()
    wait_until(lambda: (tmp_path / "worker").exists() and (tmp_path / "pid").exists())
    process.kill()
    process.join()
    worker = int((tmp_path / "pid").read_text())
    try:
        os.kill(worker, 0)
        take(tmp_path / "run")
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize(
    ("environ", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"GROUP_RANK": "1", "RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"GROUP_RANK": "1", "RANK": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "3", "LOCAL_RANK": "0"}, True),
    ],
)
def test_one_process_of_a_run_takes_its_folder(environ, first):
    assert is_first_process(environ) == first


def hydra_config(monkeypatch, folder: Path, named: bool) -> OmegaConf:
    config = OmegaConf.create(
        {
            "run": {"dir": str(folder)},
            "runtime": {"output_dir": str(folder)},
            "overrides": {"hydra": [f"hydra.run.dir={folder}"] if named else []},
        }
    )
    OmegaConf.set_readonly(config, True)
    monkeypatch.setattr(HydraConfig, "get", lambda: config)
    return config


def test_runs_of_the_same_second_have_a_folder_each(another, tmp_path, monkeypatch):
    config = OmegaConf.create({"hardware": {"accelerator": "cpu"}})
    hydra = hydra_config(monkeypatch, tmp_path / "run", named=False)
    assert run_folder.own_folder(config, tmp_path / "run") == tmp_path / "run_2"
    assert hydra.run.dir == str(tmp_path / "run_2"), "the other ranks are started with it"
    hydra_config(monkeypatch, tmp_path / "run", named=True)
    with pytest.raises(UserError, match="in use"):
        run_folder.own_folder(config, tmp_path / "run")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_folder.own_folder(config, tmp_path / "run") == tmp_path / "run"


def test_an_evaluation_has_its_folder_to_itself(another, tmp_path):
    class System:
        batches = True

    with pytest.raises(UserError, match="in use"):
        Runner(System(), None, 1, None, tmp_path / "run", 1, "").run(None, [])


# ---- what the machine refuses


def refused(work) -> str | None:
    with pytest.raises(Exception) as caught:  # noqa: PT011, whatever it is
        work()
    return refusal(caught.value)


def test_what_the_machine_refuses_has_a_remedy(tmp_path):
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "run"
    assert refused(lambda: take(below)).startswith(f"{below}: Not a directory; a file stands")
    assert refused(lambda: take(tmp_path / "file")).startswith(
        f"{tmp_path / 'file'}: File exists; a file stands"
    )
    assert refused((tmp_path).read_text).endswith(
        "a folder stands where a file is needed; name another place"
    )
    assert "Permission denied; give this user the right" in refusal(PermissionError(13, "", "x"))
    assert "x: Read-only file system" in refusal(OSError(30, "", "x"))
    assert refusal(OSError(5, "Input/output error")) is None
    assert refusal(ValueError("no")) is None


def test_a_user_without_name_and_home_has_both(monkeypatch, tmp_path, capsys):
    def nobody(uid: int):
        raise KeyError(uid)

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("USER")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    name_user()
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert Path("~").expanduser().parent == tmp_path
    assert Path("~").expanduser().is_dir()
    assert capsys.readouterr().err.startswith("HOME is not set")


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path):
    (tmp_path / "last.tmp").symlink_to("/dev/full")
    said = refused(
        lambda: StreamedCheckpointIO().save_checkpoint({"a": torch.zeros(100_000)}, tmp_path / "last.tmp")
    )
    assert said.startswith(f"{tmp_path / 'last.tmp'}: No space left on device; make room")
    assert not (tmp_path / "last.tmp").is_symlink()


def test_safetensors_says_of_a_full_disk_what_the_others_say(tmp_path):
    """Its error has the system's number in its text alone. The limit ends with the fork."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        tensors = {"a": torch.zeros(100_000)}
        said = refused(lambda: save_file(tensors, tmp_path / "model.safetensors"))
        (tmp_path / "said").write_text(str(said))

    process = FORK.Process(target=work)
    process.start()
    process.join(60)
    assert (tmp_path / "said").read_text().startswith("File too large; raise the limit")


@pytest.mark.integration
def test_a_run_is_alone_in_its_folder_and_outlives_a_full_disk(tiny_run, shared_cache, tmp_path):
    folder = tmp_path / "it's 日本=語"
    given = [*tiny_run, *SHORT, f"hydra.run.dir={folder}"]
    (folder / "checkpoints").mkdir(parents=True)

    def one_line(done: subprocess.CompletedProcess) -> str:
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("diva: ")]
        return line

    process = FORK.Process(target=holds, args=(folder,))
    process.start()
    wait_until((folder / "here").exists)
    assert "is in use" in one_line(run("diva.train", *given, cache=shared_cache, cwd=tmp_path))
    process.kill()
    process.join()
    assert not (folder / "config.yaml").exists()
    done = run("diva.train", *given, "max_steps=2", "val_every=2", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = folder / "checkpoints" / "last.ckpt"
    last.with_suffix(".tmp").symlink_to("/dev/full")
    full = run("diva.train", f"resume={folder}", "max_steps=4", cache=shared_cache, cwd=tmp_path)
    assert f"{last.with_suffix('.tmp')}: No space left on device; make room" in one_line(full)
    assert torch.load(last, weights_only=True)["global_step"] == 2
    done = run("diva.train", f"resume={folder}", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(losses(folder)) == [0, 1, 2, 3]
    assert torch.load(last, weights_only=True)["global_step"] == 4
