"""Duration of a run: FLOPs divided by a rate, or stages timed on this machine (`diva.planning.calibration`)."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from diva.config import make
from diva.errors import UserError
from diva.planning.calibration import ROUND_LAYERS, matmul_tflops, stage_seconds
from diva.planning.counting import Batch, Figures, Work, count_flops, of_layers
from diva.planning.lengths import val_lengths
from diva.planning.run import Run

# Fraction of a device's peak that is used, if this machine lacks the device and the user gives no value. Published
# trainings of large models reach 0.3 to 0.5. On an H100 the 8 B model reaches 0.31 with micro-batches of 8, and 0.42 to
# 0.51 with compiled layers (benchmarks/results/gpu.md and gpu_batch.md).
_ASSUMED_MFU = 0.4
_GPU_MFU, _COMPILED_MFU = 0.3, 0.45
# If timing a few layers takes longer than this, the matrix products are large. Then FLOPs over a rate are enough.
_CALIBRATION_SECONDS = 3.0
# Approximate number of clips in the dev split of Common Voice 17 English.
_DEV_CLIPS = 16_400
_ENCODER = ("encoder",)
_ADAPTER = ("adapter", "alignment", "adapter, backward")
_STUDENT = ("student", "distance", "student, backward")
_TEACHER = ("teacher",)


@dataclass(frozen=True)
class Phase:
    """A phase of a run: its FLOPs over all devices and its duration."""

    name: str
    steps: int
    clips: int
    tflops: float
    seconds: float


class Timing:
    """Costs of the stages of a run's step, at the mean length of its clips."""

    def __init__(self, run: Run):
        self.run = run
        self.rests_on: list[str] = []

    @cached_property
    def batch(self) -> Batch:
        run = self.run
        batch = run.batch(run.micro_batch, run.lengths.mean_padded_samples(run.config.data.num_buckets))
        # The table batches transcripts of similar length. A step pads transcripts to the number of virtual tokens.
        return replace(batch, text_width=batch.tokens) if run.work.teacher_at_hand else batch

    @cached_property
    def everything(self) -> Work:
        """A step with all stages. Each phase then uses the costs of its own stages."""
        return replace(
            self.run.work,
            objective=replace(self.run.objective, align_weight=1.0),
            distills=True,
            frames_at_hand=False,
            teacher_at_hand=False,
        )

    @cached_property
    def flops_per_clip(self) -> Figures:
        """Of each stage."""
        flops = count_flops(self.run.model, self.run.parts, self.batch, self.everything)
        return {stage: value / self.batch.rows for stage, value in flops.items()}

    # ---- seconds

    @cached_property
    def seconds_per_clip(self) -> Figures:
        """Seconds per clip of each stage on one device, and seconds per step of "optimizer"."""
        run, plan = self.run, self.run.config.plan
        if run.device.tflops is None and not run.device.here:
            raise UserError(
                f"how fast {run.device.accelerator} is, is not known: give plan.device_tflops=PEAK"
            )
        if run.device.tflops is not None:
            return self._at_rate(run.device.tflops, run.device.origin)
        device = torch.device("cpu" if run.device.accelerator == "cpu" else "cuda")
        dtype = run.work.autocast or run.work.adapter_dtype
        measured = matmul_tflops(dtype, device)
        products = f"large {str(dtype).removeprefix('torch.')} matrix products"
        name = f"{run.device.origin}: {measured * 1000:.0f} GFLOP/s in {products}, measured now"
        if plan.mfu is not None or not self._quick(measured):
            return self._at_rate(measured, name)
        optimizer = make(run.config.optimizer.algorithm)
        clip = run.config.optimizer.gradient_clip
        seconds = stage_seconds(run.model, run.parts, self.batch, self.everything, device, optimizer, clip)
        self.rests_on.append(f"{run.device.origin}: each stage timed now on a few layers with random weights")
        return {s: v if s == "optimizer" else v / self.batch.rows for s, v in seconds.items()}

    def _quick(self, tflops: float) -> bool:
        """Whether timing a few layers of each part takes only seconds."""
        flops = sum(of_layers(self.flops_per_clip, ROUND_LAYERS, self.run.parts.layers).values())
        flops *= self.batch.rows
        return flops / (tflops * 1e12 * _ASSUMED_MFU) < _CALIBRATION_SECONDS

    def _at_rate(self, tflops: float, origin: str) -> Figures:
        mfu, source = self._mfu()
        self.rests_on.append(
            f"{origin}; of {tflops:.4g} TFLOP/s a share of {mfu:g}{source} is used;"
            " optimizer and communication not counted"
        )
        seconds = {stage: flops / (tflops * 1e12 * mfu) for stage, flops in self.flops_per_clip.items()}
        return seconds | {"optimizer": 0.0}

    def _mfu(self) -> tuple[float, str]:
        """The fraction of the peak that is used, and where that value is from if the user did not give it."""
        if self.run.config.plan.mfu is not None:
            return self.run.config.plan.mfu, ""
        if self.run.device.accelerator != "gpu":
            return _ASSUMED_MFU, " (assumed: plan.mfu)"
        return _COMPILED_MFU if self.run.work.compiles else _GPU_MFU, " (measured on an H100: plan.mfu)"

    # ---- phases

    def phases(self) -> list[Phase]:
        """The phases of the run: tables computed once, training steps by objective, validation."""
        run, config = self.run, self.run.config
        frames_cached, table = run.work.frames_at_hand, run.work.teacher_at_hand
        found = []
        if frames_cached:
            found.append(self._forward("encoder frames, once", run.lengths.clips, _ENCODER, 1))
        variants = max(1, len(run.objective.instructions)) * run.answers.samples
        on_policy = run.objective.on_policy
        if run.objective.answer_tokens and on_policy < 1:
            # Assumes that all transcripts differ. Generating one token at a time is slower than these FLOPs suggest.
            found.append(self._forward("teacher's answers, once", run.lengths.clips * variants, _TEACHER, 1))
        if table:
            found.append(self._forward("teacher states, once", run.lengths.clips * variants, _TEACHER, 1))
        aligned = config.max_steps
        if run.objective.distill_weight > 0:
            aligned = min(run.objective.distill_from_step, config.max_steps)
        stages_of_speech = (() if frames_cached else _ENCODER) + _ADAPTER
        if aligned:
            found.append(self._training("alignment", aligned, dict.fromkeys(stages_of_speech, 1.0)))
        if config.max_steps > aligned:
            often = dict.fromkeys(stages_of_speech + _STUDENT + _TEACHER, 1.0)
            often["teacher"] = on_policy if table else 1.0
            often["student"] += on_policy  # the student generates its answer first
            found.append(self._training("distillation", config.max_steps - aligned, often))
        passes = -(-config.max_steps // config.val_every)
        clips = passes * sum(self._val_clips(split) for split in config.data.val_splits.values())
        if clips:
            stages = (*stages_of_speech[:-1], "student") + (() if table else _TEACHER)
            found.append(self._forward("validation", clips, stages, run.world))
        return found

    def _val_clips(self, split: str) -> int:
        """Number of validation clips of a split: read from the corpus if it is on this machine, otherwise assumed."""
        data, plan = self.run.config.data, self.run.config.plan
        found = val_lengths(data, split, plan.median_seconds)
        if not found.origin.startswith("assumed"):
            return found.clips
        if data.max_val_clips is not None:
            return data.max_val_clips
        self.rests_on.append(f"assumed: {_DEV_CLIPS} clips to validate on, as in Common Voice 17 English")
        return _DEV_CLIPS

    def _training(self, name: str, steps: int, often: dict[str, float]) -> Phase:
        """A phase of training steps. `often` is how many times a step runs each stage."""
        clips = steps * self.run.config.data.batch_size
        seconds = sum(times * self.seconds_per_clip[stage] for stage, times in often.items()) * self.run.rows
        seconds = steps * (seconds + self.seconds_per_clip["optimizer"])
        return Phase(name, steps, clips, self._tflops(clips, often), seconds)

    def _forward(self, name: str, clips: int, stages: tuple[str, ...], devices: int) -> Phase:
        seconds = clips * sum(self.seconds_per_clip[stage] for stage in stages) / devices
        return Phase(name, 0, clips, self._tflops(clips, dict.fromkeys(stages, 1.0)), seconds)

    def _tflops(self, clips: int, often: dict[str, float]) -> float:
        return clips * sum(times * self.flops_per_clip[stage] for stage, times in often.items()) / 1e12
