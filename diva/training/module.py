"""The LightningModule: wires model, objective, optimizer and schedule together, and logs. Nothing else.

One optimizer step is one global batch. Each rank gets its slice of it as a single SpeechBatch and splits that
into micro-batches itself (manual optimization), because the alignment loss is a mean over all valid tokens of
the global batch: its denominator has to be known before the first backward pass, over ranks and micro-batches.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diva.data.batch import SpeechBatch
from diva.data.manifest import Skip
from diva.models.modeling import DivaForConditionalGeneration
from diva.training import metrics
from diva.training.checkpoints import adapter_state, check_adapter_keys
from diva.training.distributed.devices import give_back_memory
from diva.training.distributed.fsdp import FSDP2Strategy, shard_model
from diva.training.distributed.xla import end_of_graph
from diva.training.frozen import FrameTable, Precompute, TeacherTable
from diva.training.losses import Objective, align_distances, distill_distances, last_virtual_tokens

_MEASURES = ("alignment_accuracy", "first_token_agreement", "kl")


class DivaTraining(LightningModule):
    """Trains `model.adapter` with `objective`; encoder and LLM are frozen and stay out of checkpoints.

    `optimizer` makes an optimizer from parameters, `schedule` a learning-rate scheduler from the optimizer;
    `micro_batch_size` is how many clips pass through the model at a time on one device.
    """

    def __init__(
        self,
        model: DivaForConditionalGeneration,
        objective: Objective,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[[Optimizer], LRScheduler],
        gradient_clip: float,
        micro_batch_size: int,
        precompute: Precompute,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # the frozen parts are not in the checkpoint
        self.model = model
        self.objective = objective
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.gradient_clip = gradient_clip
        self.micro_batch_size = micro_batch_size
        self.precompute = precompute
        # By split: one table may serve several validations.
        self.teacher: dict[str, TeacherTable] = {}
        self.frames: dict[str, FrameTable] = {}

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            shard_model(self.model, self.device_mesh)

    def configure_optimizers(self):
        optimizer = self.optimizer_factory(self.model.adapter.parameters())
        return [optimizer], [self.schedule_factory(optimizer)]

    def transfer_batch_to_device(
        self, batch: SpeechBatch, device: torch.device, dataloader_idx: int
    ) -> SpeechBatch:
        # XLA would have to run what it has traced before the host could count clips: there each micro-batch
        # follows when it is used.
        return batch if device.type == "xla" else batch.to(device)

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule
        splits = {data.train_split: data.train} | {data.val_splits[name]: data.val[name] for name in data.val}
        steps, size = self.trainer.max_steps, data.batch_size
        for split, manifest in splits.items():
            keeps_teacher, gigabytes = self.precompute.teacher_states, self.precompute.encoder_frames_gb
            if split == data.train_split:
                distilled = self.objective.distilled_steps(steps) * size
                keeps_teacher = self.precompute.keeps_teacher(len(manifest), distilled)
                gigabytes = self.precompute.most_frames_gb(len(manifest), steps * size)
            if keeps_teacher:
                self.teacher[split] = TeacherTable.build(self.model, manifest, data.tokenizer)
            frames = FrameTable.build(self.model, manifest, gigabytes)
            if frames is not None:
                self.frames[split] = frames
                data.leave_out_waveforms(split)
        give_back_memory()

    def virtual_tokens(self, batch: SpeechBatch, split: str) -> Tensor:
        """v [B, Q, D] of a batch of a split."""
        if split in self.frames:
            return self.model.adapter(*self.frames[split](batch.clips))
        return self.model.virtual_tokens(batch.waveforms, batch.samples)

    def teacher_states(self, batch: SpeechBatch, split: str) -> Tensor:
        """h_teacher [B, D] of a batch of a split."""
        if split in self.teacher:
            return self.teacher[split](batch.clips)
        return self.model.teacher_states(batch.token_ids, batch.tokens)

    # ---- training

    def training_step(self, batch: SpeechBatch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        distills = self.objective.distills_at(self.global_step)
        counts = [
            batch.valid.sum(),
            batch.tokens.sum(),
            torch.tensor(len(batch.faults), device=batch.tokens.device),
        ]
        clips, tokens, faults = self._sum_over_ranks(torch.stack(counts)).tolist()
        micro_batches = batch.micro_batches(self.micro_batch_size)
        accumulates = len(micro_batches) > 1
        sums = torch.zeros(2, device=self.device)
        optimizer.zero_grad()
        if accumulates and self.device.type == "xla":
            # Zeros to add to, in a program of their own: all micro-batches of a shape are then one program.
            for parameter in self.model.adapter.parameters():
                parameter.grad = torch.zeros_like(parameter)
            end_of_graph(self.device)
        for number, micro in enumerate(micro_batches, start=1):
            distill, align = self.loss_sums(micro.to(self.device), distills)
            loss = self.objective.distill_weight * distill / max(clips, 1)
            loss = loss + self.objective.align_weight * align / max(tokens, 1)
            last = number == len(micro_batches)
            with nullcontext() if last else self._without_gradient_sync():
                # DDP averages gradients over ranks, while the denominators above are already global.
                self.manual_backward(loss * self.trainer.world_size)
            sums += torch.stack([distill.detach(), align.detach()])
            if accumulates:
                end_of_graph(self.device)  # one program for all micro-batches, not one that repeats itself
        optimizer.step()
        self.lr_schedulers().step()
        self._log_step(sums, clips, tokens, distills)
        if faults:
            self.trainer.datamodule.record_faults(self._gather(batch.faults))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Here, where XLA too has summed the gradients over devices. Not by Lightning's clipping: it refuses fused
        # optimizers, for the sake of a gradient scaler that bf16 has not.
        if self.gradient_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.model.adapter.parameters(), self.gradient_clip)

    def loss_sums(self, batch: SpeechBatch, distills: bool) -> tuple[Tensor, Tensor]:
        """Sum of distillation distances over clips and of alignment distances over tokens (module docstring)."""
        train = self.trainer.datamodule.train_split
        v = self.virtual_tokens(batch, train)
        distill = align = v.new_zeros((), dtype=torch.float32)
        if self.objective.align_weight > 0:
            distances, _ = align_distances(v, self.model.embed(batch.token_ids), batch.tokens)
            align = distances.sum()
        if distills:
            student = self.model.student_states(v, batch.samples, batch.padded_samples)
            distances = distill_distances(student, self.teacher_states(batch, train))
            distill = distances.masked_fill(~batch.valid, 0.0).sum()
        return distill, align

    def _without_gradient_sync(self) -> AbstractContextManager:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op="sum")

    def _gather(self, faults: list[Skip]) -> list[Skip]:
        """Those of all ranks, on every rank; a collective. XLA's processes have no channel for them: each its own."""
        if not (dist.is_available() and dist.is_initialized()):
            return faults
        found: list[list[Skip]] = [[] for _ in range(self.trainer.world_size)]
        dist.all_gather_object(found, faults)
        return [fault for of_rank in found for fault in of_rank]

    def _log_step(self, sums: Tensor, clips: int, tokens: int, distills: bool) -> None:
        distill, align = self._sum_over_ranks(sums).tolist()
        align, distill = align / max(tokens, 1), distill / max(clips, 1)
        terms = {"train/align": align} if self.objective.align_weight > 0 else {}
        if distills:
            terms["train/distill"] = distill
        loss = self.objective.align_weight * align + self.objective.distill_weight * distill
        rate = self.optimizers().param_groups[0]["lr"]
        self.log_dict({"train/loss": loss, **terms, "train/lr": rate}, batch_size=max(clips, 1))

    def log(self, name: str, value: float, *args: Any, **kwargs: Any) -> None:
        """Lightning's, with the number left on the host, where it is read: Lightning would put it on the device."""
        super().log(name, torch.tensor(value, dtype=torch.float32), *args, **kwargs)

    # ---- validation

    def validation_step(self, batch: SpeechBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        data = self.trainer.datamodule
        name, split = list(data.val_splits.items())[dataloader_idx]
        self.val_faults[split] += batch.faults
        batch = batch.to(self.device)
        v = self.virtual_tokens(batch, split)
        states = self.model.student_states(v, batch.samples, batch.padded_samples)
        student, teacher = map(self.model.logits, (states, self.teacher_states(batch, split)))
        values = (
            self._aligned_tokens(v, batch),
            (metrics.first_token_agreement(student, teacher), batch.valid),
            (metrics.kl_divergence(student, teacher), batch.valid),
        )
        for measure, (value, valid) in zip(_MEASURES, values, strict=True):
            # Masked, not chosen: a shape that the data decide would be compiled anew by XLA, batch by batch.
            sums = value.float().masked_fill(~valid, 0.0).sum(), valid.float().sum()
            self.measured[name, measure] += torch.stack(sums)

    def _aligned_tokens(self, v: Tensor, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """Whether each transcript token is the nearest to the virtual token that faces it, and which are valid."""
        embeddings = self.model.llm.get_input_embeddings().weight
        if self.device.type != "xla":
            found = metrics.aligned_tokens(v, batch.token_ids, batch.tokens, embeddings)
            return found, torch.ones_like(found)
        last, valid = last_virtual_tokens(v, batch.token_ids.shape[1], batch.tokens)
        nearest = metrics.nearest_tokens(last.flatten(0, 1), embeddings)
        return nearest.view_as(valid) == batch.token_ids, valid

    def on_validation_epoch_start(self) -> None:
        give_back_memory()  # its tensors have other sizes than those of training
        data = self.trainer.datamodule
        self.measured = {
            (name, m): torch.zeros(2, device=self.device) for name in data.val for m in _MEASURES
        }
        self.val_faults: dict[str, list[Skip]] = {split: [] for split in data.val_splits.values()}

    def on_validation_epoch_end(self) -> None:
        for split, faults in self.val_faults.items():
            self.trainer.datamodule.record_faults(self._gather(faults), split)
        # Sums over ranks, and not a mean of their means: a rank may have had empty batches only.
        for (name, measure), sums in self.measured.items():
            total, count = self._sum_over_ranks(sums).tolist()
            self.log(f"{name}/{measure}", total / count if count else float("nan"))

    # ---- checkpoints: the adapter only

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        return adapter_state(super().state_dict(*args, **kwargs))

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        check_adapter_keys(checkpoint["state_dict"], self.state_dict())
