"""Our training step with switches: each saving can be turned off, to measure its effect."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.measure import Parts
from benchmarks.published_training import TEXT_TOKENS
from diva.data.batch import SpeechBatch
from diva.models import adapter as adapter_module
from diva.models.modeling import DivaForConditionalGeneration
from diva.training.answers import Continuation
from diva.training.distributed.activation_checkpointing import checkpoint_activations
from diva.training.frozen import FrameTable, FrozenParts, TeacherTable
from diva.training.losses import Objective
from diva.training.step import loss_sums, position_weights

Losses = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Variant:
    """How a step computes; the defaults are what a run of the mini recipe does after its first pass."""

    frames: Literal["kept", "bucket", "full"] = "kept"
    teacher: Literal["kept", "trimmed", "padded"] = "kept"
    reuses_prefix: bool = True
    last_position_only: bool = False  # in the LLM's last layer
    llm_attention: Literal["grouped", "eager", "sdpa"] | None = None  # None: what the model has
    adapter_attention: Literal["grouped", "sdpa"] | None = None
    frozen_in_float32: bool = False
    fused_optimizer: bool = True
    compiled: bool = False
    recomputes: bool = False  # activations, in the backward pass
    reads_in_proportion: bool = False  # virtual tokens, to the clip's length
    distills: bool = True  # or aligns alone, and nothing passes through the LLM


@dataclass
class OurTraining:
    """The step of `diva.training.step` with a variant's switches, its stages timed.

    `frames` and `teacher` are the tables of the corpus, for variants that keep them; `tokens_per_second` is the
    proportion for those that read in proportion.
    """

    model: DivaForConditionalGeneration
    autocast: torch.dtype | None
    frames: FrameTable | None = None
    teacher: TeacherTable | None = None
    tokens_per_second: float | None = None
    _float32: DivaForConditionalGeneration | None = field(default=None, init=False)
    _compiled: dict[nn.Module, Any] = field(default_factory=dict, init=False)

    def can(self, variant: Variant) -> bool:
        """Whether the tables that a variant keeps are there, and the adapter that it needs."""
        return (
            (variant.frames != "kept" or self.frames is not None)
            and (variant.teacher != "kept" or self.teacher is not None)
            and (not variant.reads_in_proportion or self.model.config.adapter.kind == "qformer")
        )

    def losses(
        self,
        batch: SpeechBatch,
        variant: Variant,
        parts: Parts,
        objective: Objective | None = None,
        after: Continuation | None = None,
    ) -> Losses:
        """L_distill and L_align of a batch; with `after`, over the answers that follow the speech."""
        assert self.can(variant)
        with ExitStack() as stack:
            model = stack.enter_context(self._as(variant))
            stack.enter_context(self._precision())
            frames = self.frames if variant.frames == "kept" else None
            teacher = self.teacher if variant.teacher == "kept" else None
            frozen = FrozenParts(model, frames, teacher)
            parts.start()
            objective = objective or Objective()
            sums = loss_sums(
                model, frozen, batch, objective, distills=variant.distills, after=after, on_stage=parts.end
            )
            positions = position_weights(batch, after, objective).sum()
            return sums.distill / positions, sums.align / batch.tokens.sum()

    @contextmanager
    def _as(self, variant: Variant) -> Iterator[DivaForConditionalGeneration]:
        """The model as a variant has it; as before on leaving, also by an exception."""
        model = self._in_float32() if variant.frozen_in_float32 else self.model
        with ExitStack() as stack:
            if variant.llm_attention:
                stack.callback(model.llm.set_attn_implementation, model.llm.config._attn_implementation)
                model.llm.set_attn_implementation(variant.llm_attention)
            if variant.reads_in_proportion:
                adapter = replace(model.config.adapter, tokens_per_second=self.tokens_per_second)
                stack.enter_context(patch.object(model.config, "adapter", adapter))
            attention = variant.adapter_attention or adapter_module.GROUPED
            stack.enter_context(patch.object(adapter_module, "GROUPED", attention))
            context = "full" if variant.frames == "full" else "bucket"
            stack.enter_context(patch.object(model.encoder, "context", context))
            if variant.teacher == "padded":
                stack.enter_context(patch.object(model, "teacher_states", partial(padded_teacher, model)))
            if variant.last_position_only:
                student = partial(student_at_last_position, model)
                stack.enter_context(patch.object(model, "student_states", student))
            elif not variant.reuses_prefix:
                stack.enter_context(patch.object(model, "student_states", partial(whole_student, model)))
            if variant.compiled:
                stack.enter_context(self._compiling(model))
            if variant.recomputes:
                stack.enter_context(_recomputing(model))
            yield model

    @contextmanager
    def _compiling(self, model: DivaForConditionalGeneration) -> Iterator[None]:
        """MLPs and norms of the LLM through torch.compile: whole layers take minutes to compile, for little more."""
        if not self._compiled:
            for layer in model.llm.base_model.layers:
                for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
                    part.compile(dynamic=False)
                    self._compiled[part] = part._compiled_call_impl
        try:
            for part, call in self._compiled.items():
                part._compiled_call_impl = call
            yield
        finally:
            for part in self._compiled:
                part._compiled_call_impl = None

    def _in_float32(self) -> DivaForConditionalGeneration:
        """The same adapter between frozen parts in float32."""
        if self._float32 is None:
            adapter, self.model.adapter = self.model.adapter, nn.Module()
            self._float32 = copy.deepcopy(self.model).float()
            self._float32._prefix_cache = None
            self._float32.adapter = self.model.adapter = adapter
        return self._float32

    def _precision(self):
        return torch.autocast(self.model.device.type, self.autocast) if self.autocast else nullcontext()


@contextmanager
def _recomputing(model: DivaForConditionalGeneration) -> Iterator[None]:
    """Activation checkpointing, which gives the layers a `forward` of their own, and takes it back.

    The backward pass comes after that: what is kept for it knows by itself how to compute again.
    """
    before = {module for module in model.modules() if "forward" in vars(module)}
    try:
        checkpoint_activations(model)
        yield
    finally:
        for module in set(model.modules()) - before:
            vars(module).pop("forward", None)


def training_step(
    losses: Callable[[], Losses], optimizer: torch.optim.Optimizer, clip: float, parts: Parts
) -> float:
    """One optimizer step; returns the loss."""
    optimizer.zero_grad()
    loss = sum(losses())
    assert isinstance(loss, Tensor)
    parts.start()
    loss.backward()
    parts.end("adapter, backward")
    with parts("optimizer"):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
    return float(loss.detach())


# ---- what a step does without a saving, or with one that is not shipped


def whole_student(model: DivaForConditionalGeneration, v: Tensor, *length: Any) -> Tensor:
    """Student states [B, D] without the prefix's keys and values."""
    before, after = (model.embed(ids).expand(len(v), -1, -1) for ids in (model.prefix_ids, model.suffix_ids))
    inputs = torch.cat([before, v.to(before.dtype), after], dim=1)
    return model.llm.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1]


@torch.no_grad()
def padded_teacher(model: DivaForConditionalGeneration, token_ids: Tensor, tokens: Tensor) -> Tensor:
    """Teacher states [B, D] of transcripts padded to the published 448 tokens, behind the prefix's keys and values."""
    count = len(model.suffix_ids)
    ids = nn.functional.pad(token_ids, (0, max(0, TEXT_TOKENS - token_ids.shape[1]) + count))
    position = torch.arange(count, device=ids.device) + tokens.unsqueeze(1)
    ids = ids.scatter(1, position, model.suffix_ids.expand(len(ids), -1))
    given = model.llm.config._attn_implementation
    model.llm.set_attn_implementation("sdpa")  # the fastest for rows of this length, as in the published step
    states = model.llm.base_model(
        inputs_embeds=model.embed(ids), past_key_values=model._prefix(len(ids)), use_cache=True
    ).last_hidden_state
    model.llm.set_attn_implementation(given)
    return states[torch.arange(len(ids)), position[:, -1]]


def student_at_last_position(model: DivaForConditionalGeneration, v: Tensor, *length: Any) -> Tensor:
    """Student states [B, D], where the last layer of a Llama computes queries, attention and MLP for one position.

    Not shipped: it restates a layer of one architecture for what one layer in thirty saves.
    """
    base: Any = model.llm.base_model
    layer, config = base.layers[-1], base.config
    suffix = model.embed(model.suffix_ids).expand(len(v), -1, -1)
    with (
        torch.autocast(v.device.type, enabled=False),
        patch.object(config, "num_hidden_layers", config.num_hidden_layers - 1),
        patch.object(base, "norm", nn.Identity()),
    ):
        cache = model._prefix(len(v))
        inputs = torch.cat([v.to(suffix.dtype), suffix], dim=1)
        hidden = base(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state
    with torch.autocast(v.device.type, enabled=False):
        return base.norm(_at_last_position(layer, hidden, base.rotary_emb, cache))[:, 0]


def _at_last_position(layer: Any, hidden: Tensor, rotary: nn.Module, cache: Any) -> Tensor:
    """A Llama layer's output at the last of the positions [B, L, D] behind a cached prefix, [B, 1, D]."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    start = cache.get_seq_length() - hidden.shape[1]  # the first layer has the new positions already
    turns = rotary(normed, start + torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0))
    query, key, value = (
        project(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project, states in (
            (attention.q_proj, normed[:, -1:]),
            (attention.k_proj, normed),
            (attention.v_proj, normed),
        )
    )
    query = apply_rotary_pos_emb(query, query, *(turn[:, -1:] for turn in turns))[0]
    key = apply_rotary_pos_emb(key, key, *turns)[0]
    key, value = cache.update(key, value, attention.layer_idx)
    heard, _ = adapter_module.grouped_attention(attention, query, key, value, None, attention.scaling)
    states = hidden[:, -1:] + attention.o_proj(heard.flatten(2))
    return states + layer.mlp(layer.post_attention_layernorm(states))
