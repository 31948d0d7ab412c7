"""Random kills and failing disks over tiny runs: `python -m tests.chaos [--kills 20] [--stops 5] [--failures 12]`.

A run that is killed at random moments (SIGKILL; SIGTERM for two DDP processes) and resumed each time must end as one
that nothing disturbed: losses to the bit, the same export, each step once in metrics.csv. A run in whose folders
opening, writing and renaming fail at random, its loggers too, must end with its figures or with one line, and resumed
without faults as if nothing had happened. Takes some minutes; what is wrong is printed with the seed that makes it
again.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.command_line import command, environment, losses
from tests.tiny import make_llm, make_tokenizer, make_whisper, write_release

STEPS = 40
# Put before the command, in a process of its own: operations on files below the given folders fail at random.
FAULTS = """
import builtins, errno, os, random, runpy, sys
seed, share, below = int(sys.argv[1]), float(sys.argv[2]), tuple(sys.argv[3].split(os.pathsep))
rng = random.Random(seed)

def failing(function):
    def call(path, *given, **named):
        place = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
        writes = function is not open_ or any(c in str(given[0] if given else named.get("mode", "r")) for c in "wax+")
        if writes and str(place).startswith(below) and rng.random() < share:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
        return function(path, *given, **named)
    return call

open_ = builtins.open
import io
import diva.run, wandb
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
builtins.open = io.open = failing(open_)
os.replace, os.rename = failing(os.replace), failing(os.rename)
for logger in (TensorBoardLogger, WandbLogger):
    def log(self, *given, log=logger.log_metrics, **named):
        if rng.random() < share:
            raise RuntimeError("the logger's server is gone")
        return log(self, *given, **named)
    logger.log_metrics = log
sys.argv = ["diva.train", *sys.argv[4:]]
runpy.run_module("diva.train", run_name="__main__", alter_sys=True)
"""


@dataclass
class World:
    """Tiny models, a tiny Common Voice and a folder for runs."""

    root: Path

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        llm = make_llm(self.root / "llm", make_tokenizer())
        whisper = make_whisper(self.root / "whisper")
        corpus = write_release(self.root / "cv-corpus-tiny", {"train": 22, "dev": 6})
        (self.root / "runs").mkdir()
        self.given = [
            f"model.llm.name={llm}", f"model.encoder.name={whisper}", "model.adapter.num_query_tokens=48",
            "data=common_voice", f"data.root={corpus}", "data.batch_size=4", "log_every=1", "objective=diva",
            f"max_steps={STEPS}", "val_every=10", "checkpoint_every=3", "sample_responses=2",
        ]  # fmt: skip

    def arguments(self, folder: Path, *more: str) -> list[str]:
        """Of the run's first command, or of the one that resumes it."""
        if (folder / "checkpoints" / "last.ckpt").is_file():
            return [f"resume={folder}"]
        return [*self.given, *more, f"hydra.run.dir={folder}"]

    def start(self, arguments: Sequence[str], *before: str) -> subprocess.Popen:
        """A run, in a process group of its own."""
        line = [sys.executable, "-c", FAULTS, *before] if before else command("diva.train")
        return subprocess.Popen(
            [*line, *arguments],
            cwd=self.root,
            env=environment(self.root / "cache") | {"WANDB_SILENT": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, folder: Path, *more: str) -> str | None:
        """Run or resume without disturbance; what is wrong with how it ended."""
        process = self.start(self.arguments(folder, *more))
        said = process.communicate(timeout=600)[1]
        return None if process.returncode == 0 else f"exit {process.returncode}: {said[-500:]}"


def difference(folder: Path, undisturbed: Path) -> str | None:
    """What two runs do not have in common that they should."""
    rows = [line.split(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    twice = sorted({row for row in rows if rows.count(row) > 2})  # of training and of validation
    if twice:
        return f"steps {twice} are in metrics.csv more than once"
    if losses(folder) != losses(undisturbed):
        mine, theirs = losses(folder), losses(undisturbed)
        return f"losses differ at steps {[step for step in theirs if mine.get(step) != theirs[step]]}"
    ours, its = (load_file(run / "export" / "model.safetensors") for run in (folder, undisturbed))
    wrong = [name for name in its if name not in ours or not torch.equal(ours[name], its[name])]
    return f"the export differs in {wrong}" if wrong else None


def last_step(folder: Path) -> int:
    """The last step in metrics.csv, -1 before the first."""
    return max(losses(folder), default=-1) if (folder / "metrics.csv").is_file() else -1


def killed(world: World, name: str, times: int, sent: signal.Signals, rng: random.Random, *more: str) -> str:
    """A run that gets a signal so many times; "" or what is wrong."""
    undisturbed, folder = world.root / "runs" / f"{name}_whole", world.root / "runs" / f"{name}_killed"
    started = time.monotonic()
    if wrong := world.finish(undisturbed, *more):
        return f"undisturbed: {wrong}"
    lasts = time.monotonic() - started
    for number in range(times):
        process = world.start(world.arguments(folder, *more))
        until = time.monotonic() + rng.uniform(0.2, 1.0) * lasts
        # The longer it has come, the sooner it would end: it is killed after a few steps at the latest.
        limit = last_step(folder) + rng.randint(1, 4)
        while time.monotonic() < until and process.poll() is None and last_step(folder) < limit:
            time.sleep(0.01)
        with suppress(ProcessLookupError):  # it has just ended
            (os.killpg if sent == signal.SIGKILL else os.kill)(process.pid, sent)
        status, said = process.wait(120), process.stderr.read() if process.stderr else ""
        print(f"{name} {number}: exit {status} at step {last_step(folder)}", flush=True)
        if status == 0:
            break
        if status not in (-sent, 128 + sent):
            return f"exit {status} after {sent.name}: {said[-500:]}"
    return world.finish(folder, *more) or difference(folder, undisturbed) or ""


def failing(world: World, number: int, rng: random.Random, undisturbed: Path) -> str:
    """A run in whose folders files fail at random; "" or what is wrong."""
    folder, share = world.root / "runs" / f"failing_{number}", rng.choice([0.003, 0.01, 0.03])
    logger = rng.choice(["logger=default", "logger=wandb"])
    below = os.pathsep.join(map(str, (folder, world.root / "cache")))
    process = world.start(world.arguments(folder, logger), str(rng.randrange(10**6)), str(share), below)
    said = process.communicate(timeout=600)[1]
    lines = [line for line in said.splitlines() if line.startswith("diva: ")]
    print(f"failing {number}: {logger}, share {share}, exit {process.returncode} {lines[-1:]}", flush=True)
    if process.returncode == 2:
        if "Traceback" in said or len(lines) != 1:
            return f"exit 2 with other than one line: {said[-1500:]}"
    elif process.returncode != 0:
        return f"exit {process.returncode}: {said[-1500:]}"
    elif not (folder / "summary.json").is_file():
        return "exit 0 without figures"
    return world.finish(folder, logger) or difference(folder, undisturbed) or ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=5, help="SIGTERMs to a run of two DDP processes")
    parser.add_argument("--failures", type=int, default=12, help="runs whose disk and loggers fail")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        rng = random.Random(given.seed)
        wrong.append(killed(world, "killed", given.kills, signal.SIGKILL, rng))
        if given.stops:
            wrong.append(killed(world, "ddp", given.stops, signal.SIGTERM, rng, "hardware=cpu_ddp"))
        for number in range(given.failures):
            wrong.append(failing(world, number, rng, world.root / "runs" / "killed_whole"))
    found = [f"seed {given.seed}: {line}" for line in wrong if line]
    print("\n".join(found) or "nothing is wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
