"""What a training run will cost: `python -m diva.plan [experiment=NAME] [group=CHOICE ...] [key=value ...]`.

It takes the arguments of diva.train. From the configs alone it estimates the memory, the FLOPs and the duration of the
run. It needs neither weights nor data. A missing corpus is assumed to be like Common Voice (plan.median_seconds=S
changes the length of its clips). A missing device is assumed, or given with plan.device_memory_gb=GB,
plan.device_tflops=PEAK and plan.mfu=FRACTION. plan.json=FILE also writes the numbers to a file.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.table import Table

from diva.command import exit_codes, quieten
from diva.config import check_overrides
from diva.config.hydra_private import command_line, readable
from diva.errors import UserError
from diva.terminal import stdout_console

if TYPE_CHECKING:
    from diva.planning.duration import Phase
    from diva.planning.memory import Memory


@exit_codes
def main() -> None:
    """Console entry point."""
    sys.argv[1:] = map(readable, sys.argv[1:])
    parsed = command_line()
    if parsed.help:
        print((__doc__ or "").strip())
        return
    config = compose(parsed.overrides, parsed.config_dir)
    quieten()
    plan = make_plan(config)
    show(plan, " ".join(parsed.overrides) or "diva.train")
    if config.plan.json:
        Path(config.plan.json).write_text(json.dumps(asdict(plan), indent=2) + "\n", encoding="utf-8")


def compose(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """The config of a run. The data need not exist."""
    try:
        return check_overrides("train", list(overrides), config_dir)
    except UserError:
        if any(override.partition("=")[0] == "data.root" for override in overrides):
            raise
        try:
            return check_overrides("train", [*overrides, "data.root=null"], config_dir)
        except UserError:
            pass
        raise


@dataclass(frozen=True)
class Plan:
    """The costs of a run. Bytes and FLOPs are those of one device unless a comment says otherwise."""

    devices: int
    device: str
    device_memory: int | None
    rows: int
    micro_batch: int
    largest_micro_batch: int | None
    largest_val_batch: int | None
    memory: "Memory"
    memory_total: int
    host_total: int
    flops_per_clip: dict[str, float]  # by stage, if every step computed all stages
    phases: "list[Phase]"
    hours: float
    device_hours: float
    rests_on: list[str]


def make_plan(config: DictConfig) -> Plan:
    """Estimate memory, FLOPs and duration. Raises UserError for errors that the user can correct."""
    # Imported here, so that --help and a misspelt key do not wait for torch.
    from diva.planning.duration import Timing
    from diva.planning.memory import largest_micro_batch, largest_val_batch, memory_of
    from diva.planning.run import Run
    from diva.training.distributed.checks import check_settings

    check_settings(config)
    run = Run(config)
    memory = memory_of(run)
    timing = Timing(run)
    phases = timing.phases()
    hours = sum(phase.seconds for phase in phases) / 3600
    return Plan(
        devices=run.world,
        device=run.device.origin,
        device_memory=run.device.memory,
        rows=run.rows,
        micro_batch=run.micro_batch,
        largest_micro_batch=largest_micro_batch(run),
        largest_val_batch=largest_val_batch(run),
        memory=memory,
        memory_total=memory.device_total,
        host_total=memory.host_total,
        flops_per_clip=timing.flops_per_clip,
        phases=phases,
        hours=hours,
        device_hours=hours * run.world,
        rests_on=[*timing.rests_on, *run.assumptions],
    )


def show(plan: Plan, title: str) -> None:
    """Print a plan as tables."""
    console = stdout_console()
    console.print(title, style="bold")
    console.print(
        f"{plan.devices} x {plan.device}; a step has {plan.rows} clips on each, {plan.micro_batch} at a time"
    )
    for table in (_memory_table(plan), _flops_table(plan), _time_table(plan)):
        console.print(table)
    for line in plan.rests_on:
        console.print(f"rests on  {line}")


def _memory_table(plan: Plan) -> Table:
    table = Table("memory of one device", "GB", title_justify="left")
    for name, size in plan.memory.device.items():
        if size >= 5e6:
            table.add_row(name, f"{size / 1e9:.2f}")
    has = f" of {plan.device_memory / 1e9:.1f}" if plan.device_memory else ""
    table.add_section()
    table.add_row(f"peak ({plan.memory.peak_stage})", f"{plan.memory_total / 1e9:.2f}{has}")
    for of, rows in (("micro-", plan.largest_micro_batch), ("validation ", plan.largest_val_batch)):
        if rows is not None:
            table.add_row(f"largest {of}batch that fits", str(rows or "none"))
    table.add_row("memory of each machine", f"{plan.host_total / 1e9:.1f}")
    return table


def _flops_table(plan: Plan) -> Table:
    table = Table("computed for each clip", "TFLOP")
    for stage, flops in plan.flops_per_clip.items():
        if flops:
            table.add_row(stage, f"{flops / 1e12:.4g}")
    return table


def _time_table(plan: Plan) -> Table:
    table = Table("phase", "steps", "clips", "PFLOP", "s a step", "hours", "device hours")
    for phase in plan.phases:
        each = f"{phase.seconds / phase.steps:.3g}" if phase.steps else ""
        hours = phase.seconds / 3600
        table.add_row(
            phase.name,
            f"{phase.steps:,}" if phase.steps else "",
            f"{phase.clips:,}",
            f"{phase.tflops / 1000:,.4g}",
            each,
            f"{hours:.3g}",
            f"{hours * plan.devices:.3g}",
        )
    table.add_section()
    table.add_row("all", "", "", "", "", f"{plan.hours:.3g}", f"{plan.device_hours:.3g}")
    return table


if __name__ == "__main__":
    main()
