"""`diva.train` on torch_xla's CPU device as if it were the one TPU chip of this host.

`python xla_train.py COUNTS.json ARGUMENTS`: writes what training steps had compiled, and which operations of theirs
fell back to the host.
"""

import json
import sys
from pathlib import Path

import torch_xla.debug.metrics as met
from lightning.fabric.accelerators.xla import XLAAccelerator
from torch_xla._internal import tpu

from diva.train import main
from diva.training.module import DivaTraining


def counts() -> dict[str, int]:
    compiled = met.metric_data("CompileTime")
    on_host = {name: met.counter_value(name) for name in met.counter_names() if name.startswith("aten::")}
    return {"compiles": compiled[0] if compiled else 0, **on_host}


def watched(step, path: Path, steps: list):
    """A training step whose counts, over all steps so far, are kept in `path`."""

    def run(module, batch, batch_idx):
        before = counts()
        step(module, batch, batch_idx)
        difference = {name: value - before.get(name, 0) for name, value in counts().items()}
        steps.append({"samples": batch.waveforms.shape[1], **difference})
        path.write_text(json.dumps(steps))

    return run


if __name__ == "__main__":
    tpu.num_available_devices = lambda: 1
    for cached in (XLAAccelerator.auto_device_count, XLAAccelerator.is_available):
        cached.cache_clear()
    DivaTraining.training_step = watched(DivaTraining.training_step, Path(sys.argv.pop(1)), [])
    main()
