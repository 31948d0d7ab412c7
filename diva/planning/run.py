"""A planned training run, read from its config: its parts, its devices, the shapes of its batches."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import AutoModel

from diva.audio.frames import SAMPLE_RATE, padded_samples
from diva.config import make
from diva.config.precision import autocast_dtype
from diva.data.augment import Augmentation
from diva.data.decoded import BYTES_PER_SECOND
from diva.errors import UserError
from diva.models.configuration import DivaConfig
from diva.models.encoder import frame_count
from diva.models.llm import decoder
from diva.models.lora import lora_state
from diva.models.skeleton import Architecture, architecture
from diva.planning.counting import (
    BASE,
    Batch,
    Figures,
    Layers,
    Work,
    at_full_depth,
    count_bytes,
    deepen,
    fake_tensors,
    prepared,
)
from diva.planning.lengths import ClipLengths, clip_lengths
from diva.training.answers import AnswerSettings
from diva.training.distributed.devices import Device, devices_per_node, find_device
from diva.training.frozen import Precompute, frames_bytes
from diva.training.losses import Objective

# Lightning's precisions in which the adapter's weights are not float32.
_TRUE = {"16-true": torch.float16, "bf16-true": torch.bfloat16}
# The part whose layers each of the weights is of: 0 the encoder, 1 Whisper's decoder, 2 the LLM.
_PARTS = {
    "encoder": 0,
    "encoder_layers": 0,
    "adapter": 1,
    "optimizer": 1,
    "lora": 2,
    "lora_optimizer": 2,
    "llm": 2,
    "llm_layers": 2,
    "prefix_cache": 2,
}


@dataclass(frozen=True)
class Weights:
    """Bytes of the weights, which are in memory for the whole run, on one device without sharding."""

    encoder: int
    llm: int
    llm_layers: int
    encoder_layers: int
    adapter: int
    optimizer: int  # its state for the adapter
    lora: int
    lora_optimizer: int
    prefix_cache: int
    heard_parameters: int  # of the whole models from which encoder and Q-Former are loaded, in float32


class Run:
    """A planned training run: its parts, its devices, the shapes of its batches. Nothing is loaded."""

    def __init__(self, config: DictConfig, lengths: ClipLengths | None = None):
        self.config = config
        self.model: DivaConfig = make(config.model)
        self.parts: Architecture = architecture(self.model)
        self.objective: Objective = make(config.objective)
        self.precompute: Precompute = make(config.precompute)
        self.answers: AnswerSettings = make(config.answers)
        self.augment: Augmentation | None = make(config.data.get("augment"))
        self.device: Device = find_device(
            config.hardware.accelerator, config.plan.device_memory_gb, config.plan.device_tflops
        )
        self.per_node, self.assumed_devices = devices_per_node(config.hardware)
        self.world = self.per_node * config.hardware.num_nodes
        if config.data.batch_size % self.world:
            raise UserError(
                f"data.batch_size={config.data.batch_size} cannot be shared by {self.world} devices:"
                f" choose a multiple of {self.world}"
            )
        self.given_lengths = lengths

    @cached_property
    def lengths(self) -> ClipLengths:
        return self.given_lengths or clip_lengths(self.config.data, self.config.plan.median_seconds)

    @property
    def assumptions(self) -> list[str]:
        """Assumptions: values that are neither in the config nor found on this machine."""
        lines = (self.assumed_devices, *self.lengths.origin.splitlines(), self._augmentation)
        return [line for line in lines if line]

    @property
    def augments(self) -> bool:
        return self.augment is not None and bool(self.augment.kinds)

    @property
    def _augmentation(self) -> str:
        if self.augment is None or not self.augment.kinds:
            return ""
        return f"augmentation ({', '.join(self.augment.kinds)}) in workers that keep up with the device"

    # ---- shapes

    @property
    def rows(self) -> int:
        """Clips of a step on one device."""
        return self.config.data.batch_size // self.world

    @property
    def micro_batch(self) -> int:
        return min(self.rows, self.config.hardware.micro_batch_size)

    @property
    def longest_samples(self) -> int:
        return padded_samples(math.ceil(self.lengths.longest_seconds * 10) / 10)

    def batch(self, rows: int, samples: int, answer: int | None = None) -> Batch:
        """The shape of a micro-batch; its transcripts have the tokens of `samples` samples of speech.

        Answers have the largest length, `answer` tokens (None: that of training). Their real length is not known yet.
        """
        width = self.model.adapter.num_virtual_tokens
        tokens = min(width, self.lengths.tokens(samples / SAMPLE_RATE))
        return Batch(rows, samples, tokens, width, self.objective.answer_tokens if answer is None else answer)

    @cached_property
    def work(self) -> Work:
        """What a step computes after `distill_from_step`, when all losses are used."""
        distilled = self.objective.distilled_steps(self.config.max_steps)
        precision = str(self.config.hardware.precision)
        return Work(
            objective=self.objective,
            distills=self.objective.distills_at(self.config.max_steps),
            frames_at_hand=self.caches_frames,
            teacher_at_hand=self.objective.on_policy < 1
            and self.precompute.caches_teacher(
                self.lengths.clips, self._clips_of(distilled), self.teacher_bytes
            ),
            accumulates=self.rows > self.micro_batch,
            autocast=autocast_dtype(precision),
            adapter_dtype=_TRUE.get(precision, torch.float32),
            accelerator=self.device.accelerator,
            recomputes=self.config.hardware.activation_checkpointing,
            compiles=self.config.hardware.compile,
        )

    @cached_property
    def training_bytes(self) -> Figures:
        """Peak bytes of each stage of a training step on one micro-batch of the longest clips."""
        return count_bytes(
            self.model, self.parts, self.batch(self.micro_batch, self.longest_samples), self.work
        )

    @property
    def val_rows(self) -> int:
        """Clips of a validation batch on one device."""
        data = self.config.data
        return min(data.val_batch_size, data.max_val_clips or data.val_batch_size)

    @cached_property
    def val_work(self) -> Work:
        return replace(self.work, trains=False, accumulates=False)

    @cached_property
    def validation_bytes(self) -> Figures:
        """Peak bytes of each stage of validation on one batch. Its clips are as long as the longest training clip."""
        return self.count_validation(self.val_batch(self.val_rows, self.longest_samples))

    def val_batch(self, rows: int, samples: int) -> Batch:
        return self.batch(rows, samples, self.answers.val_tokens)

    def count_validation(self, batch: Batch) -> Figures:
        return count_bytes(self.model, self.parts, batch, self.val_work)

    @property
    def room(self) -> int | None:
        """Bytes of device memory per process; None: unknown."""
        processes = self.per_node if self.device.accelerator == "cpu" else 1
        return None if self.device.memory is None else self.device.memory // processes

    # ---- cached tables and weights

    @property
    def frames_bytes(self) -> int:
        """Bytes of the encoder frames of all training clips."""
        encoder = self.parts.encoder
        frames = frame_count(encoder)
        sample = frames_bytes(self.lengths.seconds, frames, encoder.hidden_size, self.model.encoder_dtype)
        return round(sample / len(self.lengths.seconds) * self.lengths.clips)

    @property
    def caches_frames(self) -> bool:
        decoded = float(self.lengths.seconds.mean()) * self.lengths.clips * BYTES_PER_SECOND
        return self.precompute.caches_frames(
            self.lengths.clips,
            0 if self.augments else self._clips_of(self.config.max_steps),  # as in DivaTraining
            self.frames_bytes,
            self.model.encoder.context,
            decoded=decoded <= self.config.data.decoded_cache_gb * 1e9,
        )

    def _clips_of(self, steps: int) -> int:
        return steps * self.config.data.batch_size

    @property
    def teacher_bytes(self) -> int:
        """Largest possible bytes of the teacher states: all transcripts differ and all answers have full length."""
        variants = max(1, len(self.objective.instructions)) * self.answers.samples
        states = self.lengths.clips * variants * (self.objective.answer_tokens + 1)
        return states * self.parts.llm.get_text_config().hidden_size * self.frozen_bytes

    @property
    def frozen_bytes(self) -> int:
        return getattr(torch, self.model.frozen_dtype).itemsize

    @cached_property
    def weights(self) -> Weights:
        _ = self.work  # compute it first: it reads values from tensors, which fake tensors do not hold

        with fake_tensors():
            base, deeper = (self._weights(self.parts.with_layers(layers)) for layers in (BASE, deepen(1)))
            figures = {
                name: value + (self.parts.layers[_PARTS[name]] - BASE[_PARTS[name]]) * (deeper[name] - value)
                for name, value in base.items()
            }
            heard = at_full_depth(self._heard, self.parts.layers, (0, 1))
        return Weights(**{name: round(value) for name, value in (figures | heard).items()})

    def _weights(self, parts: Architecture) -> Figures:
        model = prepared(self.model, parts, Work(adapter_dtype=self.work.adapter_dtype))
        cache: Any = model._prefix_cache.layers if model._prefix_cache else []
        layers: Any = decoder(model.llm).layers
        adapter, lora = list(model.adapter.parameters()), list(lora_state(model.llm).values())
        optimizer = make(self.config.optimizer.algorithm)([*adapter, *lora])
        for parameter in (*adapter, *lora):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()

        def state(parameters: Any) -> int:
            held = (value for parameter in parameters for value in optimizer.state[parameter].values())
            return _bytes(value for value in held if torch.is_tensor(value))

        return {
            "encoder": _bytes(model.encoder.parameters()),
            "llm": _bytes(model.llm.parameters()) - _bytes(lora),
            "llm_layers": _bytes(layers.parameters()) - _bytes(lora),
            "encoder_layers": _bytes(model.encoder.layers.parameters()),
            "adapter": _bytes(adapter),
            "optimizer": state(adapter),
            "lora": _bytes(lora),
            "lora_optimizer": state(lora),
            "prefix_cache": _bytes(t for layer in cache for t in (layer.keys, layer.values)),
        }

    def _heard(self, layers: Layers) -> Figures:
        parts = self.parts.with_layers(layers)
        loaded = [parts.encoder] if self.model.adapter.decoder is None else [parts.encoder, parts.decoder]
        models = (AutoModel.from_config(config) for config in loaded)
        return {"heard_parameters": sum(p.numel() for model in models for p in model.parameters())}


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
