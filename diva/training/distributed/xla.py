"""Training on TPUs through torch_xla: Lightning's XLA strategies, and what they lack for this model.

XLA traces a step and compiles it for its shapes, so a run has as many programs as there are buckets and a few more.
Nothing in a step may have a shape that the data decide, nor be read by the host before its end.
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
    """Lightning's strategy for one device or for all of each host; UserError for a precision that XLA has not."""
    if precision not in ("32-true", "bf16-mixed"):
        raise UserError(f"hardware.precision={precision} is none of XLA's: take bf16-mixed or 32-true")
    cls = OneDevice if devices in (1, "1") else AllDevices
    options: dict[str, Any] = {"device": 0} if cls is OneDevice else {}
    return cls(precision_plugin=AutocastPrecision(precision), **options)


class AutocastPrecision(XLAPrecision):
    """Parameters in float32; with "bf16-mixed" what can be is computed in bfloat16, as by autocast elsewhere."""

    def __init__(self, precision: PrecisionName):
        super().__init__("32-true")
        self.precision = precision  # type: ignore[assignment]

    def forward_context(self) -> torch.autocast:
        return torch.autocast("xla", torch.bfloat16, enabled=self.precision == "bf16-mixed")


class _ExactFloat32:
    """Products of float32 in float32. A TPU would round them to bfloat16, which drowns a log-mel's quiet bins.

    What autocast computes in bfloat16 is as fast as before.
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
    """A process for each device of each host; the same command is started on every host."""

    def _configure_launcher(self) -> None:
        self._launcher = _Launcher(self)

    def process_dataloader(self, dataloader: object) -> Any:
        # Lightning's wrapper takes batches ahead and hides the loader's state: a run could not be resumed exactly.
        return dataloader

    def reduce(self, output: Any, group: Any = None, reduce_op: Any = "mean") -> Tensor:
        """Lightning's own sends tensors through the hosts, pickled."""
        import torch_xla.core.xla_model as xm

        output = torch.as_tensor(output, device=self.root_device)
        scale = 1.0 if reduce_op == "sum" else 1.0 / self.world_size
        return xm.all_reduce(xm.REDUCE_SUM, output, scale=scale)


def end_of_graph(device: torch.device) -> None:
    """Let XLA run what it has traced so far; nothing on other devices."""
    if device.type == "xla":
        import torch_xla

        torch_xla.sync()
