"""Memory that a run needs, estimated before it starts, and the error for a run that cannot fit."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from diva.audio.frames import padded_samples
from diva.data.manifest import Manifest
from diva.errors import UserError
from diva.planning.bound import bound_bytes
from diva.planning.counting import Batch, Figures, Work
from diva.planning.lengths import lengths_of
from diva.planning.run import Run
from diva.training.distributed.devices import is_ddp, is_sharded, resident_bytes

# The counted peak can be above the real one: some kernels hold less than torch's description of them says.
_CERTAIN = 0.75


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the peak of a run, and bytes of one machine's memory, by what takes them."""

    device: dict[str, int]
    host: dict[str, int]
    stages: dict[str, int]  # additional bytes of each stage, gradients included
    peak_stage: str

    @property
    def device_total(self) -> int:
        return sum(self.device.values())

    @property
    def host_total(self) -> int:
        return sum(self.host.values())


def memory_of(run: Run) -> Memory:
    """The memory of a run at its peak, counted on its longest batches."""
    lines = resident(run)
    gradients = lines["gradients"]
    training = run.training_bytes
    if run.work.accumulates:
        training = {stage: value + gradients for stage, value in training.items()}
    # The gradients of the last step stay in memory until the next step begins.
    validation = {f"validation: {k}": v + gradients for k, v in run.validation_bytes.items()}
    stages = {stage: round(value) for stage, value in (training | validation).items()}
    peak = max(stages, key=lambda stage: stages[stage])
    made = gradients if run.work.accumulates or peak in validation or peak == "end" else 0
    lines |= {
        "gradients": made,
        "activations": stages[peak] - made,
        "batch": _batch_bytes(run),
    }
    if run.device.accelerator == "cpu":
        lines |= _tables(run)
    return Memory(lines, _host(run, lines), stages, peak)


def resident(run: Run) -> dict[str, int]:
    """Bytes that one device holds between two micro-batches, by what takes them."""
    weights = run.weights
    shards = run.world if is_sharded(run.config.hardware.strategy) else 1
    # As in diva.training.distributed.fsdp: layers and the whole adapter are sharded; embeddings and norms are not.
    kept = 1 - 1 / shards
    lines = {
        "encoder, frozen": round(weights.encoder - kept * weights.encoder_layers),
        "LLM, frozen": round(weights.llm - kept * weights.llm_layers),
        "adapter": weights.adapter // shards,
        "LoRA": weights.lora,  # never sharded (diva.training.distributed.checks)
        "gradients": weights.adapter // shards + weights.lora,
        "optimizer state": weights.optimizer // shards + weights.lora_optimizer,
        "prefix keys and values": weights.prefix_cache,
    }
    if shards > 1:
        lines["gathered layers"] = (
            2 * weights.llm_layers // run.parts.layers[2]
        )  # one in use, one being prefetched
    elif is_ddp(run.config.hardware.strategy) and run.world > 1:
        lines["gradient buckets of DDP"] = weights.adapter + weights.lora
    if run.device.accelerator == "cpu":
        lines["interpreter and libraries"] = resident_bytes()
    return lines


def _tables(run: Run) -> dict[str, int]:
    """Bytes of the cached tables. They are mapped into memory, and an epoch reads all of them."""
    lines = {"teacher table": run.teacher_bytes} if run.work.teacher_at_hand else {}
    return lines | ({"frames table": run.frames_bytes} if run.caches_frames else {})


def _host(run: Run, lines: dict[str, int]) -> dict[str, int]:
    """Bytes of one machine's memory, over all its processes.

    On a CPU that is the memory of the run. On other devices it is that of loading, before weights move to the device.
    """
    processes = f", {run.per_node} processes" if run.per_node > 1 else ""
    if run.device.accelerator == "cpu":
        return {f"{name}{processes}": size * run.per_node for name, size in lines.items()}
    weights = run.weights
    each = {
        "interpreter and libraries": resident_bytes(),
        "encoder in float32, as loaded": 4 * weights.heard_parameters,
        "LLM, as loaded": weights.llm,
        "adapter, as loaded": weights.adapter + weights.lora,
        **_tables(run),
    }
    return {f"{name}{processes}": size * run.per_node for name, size in each.items()}


def largest_micro_batch(run: Run) -> int | None:
    """The largest micro-batch of training that fits on one device; 0: none fits; None: the memory is unknown."""
    if run.room is None:
        return None
    lines = resident(run)
    gradients = lines["gradients"]
    free = run.room - sum(lines.values()) + gradients - _beside(run)
    held = _autocast_copies(run)
    each = (max(run.training_bytes.values()) - held) / run.micro_batch
    if (free - held) / each >= run.rows:  # a single micro-batch starts without gradients in memory
        return run.rows
    return max(0, int((free - gradients - held) / each))


def largest_val_batch(run: Run) -> int | None:
    """The largest batch of validation that fits on one device; 0: none fits; None: the memory is unknown."""
    if run.room is None:
        return None
    free = run.room - sum(resident(run).values()) - _beside(run)
    return _val_rows_within(free, run, run.val_batch(run.val_rows, run.longest_samples), run.validation_bytes)


def _val_rows_within(free: float, run: Run, batch: Batch, counted: Figures) -> int:
    """The number of clips of this batch's shape that can be validated in `free` bytes.

    `counted` are the bytes of each stage for `batch`. The result is interpolated linearly between one clip and the
    batch. It is at most slightly too high.
    """
    one = run.count_validation(replace(batch, rows=1))
    if max(one.values()) > free:
        return 0
    if batch.rows == 1:
        batch = replace(batch, rows=2)
        counted = run.count_validation(batch)
    each = {stage: (counted[stage] - one[stage]) / (batch.rows - 1) for stage in counted}
    return min(1 + int((free - one[stage]) / each[stage]) for stage in counted if each[stage] > 0)


def check_memory(config: DictConfig, train: Manifest, val: Collection[Manifest] = ()) -> None:
    """Raise UserError for a run on these clips that cannot fit into its devices' memory. The error says what would fit.

    Only certain cases raise: the memory must be known (found, or given as plan.device_memory_gb), and must be less than
    the weights plus three quarters of the counted activations.
    """
    try:
        run = Run(config, lengths_of(train))
        if not run.device.here or run.room is None:
            return
        refusal = _training_refusal(run, run.room) or _validation_refusal(run, run.room, val)
    except UserError:
        return  # a model that cannot be counted may still run; a model that cannot be found raises when it is loaded
    if refusal:
        raise UserError(refusal)


def _fits_easily(run: Run, room: int, batch: Batch, work: Work) -> bool:
    """Whether a fast upper bound already shows that the batch fits."""
    bound = bound_bytes(run.model, run.parts, batch, work)
    return bound is not None and resident_bytes() + bound <= room


def _training_refusal(run: Run, room: int) -> str | None:
    if _fits_easily(run, room, run.batch(run.micro_batch, run.longest_samples), run.work):
        return None
    lines = resident(run)
    if not run.work.accumulates:
        del lines["gradients"]  # they are made while activations are freed
    stays, peak = sum(lines.values()), max(run.training_bytes.values())
    if stays + _CERTAIN * peak <= room:
        return None
    held = _autocast_copies(run)
    fits = int((room - stays - held) / (peak - held) * run.micro_batch)
    return _refusal("this run", run, stays, peak, room, "hardware.micro_batch_size", fits)


def _validation_refusal(run: Run, room: int, val: Collection[Manifest]) -> str | None:
    batches = []
    for clips in val:
        rows = min(run.config.data.val_batch_size, len(clips))
        batches.append(run.val_batch(rows, padded_samples(lengths_of(clips).longest_seconds)))
    batch = max(batches, key=lambda batch: batch.rows * batch.samples, default=None)
    if batch is None or _fits_easily(run, room, batch, run.val_work):
        return None
    counted = run.count_validation(batch)
    # The gradients of the last step stay in memory until the next step begins.
    stays, peak = sum(resident(run).values()), max(counted.values())
    if stays + _CERTAIN * peak <= room:
        return None
    fits = _val_rows_within(room - stays, run, batch, counted)
    return _refusal("validation", run, stays, peak, room, "data.val_batch_size", fits)


def _refusal(what: str, run: Run, stays: float, peak: float, room: int, key: str, fits: int) -> str:
    needs = (
        f"{(stays + peak) / 1e9:.1f} GB on each device ({stays / 1e9:.1f} GB for the whole run,"
        f" {peak / 1e9:.1f} GB temporarily)"
    )
    message = f"{what} needs {needs}, and each has {room / 1e9:.1f} GB ({run.device.origin}); "
    if fits >= 1:
        return message + f"{key}={fits} would fit"
    return message + (
        f"not even {key}=1 would fit: shard the weights (a hardware config with fsdp), or choose a smaller model or a"
        " larger device; python -m diva.plan says what each needs"
    )


def _beside(run: Run) -> int:
    """Bytes of a device outside `resident` and the step's tensors: the batch and, on a CPU, the cached tables."""
    tables = sum(_tables(run).values()) if run.device.accelerator == "cpu" else 0
    return _batch_bytes(run) + tables


def _batch_bytes(run: Run) -> int:
    return 4 * run.rows * run.longest_samples


def _autocast_copies(run: Run) -> int:
    """Bytes of autocast's copies of the adapter's weights. They do not depend on the micro-batch."""
    return run.weights.adapter // 2 if run.work.autocast else 0
