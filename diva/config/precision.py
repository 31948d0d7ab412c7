"""The default precision of a CPU run: the resolvers `${cpu_precision:}` and `${frozen_dtype:PRECISION}`."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

if TYPE_CHECKING:
    import torch


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products. Without them bfloat16 is up to 100 times slower.

    On x86 the CPU features are checked by name, because oneDNN also accepts CPUs that convert to float32 and back.
    """
    import torch  # imported here: it takes a second, and the error for a misspelt key does not need it

    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def cpu_precision() -> str:
    """Lightning's name of the fastest precision for training on this CPU."""
    return "bf16-mixed" if cpu_has_bfloat16() else "32-true"


def frozen_dtype(precision: str) -> str:
    """The dtype of the frozen weights in a run of this precision: float32 for "32-true", otherwise bfloat16."""
    return "float32" if str(precision).startswith("32") else "bfloat16"


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype of autocast in a run of this precision; None without autocast, as for "32-true"."""
    import torch

    kind, _, how = str(precision).partition("-")
    return {"16": torch.float16, "bf16": torch.bfloat16}.get(kind) if how == "mixed" else None


def register() -> None:
    """Let configs use both."""
    OmegaConf.register_new_resolver("cpu_precision", cpu_precision, replace=True)
    OmegaConf.register_new_resolver("frozen_dtype", frozen_dtype, replace=True)
