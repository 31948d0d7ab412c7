"""Processes of diva's commands, on one thread each."""

import atexit
import csv
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

# torch, Lightning and transformers take longer to import than most commands to run: a process that has imported
# them, and done nothing else, forks into each command. What `Popen(command(...))` starts is imported anew.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        "diva.run",
        "diva.evaluation.evaluate",
        "diva.models.load",
        "diva.serving.demo",
        "diva.planning.duration",
    ]
)


def environment(cache: Path) -> dict[str, str]:
    # One thread: sums in a fixed order, and no fight over two cores.
    return os.environ | {
        "DIVA_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


class Command:
    """`python -m module arguments`, from its first line to its exit status, with some more variables."""

    def __init__(self, module: str, *arguments: str, cache: Path, cwd: Path, **variables: str):
        self.command = command(module, *arguments)
        self.folder = tempfile.TemporaryDirectory()
        self.outputs = Path(self.folder.name, "stdout"), Path(self.folder.name, "stderr")
        with patch.dict(os.environ, environment(cache)):
            forkserver.ensure_running()
            given = module, self.command[3:], cwd, os.environ | variables, self.outputs
            self.process = _PROCESSES.Process(target=_main, args=given)
            self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float) -> subprocess.CompletedProcess:
        self.process.join(timeout)
        status = self.process.exitcode
        if status is None:
            self.process.kill()
        said = [file.read_text() if file.exists() else "" for file in self.outputs]
        self.folder.cleanup()
        if status is None:
            raise subprocess.TimeoutExpired(self.command, timeout, *said)
        return subprocess.CompletedProcess(self.command, status, *said)


def run(
    module: str, *arguments: str, cache: Path, cwd: Path, timeout: float = 200
) -> subprocess.CompletedProcess:
    return Command(module, *arguments, cache=cache, cwd=cwd).wait(timeout)


def run_ranks(
    *arguments: str, cache: Path, cwd: Path, timeout: float = 200, ranks: int = 2
) -> subprocess.CompletedProcess:
    """diva.train as so many processes that something else has started, each told its rank; that of rank 0."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    started = [
        Command("diva.train", *arguments, cache=cache, cwd=cwd, LOCAL_RANK=str(rank), **where)
        for rank in range(ranks)
    ]
    first, *others = [each.wait(timeout) for each in started]
    assert all(other.returncode == first.returncode for other in others), others
    return first


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _main(
    module: str, arguments: list[str], cwd: Path, variables: dict[str, str], outputs: tuple[Path, Path]
) -> None:
    for number, file in enumerate([Path(os.devnull), *outputs]):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    sys.argv = [module, *arguments]
    multiprocessing.set_start_method(None, force=True)  # the platform's, as in a process of its own
    sys.modules.pop(module, None)  # runpy warns of what is imported already
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def metrics(run_folder: Path) -> list[dict[str, str]]:
    with open(run_folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def losses(run_folder: Path) -> dict[int, tuple[str, ...]]:
    """step -> (loss, align, distill) as written, digit for digit."""
    names = ("train/loss", "train/align", "train/distill")
    rows = (row for row in metrics(run_folder) if row["train/loss"])
    return {int(row["step"]): tuple(row.get(name, "") for name in names) for row in rows}
