"""Checks of a run's settings against its hardware config, made before anything is loaded."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from diva.config.precision import cpu_has_bfloat16
from diva.errors import UserError
from diva.training.distributed.devices import is_sharded

_COMPILERS = ("cc", "gcc", "clang")


def check_hardware(config: DictConfig) -> None:
    """Raise UserError where settings contradict the hardware, or where a package that it needs is not installed."""
    check_settings(config)
    if config.hardware.accelerator == "tpu" and find_spec("torch_xla") is None:
        raise UserError(
            "hardware=tpu_* needs torch_xla, with the torch that it was built for: pip install -e '.[tpu]' in a clone"
        )
    if config.hardware.compile and not any(map(shutil.which, (os.environ.get("CC") or "cc", *_COMPILERS))):
        raise UserError(
            "hardware.compile=true needs a C compiler, and this machine has none: install gcc, or set"
            " hardware.compile=false"
        )


def check_settings(config: DictConfig) -> None:
    """Raise UserError where settings contradict the named hardware, or are wrong on any hardware.

    The hardware need not be in this machine.
    """
    on_tpu, sharded = config.hardware.accelerator == "tpu", is_sharded(config.hardware.strategy)
    if (on_tpu or sharded) and (config.precompute.teacher_states or config.precompute.encoder_frames_gb > 0):
        reason = "XLA compiles every shape anew" if on_tpu else "one rank alone has no whole LLM"
        raise UserError(
            f"teacher states and encoder frames cannot be cached with this hardware ({reason}): set"
            " precompute.teacher_states=false precompute.encoder_frames_gb=0"
        )
    if (on_tpu or sharded) and (config.objective.answer_tokens or config.answers.val_tokens):
        raise UserError(
            "the LLM cannot answer with this hardware before training begins: set objective.answer_tokens=0"
            " answers.val_tokens=0, or take hardware=gpu_ddp, where each device holds the whole LLM"
        )
    if OmegaConf.select(config, "model.llm.lora.r") is not None:
        _check_lora(
            config, "a TPU" if on_tpu else "a hardware config that shards the weights" if sharded else ""
        )
    if not on_tpu:
        return
    if config.hardware.compile:
        raise UserError("XLA compiles by itself: set hardware.compile=false")
    if config.sample_responses:
        raise UserError(
            f"sample_responses={config.sample_responses}: XLA would compile every length of an answer; set"
            " sample_responses=0 and ask the export with diva.generate"
        )
    if config.optimizer.algorithm.get("fused"):
        raise UserError("XLA has no fused optimizers: set optimizer.algorithm.fused=false")


def _check_lora(config: DictConfig, unsupported: str) -> None:
    """Raise UserError where LoRA is not supported (on `unsupported` hardware), or where nothing trains it."""
    if unsupported:
        raise UserError(
            f"model.llm.lora is not supported on {unsupported}: set model.llm.lora.r=null, or take hardware=gpu_ddp,"
            " where each device holds the whole LLM"
        )
    if config.objective.distill_weight == 0:
        raise UserError(
            "model.llm.lora is trained by distillation only: set objective.distill_weight above 0, or"
            " model.llm.lora.r=null"
        )


def precision_note(hardware: DictConfig) -> str:
    """One line for the user if the CPU has no bfloat16 instructions; otherwise empty."""
    if hardware.accelerator != "cpu" or cpu_has_bfloat16():
        return ""
    if hardware.precision == "32-true":
        return "this CPU has no bfloat16 instructions: training in float32 (hardware.precision=32-true)"
    return (
        f"this CPU has no bfloat16 instructions: hardware.precision={hardware.precision} is up to 100 times slower"
        " than 32-true here"
    )


@contextmanager
def refusals() -> Iterator[None]:
    """Turn Lightning's errors about missing hardware into UserError."""
    try:
        yield
    except UserError:
        raise
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UserError(f"hardware: {error}") from error
