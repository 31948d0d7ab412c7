"""Processes of diva's commands, on one thread each."""

import atexit
import csv
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

# torch, Lightning and transformers take longer to import than most commands to run: a process that has imported
# them, and done nothing else, forks into each command. What `Popen(command(...))` starts is imported anew.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["diva.train", "diva.evaluate", "diva.generate", "diva.demo", "diva.plan"])


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


def run(
    module: str, *arguments: str, cache: Path, cwd: Path, timeout: float = 200
) -> subprocess.CompletedProcess:
    """`python -m module arguments`, from its first line to its exit status."""
    variables = environment(cache)
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, variables):
        forkserver.ensure_running()
        outputs = Path(folder, "stdout"), Path(folder, "stderr")
        given = module, [str(argument) for argument in arguments], cwd, variables, outputs
        process = _PROCESSES.Process(target=_main, args=given)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command(module, *arguments), timeout, *map(_text, outputs))
        return subprocess.CompletedProcess(
            command(module, *arguments), process.exitcode, *map(_text, outputs)
        )


def _main(
    module: str, arguments: list[str], cwd: Path, variables: dict[str, str], outputs: tuple[Path, Path]
) -> None:
    for number, file in enumerate([Path(os.devnull), *outputs]):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # runpy warns of what is imported already
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def metrics(run_folder: Path) -> list[dict[str, str]]:
    with open(run_folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def losses(run_folder: Path) -> dict[int, tuple[str, ...]]:
    """step -> (loss, align, distill) as written, digit for digit."""
    names = ("train/loss", "train/align", "train/distill")
    rows = (row for row in metrics(run_folder) if row["train/loss"])
    return {int(row["step"]): tuple(row.get(name, "") for name in names) for row in rows}
