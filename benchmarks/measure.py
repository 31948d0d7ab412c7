"""Shared functions of the benchmarks: time and memory by part, measuring in turns, medians, result files."""

import csv
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diva.markdown import table
from diva.training.distributed.devices import give_back_memory
from diva.training.run_folder import environment

RESULTS = Path(__file__).parent / "results"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Parts:
    """Seconds of the named parts of a step, in the order in which they run.

    With `memory` also the most bytes that each took beyond what was held when the step began: of the process, or of
    the tensors on a CUDA device; 0 where the system does not tell. That slows a step, so time others.
    """

    def __init__(self, device: torch.device | str = "cpu", memory: bool = False):
        self.device = torch.device(device)
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}
        self.memory = memory
        if memory:
            reset_peak(self.device)
            self._held = peak_bytes(self.device)
        self.start()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.start()
        yield
        self.end(name)

    def start(self) -> None:
        if self.memory:
            reset_peak(self.device)
        self._started = self._now()

    def end(self, name: str) -> None:
        """What has run since the last start is that part; the next begins."""
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - self._started
        if self.memory:
            taken = peak_bytes(self.device) - self._held
            self.bytes[name] = max(self.bytes.get(name, 0), taken)
        self.start()

    def ends_at(self, tensor: Tensor, name: str) -> None:
        """A part of the backward pass ends where the gradient of this tensor is known."""
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: self.end(name))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Set the peak to the memory that is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        give_back_memory()  # or the next contender would have it
        _CLEAR.write_text("5")  # proc(5)


def peak_bytes(device: torch.device) -> int:
    """Since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not _STATUS.exists():
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else 0


def in_turn(contenders: Mapping[str, Callable[[int], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one that does not count; they are given the round's number."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-1, rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run(number)
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def seconds_a_clip(run: Path) -> list[float]:
    """Of each step of a run of diva.train that logged all of them: by clip, for batches may have empty rows."""
    with open(run / "metrics.csv") as file:
        found = [row["train/clips_per_second"] for row in csv.DictReader(file)]
    return [1 / float(value) for value in found if value]


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """n, the median, and the spread: the least and the most."""
    return {
        "n": len(seconds),
        "median": round(statistics.median(seconds), 4),
        "least": round(min(seconds), 4),
        "most": round(max(seconds), 4),
    }


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; floats with two decimals."""
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join(table(columns, cells, numbers=True)) + "\n"


def write_results(name: str, figures: dict[str, Any], text: str, folder: Path) -> None:
    """`name`.json and `name`.md in `folder`; the first with the revision, the versions and the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    # What another benchmark has just written is no change of what is measured.
    result = {**figures, **environment(apart_from="benchmarks/results")}
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    machine = result["machine"]
    on = ", ".join(machine["gpus"]) or f"{machine['cpu_threads']} CPU threads"
    (folder / f"{name}.md").write_text(f"{text}\nRevision `{result['revision']}`, {on}.\n")
