"""The allowed values of all numbers and switches in the configs: one table, checked before anything is loaded.

A `*` in a key stands for any name that the user chose.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diva.errors import UserError


@dataclass(frozen=True)
class Number:
    """The allowed values of a key: a type (int, float, bool) and a range.

    It may also allow `null`, texts that match `other`, or only lists of `length` such numbers; in `order`, none of them
    is below the one before it.
    """

    kind: type
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False  # `low` itself is not allowed
    open_high: bool = False
    null: bool = False
    other: str = ""  # regular expression of other allowed values, as text
    length: int = 0  # length of the list; 0: a single number
    order: bool = False
    many: bool = False  # a list of any length

    def allows(self, value: Any) -> bool:
        if value is None:
            return self.null
        if self.many:
            return isinstance(value, list) and all(map(self._in_range, value))
        if self.length:
            is_list = isinstance(value, list) and len(value) == self.length
            return is_list and all(map(self._in_range, value)) and (not self.order or value == sorted(value))
        if self.other and re.fullmatch(self.other, str(value)):
            return True
        return self._in_range(value)

    def _in_range(self, value: Any) -> bool:
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if not isinstance(value, int if self.kind is int else int | float):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        what = {int: "a whole number", float: "a number", bool: "true or false"}[self.kind]
        limits = []
        if self.low > -math.inf:
            limits.append(f"{'above' if self.open_low else 'at least'} {self.low:.10g}")
        if self.high < math.inf:
            limits.append(f"{'below' if self.open_high else 'at most'} {self.high:.10g}")
        text = " ".join([what, *([" and ".join(limits)] if limits else [])])
        if self.length:
            text = f"a list of {self.length}, {'the smaller first, ' if self.order else ''}each {text}"
        if self.many:
            text = f"a list, each {text}"
        return text + (" or null" if self.null else "")


SWITCH = Number(bool)
COUNT = Number(int, 1)
COUNT_OR_ALL = Number(int, 1, null=True)
COUNT_OR_NONE = Number(int, 0)
SIZE = Number(float, 0)
POSITIVE = Number(float, 0, open_low=True)
POSITIVE_OR_NULL = Number(float, 0, open_low=True, null=True)
SHARE = Number(float, 0, 1)
SEED = Number(int, 0, 2**32 - 1)
# All devices, a number of devices, or their indices, in Lightning's notation.
DEVICES = Number(int, 1, other=r"-1|auto|[1-9]\d*|\d+(,\d+)*,|\d+(,\d+)+|\[\d+(, \d+)*\]")


def _between(low: float, high: float) -> Number:
    """A range inside these limits: its lower and its upper end."""
    return Number(float, low, high, length=2, order=True)


BETAS = Number(float, 0, 1, open_high=True, length=2)

NUMBERS = {
    # train
    "seed": SEED,
    "max_steps": COUNT,
    "val_every": COUNT,
    "checkpoint_every": COUNT,
    "log_every": COUNT,
    "sample_responses": COUNT_OR_NONE,
    "data.batch_size": COUNT,
    "data.val_batch_size": COUNT,
    "data.query_tokens": COUNT,
    "data.num_buckets": COUNT,
    "data.seed": SEED,
    "data.max_train_clips": COUNT_OR_ALL,
    "data.max_val_clips": COUNT_OR_ALL,
    "data.max_skipped_fraction": SHARE,
    "data.decoded_cache_gb": SIZE,
    "data.num_workers": COUNT_OR_NONE,
    "data.max_seconds": POSITIVE_OR_NULL,
    "data.takes": COUNT,
    "data.corpus.takes": COUNT,
    "data.corpus.max_seconds": POSITIVE_OR_NULL,
    **{
        f"data.augment.{kind}.probability": SHARE
        for kind in ("speed", "reverberation", "noise", "gain", "telephone", "codec", "spec_augment")
    },
    "data.augment.speed.factor": _between(0.5, 2.0),
    "data.augment.reverberation.rt60": _between(0.05, 5.0),
    "data.augment.reverberation.direct_to_reverberant": _between(-30.0, 60.0),
    "data.augment.noise.snr": _between(-30.0, 100.0),
    "data.augment.gain.decibels": _between(-60.0, 40.0),
    "data.augment.codec.kilobits": _between(6.0, 256.0),
    "data.augment.spec_augment.time_masks": COUNT_OR_NONE,
    "data.augment.spec_augment.time_seconds": SIZE,
    "data.augment.spec_augment.time_share": SHARE,
    "data.augment.spec_augment.band_masks": COUNT_OR_NONE,
    "data.augment.spec_augment.band_share": SHARE,
    "data.parts.*.weight": POSITIVE,
    "data.parts.*.limit": COUNT_OR_ALL,
    "data.parts.*.max_seconds": POSITIVE_OR_NULL,
    "model.adapter.num_query_tokens": COUNT,
    "model.adapter.stack": COUNT,
    "model.adapter.tokens_per_second": POSITIVE_OR_NULL,
    "model.llm.lora.r": COUNT_OR_ALL,
    "model.llm.lora.alpha": POSITIVE,
    "objective.distill_weight": SIZE,
    "objective.align_weight": SIZE,
    "objective.distill_from_step": COUNT_OR_NONE,
    "optimizer.lr": SIZE,
    "optimizer.warmup_steps": COUNT_OR_NONE,
    "optimizer.weight_decay": SIZE,
    "optimizer.betas": BETAS,
    "optimizer.gradient_clip": SIZE,
    "optimizer.algorithm.lr": SIZE,
    "optimizer.algorithm.weight_decay": SIZE,
    "optimizer.algorithm.betas": BETAS,
    "optimizer.algorithm.fused": Number(bool, null=True),
    "optimizer.schedule.num_warmup_steps": COUNT_OR_NONE,
    "optimizer.schedule.num_training_steps": COUNT,
    "objective.answer_tokens": COUNT_OR_NONE,
    "objective.temperature": POSITIVE,
    "objective.end_weight": SIZE,
    "objective.on_policy": SHARE,
    "answers.temperature": SIZE,
    "answers.samples": COUNT,
    "answers.seed": SEED,
    "answers.val_tokens": COUNT_OR_NONE,
    "answers.concurrency": COUNT,
    "precompute.teacher_states": SWITCH,
    "precompute.teacher_states_gb": SIZE,
    "precompute.encoder_frames_gb": SIZE,
    "hardware.devices": DEVICES,
    "hardware.num_nodes": COUNT,
    "hardware.micro_batch_size": COUNT,
    "hardware.activation_checkpointing": SWITCH,
    "hardware.compile": SWITCH,
    "hardware.strategy.devices": DEVICES,
    "logger.wandb.offline": SWITCH,
    "plan.device_memory_gb": POSITIVE_OR_NULL,
    "plan.device_tflops": POSITIVE_OR_NULL,
    "plan.mfu": Number(float, 0, 1, open_low=True, null=True),
    "plan.median_seconds": POSITIVE_OR_NULL,
    # sweeps
    "sweep.runner.n_jobs": COUNT,
    "sweep.runner.devices": DEVICES,
    "sweep.runner.max_timeouts": COUNT_OR_NONE,
    "sweep.runner.poll_seconds": POSITIVE,
    "sweep.runner.parameters.timeout_min": COUNT,
    "sweep.runner.parameters.cpus_per_task": COUNT,
    "sweep.runner.parameters.mem_gb": POSITIVE_OR_NULL,
    "sweep.runner.parameters.slurm_signal_delay_s": COUNT_OR_NONE,
    "sweep.study.trials": COUNT,
    "sweep.study.sampler.n_startup_trials": COUNT_OR_NONE,
    "sweep.study.sampler.constant_liar": SWITCH,
    "sweep.study.sampler.seed": SEED,
    "sweep.study.pruner.n_startup_trials": COUNT_OR_NONE,
    "sweep.study.pruner.n_warmup_steps": COUNT_OR_NONE,
    # evaluate
    "batch_size": COUNT,
    "retry_failed": SWITCH,
    "task.version": COUNT,
    "task.transcript": SWITCH,
    "task.max_new_tokens": COUNT,
    "task.max_samples": COUNT_OR_ALL,
    "task.corpus.snr": Number(float, -30.0, 100.0, many=True),
    "task.corpus.kilobits": Number(float, 6.0, 256.0),
    "task.corpus.seed": SEED,
    "system.timeout_seconds": POSITIVE,
    "system.trust_remote_code": SWITCH,
}


def check_numbers(config: DictConfig) -> None:
    """Raise UserError for the first value of a config that the table does not allow."""
    for key, number in _numbers_of(config):
        try:
            value = OmegaConf.select(config, key, default=_ABSENT)
        except OmegaConfBaseException:  # its parent is not a mapping, or only Hydra can resolve it
            continue
        if isinstance(value, ListConfig):
            value = OmegaConf.to_container(value, resolve=True)
        if value is not _ABSENT and not number.allows(value):
            shown = "null" if value is None else value
            raise UserError(f"{key}={shown} must be {number}")


def _numbers_of(config: DictConfig) -> Iterator[tuple[str, Number]]:
    """The table, with the names that the user chose for each `*`."""
    for key, number in NUMBERS.items():
        parent, star, rest = key.partition(".*.")
        if not star:
            yield key, number
        elif names := OmegaConf.select(config, parent):
            yield from ((f"{parent}.{name}.{rest}", number) for name in names)


_ABSENT = object()
