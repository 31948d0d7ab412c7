"""Training on TPUs with torch_xla: Lightning's XLA strategies with the additions that this model needs.

XLA traces a step and compiles it for its shapes. A run compiles one program per bucket shape and a few more.
In a step no shape may depend on the data, and the host must not read a value before the end of the step.
"""

from typing import Any, Literal

import torch
from lightning.pytorch.plugins.precision.xla import XLAPrecision
from lightning.pytorch.strategies import SingleDeviceXLAStrategy, Strategy, XLAStrategy
from lightning.pytorch.strategies.launchers.xla import _XLALauncher
from torch import Tensor

from diva.errors import UserError
from diva.training.distributed.fsdp import ReportingLauncher

PrecisionName = Literal["32-true", "bf16-mixed"]


def strategy(devices: int | str, precision: PrecisionName) -> Strategy:
    """Lightning's strategy for one device or for all of each host.

    Raises UserError for a precision that XLA does not support.
    """
    if precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"hardware.precision={precision} is not supported on XLA: set bf16-mixed or 32-true")
    cls = OneDevice if devices in (1, "1") else AllDevices
    options: dict[str, Any] = {"device": 0} if cls is OneDevice else {}
    return cls(precision_plugin=AutocastPrecision(precision), **options)


class AutocastPrecision(XLAPrecision):
    """Parameters in float32. "bf16-mixed" uses autocast to bfloat16, as on other devices."""

    def __init__(self, precision: PrecisionName):
        super().__init__("32-true")
        self.precision = precision  # type: ignore[assignment]

    def forward_context(self) -> torch.autocast:
        return torch.autocast("xla", torch.bfloat16, enabled=self.precision == "bf16-mixed")


class _ExactFloat32:
    """Computes float32 matrix products in float32. A TPU by default rounds their inputs to bfloat16.

    That rounding would lose the quiet bins of a log-mel. The speed of autocast's bfloat16 products does not change.
    """

    def setup_environment(self) -> None:
        from torch_xla.backends import set_mat_mul_precision

        set_mat_mul_precision("highest")
        super().setup_environment()  # type: ignore[misc]


class OneDevice(_ExactFloat32, SingleDeviceXLAStrategy):
    """One device, in this process."""


class _Launcher(ReportingLauncher, _XLALauncher):
    pass


class AllDevices(_ExactFloat32, XLAStrategy):
    """One process per device of each host. The user starts the same command on every host."""

    def _configure_launcher(self) -> None:
        self._launcher = _Launcher(self)

    def process_dataloader(self, dataloader: object) -> Any:
        # Lightning's wrapper prefetches batches and hides the loader's state, so exact resume would be impossible.
        return dataloader

    def reduce(self, output: Any, group: Any = None, reduce_op: Any = "mean") -> Tensor:
        """Reduce on the devices. Lightning's own method pickles the tensors and sends them through the hosts."""
        import torch_xla.core.xla_model as xm

        output = torch.as_tensor(output, device=self.root_device)
        scale = 1.0 if reduce_op == "sum" else 1.0 / self.world_size
        return xm.all_reduce(xm.REDUCE_SUM, output, scale=scale)


def end_of_graph(device: torch.device) -> None:
    """On XLA, compile and run the graph traced so far. On other devices, do nothing."""
    if device.type == "xla":
        import torch_xla

        torch_xla.sync()
