"""The devices of a hardware config: their number, memory and speed."""

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diva.errors import UserError

_GIB = 2**30
_LIBC = ctypes.CDLL(None)
# Devices per node that devices="all" stands for, if this machine has no such device to count.
_ASSUMED_DEVICES = 8


@dataclass(frozen=True)
class Device:
    """One device: found in this machine, given by the user, or assumed. `origin` says which."""

    accelerator: str  # cpu, gpu or tpu
    memory: int | None  # bytes; None: not known
    tflops: float | None  # peak TFLOP/s in bfloat16; None: to be measured on this machine
    origin: str
    here: bool  # whether this machine has it


# Manufacturers' peak TFLOP/s for dense bfloat16, by words in the device's name. The first match is used.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
}
_H100 = Device("gpu", 80 * 10**9, PEAK_TFLOPS["H100"], "assumed: NVIDIA H100 SXM, 80 GB", False)
_TPU_V4 = Device("tpu", 32 * _GIB, 275.0, "assumed: TPU v4 chip, 32 GiB", False)


def find_device(accelerator: str, memory_gb: float | None = None, tflops: float | None = None) -> Device:
    """The device of a hardware config's `accelerator`.

    `memory_gb` (10^9 bytes) and `tflops` (TFLOP/s) replace the values that are found or assumed.
    """
    found = _found(accelerator)
    for key, value in (("device_memory_gb", memory_gb), ("device_tflops", tflops)):
        if value is not None and value <= 0:
            raise UserError(f"plan.{key}={value} must be above 0")
    if memory_gb is None and tflops is None:
        return found
    given = [f"{memory_gb:g} GB"] if memory_gb is not None else []
    given += [f"{tflops:g} TFLOP/s"] if tflops is not None else []
    return Device(
        accelerator,
        found.memory if memory_gb is None else int(memory_gb * 1e9),
        found.tflops if tflops is None else tflops,
        f"given: {', '.join(given)}" + ("" if len(given) == 2 else f"; else {found.origin}"),
        found.here,
    )


def _found(accelerator: str) -> Device:
    if accelerator == "tpu":
        return _TPU_V4
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            return _H100
        properties = torch.cuda.get_device_properties(0)
        return Device("gpu", properties.total_memory, None, f"found here: {properties.name}", True)
    if accelerator in ("cpu", "auto"):
        return Device("cpu", host_memory(), None, f"this CPU, {torch.get_num_threads()} threads", True)
    return Device(accelerator, None, None, f"{accelerator}, memory and speed unknown", False)


def peak_tflops(name: str) -> float:
    """Peak TFLOP/s of the device of this name, in dense bfloat16. Raises UserError for an unknown device."""
    for words, tflops in PEAK_TFLOPS.items():
        if re.search(rf"\b{words}\b", name):
            return tflops
    raise UserError(f"the peak of {name} is not known here; give --peak-tflops, for dense bfloat16")


def host_memory() -> int | None:
    """Bytes of memory and swap for all processes of this machine together; None if the system does not report it."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + _swap()
    except (ValueError, OSError, AttributeError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")  # the limit of a container
    text = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _swap() -> int:
    file = Path("/proc/meminfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("SwapTotal:")), 0)


def resident_bytes() -> int:
    """Resident bytes of this process: interpreter, libraries and everything allocated so far."""
    file = Path("/proc/self/statm")
    return (
        int(file.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.is_file() else 0
    )


def give_back_memory() -> None:
    """Return freed memory to the system. glibc does not do so, and later tensors may not fit into its free blocks."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def devices_per_node(hardware: Any) -> tuple[int, str]:
    """Number of devices per node that a hardware config uses, and a note if the number is assumed."""
    wanted = hardware.devices
    if isinstance(wanted, int) and wanted > 0:
        return wanted, ""
    if wanted in (-1, "-1", "auto"):
        if hardware.accelerator == "cpu":
            return 1, ""
        if hardware.accelerator == "gpu" and torch.cuda.is_available():
            return torch.cuda.device_count(), ""
        return _ASSUMED_DEVICES, f"hardware.devices={wanted} counted as {_ASSUMED_DEVICES} a node"
    if isinstance(wanted, str):
        return (int(wanted), "") if wanted.isdigit() else (len(wanted.split(",")), "")
    return len(wanted), ""


def is_sharded(strategy: Any) -> bool:
    """Whether a strategy (its name, or a config with `_target_`) shards the weights over the devices."""
    name = strategy if isinstance(strategy, str) else str(strategy.get("_target_", ""))
    return any(word in name.lower() for word in ("fsdp", "modelparallel", "deepspeed"))


def is_ddp(strategy: Any) -> bool:
    """Whether a strategy has a copy of all weights on each device and sums gradients in buckets (DDP)."""
    name = strategy if isinstance(strategy, str) else str(strategy.get("_target_", ""))
    return "ddp" in name.lower()
