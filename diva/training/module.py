"""The LightningModule: wires model, objective, optimizer and schedule together, and logs. Nothing else.

One optimizer step is one global batch. Each rank gets its slice of it as a single SpeechBatch, and splits that into
micro-batches itself (manual optimization). The reason: the alignment loss is a mean over all valid tokens of the
global batch. Its denominator, over all ranks and micro-batches, must be known before the first backward pass.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diva.data.batch import SpeechBatch, transcript_tokens
from diva.data.manifest import Skip
from diva.errors import UserError
from diva.models.encoder import LogMelEncoder
from diva.models.lora import lora_state
from diva.models.modeling import DivaForConditionalGeneration
from diva.training.answer_table import AnswerTable
from diva.training.answers import AnswerSettings, Continuation
from diva.training.checkpoints import adapter_state, check_adapter_keys
from diva.training.distributed.devices import give_back_memory
from diva.training.distributed.fsdp import FSDP2Strategy, shard_model
from diva.training.distributed.xla import end_of_graph
from diva.training.frozen import FrozenParts, Precompute
from diva.training.llm_check import check_llm
from diva.training.losses import Objective
from diva.training.measures import measures
from diva.training.on_policy import shared_sums, student_continuation
from diva.training.step import loss_sums, measure_sums, position_weights
from diva.training.transcripts import Transcripts


class DivaTraining(LightningModule):
    """Trains `model.trained_parameters()` with `objective`. Frozen weights are not in checkpoints.

    `optimizer` makes an optimizer from parameters. `schedule` makes a learning-rate scheduler from the optimizer.
    `micro_batch_size` is the number of clips in one forward pass on one device.
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
        answers: AnswerSettings,
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
        self.answers = answers
        self.asked_to_stop = False  # this rank, by a signal
        self.frozen: dict[str, FrozenParts] = {}  # by split; several validations may use the same split

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            shard_model(self.model, self.device_mesh)

    def configure_optimizers(self):
        optimizer = self.optimizer_factory(self.model.trained_parameters())
        return [optimizer], [self.schedule_factory(optimizer)]

    def transfer_batch_to_device(
        self, batch: SpeechBatch, device: torch.device, dataloader_idx: int
    ) -> SpeechBatch:
        # On XLA the host could count the clips only after running the traced graph. So there each micro-batch is
        # moved to the device when it is used.
        return batch if device.type == "xla" else batch.to(device)

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule
        masks = data.augment is not None and data.augment.masks
        if masks and not isinstance(self.model.encoder, LogMelEncoder):
            raise UserError(
                f"SpecAugment hides parts of a log-mel, and {self.model.config.encoder.name} reads none: set"
                " data.augment.spec_augment.probability=0"
            )
        if self.device.type != "xla":  # XLA would compile two more shapes for it
            text = data.train.clips["text"][0].as_py()
            ids = torch.tensor(transcript_tokens(data.tokenizer, [text])[0], device=self.device)
            check_llm(self.model, ids)
        steps, size = self.trainer.max_steps, data.batch_size
        # An augmented clip differs at every step, so its frames cannot be cached. What the teacher reads is the same.
        heard = 0 if data.augment is not None else steps * size
        used = {data.train_split: (heard, self.objective.distilled_steps(steps) * size)}
        splits = {data.train_split: data.train} | {data.val_splits[name]: data.val[name] for name in data.val}
        for split, manifest in splits.items():
            heard, distilled = used.get(split, (None, None))
            self.frozen[split] = FrozenParts.of_split(
                self.model,
                manifest,
                data.tokenizer,
                self.precompute,
                heard,
                distilled,
                self._answers_to(training=split == data.train_split),
            )
        data.without_waveforms = {s for s, frozen in self.frozen.items() if not frozen.need_waveforms}
        give_back_memory()

    def _answers_to(self, training: bool) -> Callable[[Transcripts], AnswerTable] | None:
        """A function that makes the table of the teacher's answers to a split; None: the objective uses no answers."""
        objective, settings = self.objective, self.answers
        if training:
            # No answers are generated that no step reads.
            limit = (
                0 if objective.on_policy == 1 or objective.distill_weight == 0 else objective.answer_tokens
            )
        else:
            limit, settings = settings.val_tokens, replace(settings, temperature=0.0, samples=1)
        if limit == 0 and not objective.instructions and not (training and objective.on_policy > 0):
            return None
        width = limit if self.device.type == "xla" else 0
        return lambda transcripts: AnswerTable.build(
            self.model, transcripts, limit, settings, objective.instructions, width
        )

    # ---- training

    def training_step(self, batch: SpeechBatch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        distills = self.objective.distills_at(self.global_step)
        micro_batches = batch.micro_batches(self.micro_batch_size)
        continuations = [self._continuation(micro) if distills else None for micro in micro_batches]
        weights = [
            position_weights(micro, after, self.objective).sum()
            for micro, after in zip(micro_batches, continuations, strict=True)
        ]
        device = batch.tokens.device
        counts = torch.stack(
            [
                torch.stack(weights).sum(),
                batch.tokens.sum(),
                torch.tensor(len(batch.faults), device=device),
                torch.tensor(int(self.asked_to_stop), device=device),
            ]
        )
        positions, tokens, faults, stops = self._sum_over_ranks(counts).tolist()
        if stops:
            # As if each rank had got the signal: LastCheckpoint saves after this step, and Lightning stops.
            self.trainer._signal_connector.received_sigterm = True
        accumulates = len(micro_batches) > 1
        sums = torch.zeros(2, device=self.device)
        optimizer.zero_grad()
        if accumulates and self.device.type == "xla":
            # Zero gradients from a graph of their own: then all micro-batches of one shape use one compiled program.
            for parameter in self.model.trained_parameters():
                parameter.grad = torch.zeros_like(parameter)
            end_of_graph(self.device)
        for number, (micro, after) in enumerate(zip(micro_batches, continuations, strict=True), start=1):
            of = loss_sums(
                self.model,
                self.frozen[self.trainer.datamodule.train_split],
                micro.to(self.device),
                self.objective,
                distills=distills,
                after=None if after is None else after.to(self.device),
            )
            loss = self.objective.distill_weight * of.distill / max(positions, 1)
            loss = loss + self.objective.align_weight * of.align / max(tokens, 1)
            if not distills:
                # DDP waits for a gradient of every trained weight, and alignment does not run the LLM.
                loss = loss + 0.0 * sum(weight.sum() for weight in lora_state(self.model.llm).values())
            last = number == len(micro_batches)
            with nullcontext() if last else self._without_gradient_sync():
                # DDP averages gradients over ranks, but the denominators above are already global.
                self.manual_backward(loss * self.trainer.world_size)
            sums += torch.stack([of.distill.detach(), of.align.detach()])
            if accumulates:
                end_of_graph(
                    self.device
                )  # one program for each micro-batch, not one program with all of them unrolled
        optimizer.step()
        self.lr_schedulers().step()
        self._log_step(sums, positions, tokens, distills)
        if faults:
            self.trainer.datamodule.record_faults(self._gather(batch.faults))

    def _continuation(self, batch: SpeechBatch) -> Continuation | None:
        """The continuation of each clip of a micro-batch at this step."""
        frozen = self.frozen[self.trainer.datamodule.train_split]
        after = frozen.continuation(batch, self.global_step)
        if after is None or not self.objective.is_on_policy(self.global_step):
            return after
        return student_continuation(self.model, frozen, batch, after.suffixes, self.objective.answer_tokens)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # In this hook XLA too has already summed the gradients over devices. Lightning's own clipping refuses fused
        # optimizers because of the gradient scaler, which bf16 does not use.
        if self.gradient_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.model.trained_parameters(), self.gradient_clip)

    def _without_gradient_sync(self) -> AbstractContextManager:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op="sum")

    def _gather(self, faults: list[Skip]) -> list[Skip]:
        """The faults of all ranks, on every rank; a collective. XLA cannot send them: there only this rank's."""
        if not (dist.is_available() and dist.is_initialized()):
            return faults
        found: list[list[Skip]] = [[] for _ in range(self.trainer.world_size)]
        dist.all_gather_object(found, faults)
        return [fault for of_rank in found for fault in of_rank]

    def _log_step(self, sums: Tensor, positions: float, tokens: float, distills: bool) -> None:
        distill, align = self._sum_over_ranks(sums).tolist()
        align, distill = align / max(tokens, 1), distill / max(positions, 1)
        terms = {"train/align": align} if self.objective.align_weight > 0 else {}
        if distills:
            terms["train/distill"] = distill
        loss = self.objective.align_weight * align + self.objective.distill_weight * distill
        rate = self.optimizers().param_groups[0]["lr"]
        self.log_dict({"train/loss": loss, **terms, "train/lr": rate}, batch_size=1)

    def log(self, name: str, value: float, *args: Any, **kwargs: Any) -> None:
        """Lightning's `log`, but the number stays on the host. Lightning would move it to the device."""
        super().log(name, torch.tensor(value, dtype=torch.float32), *args, **kwargs)

    # ---- validation

    def validation_step(self, batch: SpeechBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        data = self.trainer.datamodule
        name, split = list(data.val_splits.items())[dataloader_idx]
        self.val_faults[split] += batch.faults
        frozen, batch = self.frozen[split], batch.to(self.device)
        after = frozen.continuation(batch)
        sums = measure_sums(self.model, frozen, batch, after=after, static_shapes=self.device.type == "xla")
        if after is not None and self.answers.val_tokens:
            sums |= shared_sums(self.model, frozen, batch, after, self.answers.val_tokens)
        for measure, value in sums.items():
            self.measured[name, measure] += value

    def on_validation_epoch_start(self) -> None:
        give_back_memory()  # the tensors of validation have other sizes than those of training
        data = self.trainer.datamodule
        names = measures(self.answers.val_tokens)
        self.measured = {(name, m): torch.zeros(2, device=self.device) for name in data.val for m in names}
        self.val_faults: dict[str, list[Skip]] = {split: [] for split in data.val_splits.values()}

    def on_validation_epoch_end(self) -> None:
        for split, faults in self.val_faults.items():
            self.trainer.datamodule.record_faults(self._gather(faults), split)
        # Sums over ranks, not a mean of the ranks' means: a rank may have only empty batches.
        sums = {key: self._sum_over_ranks(of_rank).tolist() for key, of_rank in self.measured.items()}
        of = {name: [name] for name in self.trainer.datamodule.val_splits}
        for name, names in (self.trainer.datamodule.pooled_val | of).items():
            for measure in measures(self.answers.val_tokens):
                total, count = map(sum, zip(*(sums[each, measure] for each in names), strict=True))
                self.log(f"{name}/{measure}", total / count if count else float("nan"))

    # ---- checkpoints: what is trained only

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        return adapter_state(super().state_dict(*args, **kwargs))

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        check_adapter_keys(checkpoint["state_dict"], self.state_dict())
