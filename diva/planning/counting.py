"""FLOPs and bytes of a step, counted without computing it.

The model's own code runs on fake tensors (torch's FakeTensorMode: shapes without storage). There are no separate
formulas, so a change of the model also changes the count.
Counted FLOPs are those of matrix products, attention and convolutions; a multiply-add is 2 FLOPs.
Counted bytes are those of live tensors, without the allocator's losses between blocks.

A model is never counted at its full depth. Every count is linear in the layers of each part, so shallow models are
enough (`at_full_depth`). `diva.planning.calibration` times the same steps on shallow models with real tensors.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.whisper.modeling_whisper import WhisperAttention

from diva.audio.frames import SAMPLE_RATE, TAIL_SECONDS
from diva.data.batch import SpeechBatch
from diva.errors import UserError
from diva.models.adapter import GROUPED, grouped_attention
from diva.models.configuration import DivaConfig
from diva.models.lora import without_lora
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.skeleton import Architecture, assemble
from diva.training.answers import Continuation
from diva.training.distributed.activation_checkpointing import checkpoint_activations
from diva.training.frozen import FrozenParts
from diva.training.losses import Objective
from diva.training.step import OnStage, loss_sums, measure_sums

Figures = dict[str, float]
Count = TypeVar("Count", bound=Callable[..., Any])
Layers = tuple[int, int, int]  # number of layers of encoder, Q-Former, LLM
# Not one layer: the input or output of a model's only layer is often a special case.
BASE: Layers = (2, 2, 2)
# What compiled layers hold of the bytes that uncompiled ones hold: 0.71 to 0.85 on an H100, benchmarks/results/
# gpu_batch.md.
_COMPILED = 0.75
# The part that each stage runs: 0 the encoder, 1 the Q-Former, 2 the LLM.
_PARTS = {
    "encoder": 0,
    "adapter": 1,
    "alignment": 1,
    "student": 2,
    "teacher": 2,
    "distance": 2,
    "student, backward": 2,
    "adapter, backward": 1,
    "optimizer": 1,
    "logits": 2,
}


@dataclass(frozen=True)
class Batch:
    """The shape of a micro-batch."""

    rows: int  # clips
    samples: int  # samples of each padded waveform, at 16 kHz
    tokens: int  # transcript tokens of the longest row
    text_width: int  # tokens of each padded transcript
    answer: int = 0  # tokens of the teacher's answer


@dataclass(frozen=True)
class Work:
    """What a step does with a batch."""

    objective: Objective = field(default_factory=Objective)
    distills: bool = True
    frames_at_hand: bool = False  # encoder frames are cached
    teacher_at_hand: bool = False  # h_teacher is cached
    accumulates: bool = True  # gradients of earlier micro-batches exist
    trains: bool = True  # False: validates
    autocast: torch.dtype | None = torch.bfloat16
    adapter_dtype: torch.dtype = torch.float32
    accelerator: str = "cpu"
    recomputes: bool = False  # activation checkpointing
    compiles: bool = False  # torch.compile of the layers


def step(
    model: DivaForConditionalGeneration,
    batch: Batch,
    work: Work,
    mark: OnStage,
    speech: SpeechBatch | None = None,
) -> None:
    """Run the step of training or validation on one micro-batch. The values in the tensors do not matter.

    `speech` is a batch of these shapes; None: it is made here.
    """
    speech = speech or _speech(batch, model.prefix_ids.device)
    frozen = ZeroTables(model, batch, work)
    after = _after(model, batch)
    precision = torch.autocast(speech.tokens.device.type, work.autocast) if work.autocast else nullcontext()
    with precision, torch.set_grad_enabled(work.trains):
        if not work.trains:
            measure_sums(model, frozen, speech, after=after, static_shapes=True, on_stage=mark)
            return
        sums = loss_sums(
            model, frozen, speech, work.objective, distills=work.distills, after=after, on_stage=mark
        )
        (sums.distill + sums.align).backward()
    mark("adapter, backward")


def _speech(batch: Batch, device: torch.device) -> SpeechBatch:
    """A batch of these shapes without padding: each clip has the full length."""
    longest = batch.samples - int(TAIL_SECONDS * SAMPLE_RATE)
    return SpeechBatch(
        waveforms=torch.zeros(batch.rows, batch.samples, device=device),
        samples=torch.full((batch.rows,), longest, device=device),
        token_ids=torch.zeros(batch.rows, batch.text_width, dtype=torch.long, device=device),
        tokens=torch.full((batch.rows,), batch.tokens, device=device),
        clips=torch.zeros(batch.rows, dtype=torch.long, device=device),
        clip_ids=["counted"] * batch.rows,
        padded_samples=batch.samples,
    )


def _after(model: DivaForConditionalGeneration, batch: Batch) -> Continuation | None:
    """The suffix and an answer in each row; None without an answer."""
    if not batch.answer:
        return None
    suffix, device = len(model.suffix_ids), model.prefix_ids.device
    return Continuation(
        ids=torch.zeros(batch.rows, suffix + batch.answer, dtype=torch.long, device=device),
        at=torch.zeros(batch.rows, batch.answer + 1, dtype=torch.long, device=device),
        answer=torch.full((batch.rows,), batch.answer, device=device),
        ended=torch.zeros(batch.rows, dtype=torch.bool, device=device),
        suffixes=[],
    )


class ZeroTables(FrozenParts):
    """Frozen parts with zeros in place of cached outputs; only their shapes are right."""

    def __init__(self, model: DivaForConditionalGeneration, batch: Batch, work: Work):
        super().__init__(model)
        longest = batch.samples - int(TAIL_SECONDS * SAMPLE_RATE)
        self.shape = (
            batch.rows,
            model.encoder.frame_count.of(longest + model.encoder.frame_count.tail_samples),
        )
        self.work = work

    def frames(self, batch: SpeechBatch) -> tuple[Tensor, Tensor | None]:
        if not self.work.frames_at_hand:
            return super().frames(batch)
        encoder, device = self.model.encoder, batch.tokens.device
        frames = torch.zeros(*self.shape, encoder.width, dtype=encoder.dtype, device=device)
        return frames, torch.ones(self.shape, dtype=torch.bool, device=device)

    def teacher_states(self, batch: SpeechBatch, after: Continuation | None = None) -> Tensor:
        if not self.work.teacher_at_hand:
            return super().teacher_states(batch, after)
        width, device = self.model.llm.config.get_text_config().hidden_size, batch.tokens.device
        shape = (len(batch),) if after is None else after.at.shape
        return torch.zeros(*shape, width, dtype=self.model.llm.dtype, device=device)


# ---- counting


def _attention(query: Any, key: Any, *args: Any, **kwargs: Any) -> int:
    rows, heads, length, width = query.shape
    return 4 * rows * heads * length * key.shape[2] * width


def _attention_backward(gradient: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> int:
    return 5 * _attention(query, key) // 2  # four products, and the recomputed scores


# torch's FLOP registry has the attention kernels of GPUs. Fake CPU tensors use these kernels instead.
_FORMULAS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Tally(TorchDispatchMode):
    """Counts FLOPs, the bytes of live tensors that were made inside, and the peak of these bytes.

    The step reads a number of tokens from a tensor to cut the padding. Fake tensors hold no numbers, so such a read
    returns `tokens`. Here all clips have that many tokens.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.flops = 0
        self.bytes = 0
        self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return self.tokens
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            # Called twice per operation. Answered here, because the normal dispatch takes most of the counting time.
            return args[0].fake_device
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := _FORMULAS.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=result)
        if not func.is_view:
            given = {id(x.untyped_storage()) for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
            for tensor in tree_iter(result):
                if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                    self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.bytes -= size


KNOWN: dict[str, Any] = {}  # counts, by what was counted
_MODELS: dict[str, DivaForConditionalGeneration] = {}  # without storage, by what decides their shapes


def _text(config: DivaConfig) -> str:
    return config.to_json_string(use_diff=False)


def remembered(count: Count) -> Count:
    """Count the same step of the same model only once per process."""

    @wraps(count)
    def look_up(config: DivaConfig, parts: Architecture, batch: Batch, work: Work) -> Any:
        key = repr((count.__name__, _text(config), parts.description, batch, work))
        if key not in KNOWN:
            KNOWN[key] = count(config, parts, batch, work)
        return copy.copy(KNOWN[key])

    return cast(Count, look_up)


@remembered
def count_flops(config: DivaConfig, parts: Architecture, batch: Batch, work: Work) -> Figures:
    """FLOPs of each stage of a step on one micro-batch."""
    with fake_tensors(), attention_on(work.accelerator):
        base, deeper = (_count(config, parts.with_layers(m), batch, work)[0] for m in (BASE, deepen(1)))
    return stages_at_full_depth(base, deeper, 1, parts.layers)


@remembered
def count_bytes(config: DivaConfig, parts: Architecture, batch: Batch, work: Work) -> Figures:
    """Peak bytes of the tensors that a step makes, for each of its stages.

    Weights are not included. Gradients are not included if the step accumulates into existing ones.
    "end" is the size of what remains after the step: the gradients, if it is the first micro-batch.
    The layers are counted uncompiled; with `Work.compiles` the result is that count times a measured factor.
    """
    with fake_tensors(), attention_on(work.accelerator):
        held = at_full_depth(lambda m: _count(config, parts.with_layers(m), batch, work)[1], parts.layers)
    if not work.compiles:
        return held
    return {stage: value if stage == "end" else _COMPILED * value for stage, value in held.items()}


def _count(config: DivaConfig, parts: Architecture, batch: Batch, work: Work) -> tuple[Figures, Figures]:
    return _tally(prepared(config, parts, work), batch, work)


def _tally(model: DivaForConditionalGeneration, batch: Batch, work: Work) -> tuple[Figures, Figures]:
    """FLOPs of each stage, and the peak bytes of the tensors that it makes."""
    for parameter in model.trained_parameters():
        parameter.grad = torch.zeros_like(parameter) if work.trains and work.accumulates else None
    flops: Figures = {}
    held: Figures = {}
    speech = _speech(
        batch, model.prefix_ids.device
    )  # outside the tally: `diva.planning.memory` counts the waveforms of a step separately
    with Tally(batch.tokens) as tally:

        def mark(stage: str) -> None:
            flops[stage] = tally.flops - sum(flops.values())
            held[stage] = tally.peak
            tally.peak = tally.bytes

        step(model, batch, work, mark, speech)
        held["end"] = tally.bytes
    return flops, held


def prepared(config: DivaConfig, parts: Architecture, work: Work) -> DivaForConditionalGeneration:
    """The model of `prepare` on fake tensors, made once per process: it takes as long as to count its step."""
    key = repr((_text(config), parts.description, work.adapter_dtype, work.recomputes, work.compiles))
    if key not in _MODELS:
        _MODELS[key] = prepare(config, parts, work)
    return _MODELS[key]


def prepare(
    config: DivaConfig, parts: Architecture, work: Work, device: torch.device | None = None
) -> DivaForConditionalGeneration:
    """A model in its state during the first step, with random weights that are made on `device`."""
    model = assemble(config, parts, work.adapter_dtype, device)
    model.reuses_prefix = not work.compiles
    fill_prefix_cache(model)
    if work.recomputes:
        checkpoint_activations(model)
    return model


def fill_prefix_cache(model: DivaForConditionalGeneration) -> None:
    """Compute the keys and values of the prefix, as the first step of a run does once."""
    width = model.llm.config.get_text_config().hidden_size
    with without_lora(model.llm):  # with LoRA they are not cached
        model.student_states(torch.zeros(1, 1, width, device=model.prefix_ids.device))


@cache
def _one_mode() -> FakeTensorMode:
    """The same one each time: a fake tensor works in its own mode only, and the models stay."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Inside, tensors have shapes and no storage, and arithmetic on them takes no time."""
    try:
        with _one_mode():
            yield
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        raise UserError(
            f"this model's operations depend on values, not only on shapes, so it cannot be counted: {error}"
        ) from error


@contextmanager
def attention_on(accelerator: str) -> Iterator[None]:
    """Use the attention kernels of an accelerator in the adapter, although the fake tensors are on the CPU.

    They cannot be on the accelerator: the backward pass of fake tensors needs a real device.
    """

    def fused(module: Any, *args: Any, **kwargs: Any) -> Any:
        return (sdpa_attention_forward if isinstance(module, WhisperAttention) else grouped_attention)(
            module, *args, **kwargs
        )

    AttentionInterface.register(GROUPED, grouped_attention if accelerator == "cpu" else fused)
    try:
        yield
    finally:
        AttentionInterface.register(GROUPED, grouped_attention)


def deepen(further: int, part: int | None = None) -> Layers:
    """`BASE` with `further` more layers in one part, or in all three (None)."""
    encoder, decoder, llm = (depth + further * (part in (None, number)) for number, depth in enumerate(BASE))
    return encoder, decoder, llm


def stages_at_full_depth(base: Figures, deeper: Figures, further: int, layers: Layers) -> Figures:
    """Extrapolate values by stage to a model of `layers`.

    `base` are the values of a model of depth `BASE`, `deeper` those with `further` more layers in each part.
    The value of a stage is linear in the layers of the part that it runs.
    """
    return {
        stage: value + (layers[_PARTS[stage]] - BASE[_PARTS[stage]]) * (deeper[stage] - value) / further
        for stage, value in base.items()
    }


def of_layers(figures: Figures, some: int, layers: Layers) -> Figures:
    """Approximate values by stage of `some` layers of each part, from those of a model of `layers`."""
    return {stage: value * some / layers[_PARTS[stage]] for stage, value in figures.items()}


def at_full_depth(
    measure: Callable[[Layers], Figures], layers: Layers, deepened: Sequence[int] = (1, 2)
) -> Figures:
    """Extrapolate the values that `measure` finds in shallow models to a model of `layers`.

    `deepened` are the parts whose depth changes the values. The encoder is not among them by default: it is frozen, so
    its layers store no activations.
    """
    base = measure(BASE)
    figures = dict(base)
    for part in deepened:
        deeper = measure(deepen(1, part))
        for name, value in base.items():
            figures[name] += (layers[part] - BASE[part]) * (deeper[name] - value)
    return figures
