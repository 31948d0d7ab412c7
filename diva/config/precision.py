"""The precision of a CPU run by default: the resolvers `${cpu_precision:}` and `${frozen_dtype:PRECISION}`."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

if TYPE_CHECKING:
    import torch


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions that multiply bfloat16. Without them it is up to 100 times slower than float32.

    Asked by name on x86, because oneDNN also says yes to CPUs that convert to float32 and back.
    """
    import torch  # takes a second, which a misspelt key does not wait for

    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def cpu_precision() -> str:
    """Lightning's name of the fastest precision that trains on this CPU."""
    return "bf16-mixed" if cpu_has_bfloat16() else "32-true"


def frozen_dtype(precision: str) -> str:
    """What frozen weights are held in for a run of this precision: float32 for "32-true", else bfloat16."""
    return "float32" if str(precision).startswith("32") else "bfloat16"


def autocast_dtype(precision: str) -> torch.dtype | None:
    """What operations are cast to by a run of this precision; None where nothing is cast, as with "32-true"."""
    import torch

    kind, _, how = str(precision).partition("-")
    return {"16": torch.float16, "bf16": torch.bfloat16}.get(kind) if how == "mixed" else None


def register() -> None:
    """Let configs use both."""
    OmegaConf.register_new_resolver("cpu_precision", cpu_precision, replace=True)
    OmegaConf.register_new_resolver("frozen_dtype", frozen_dtype, replace=True)
