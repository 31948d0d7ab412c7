"""Time the training step on this machine, on shallow models with random weights.

On a CPU the FLOP rate of large matrix products is ten times that of small ones. So FLOPs divided by one rate predict
the time of a small model badly. Here each stage is timed with its real shapes on models of few layers. Its time is
then extrapolated linearly to all layers.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import nn

from diva.models.configuration import DivaConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.prompts import user_turn
from diva.models.skeleton import Architecture, StandInTokenizer
from diva.planning.counting import BASE, Batch, Figures, Work, deepen, prepare, stages_at_full_depth, step

_ROUNDS = 4
_FURTHER = 4  # difference in layers of the two models: a larger one reduces the effect of noise on the result
ROUND_LAYERS = 2 * BASE[0] + _FURTHER  # layers of both models, which one round runs
# Training only looks embeddings up. It never multiplies by them, so their number does not change its speed.
_VOCABULARY = 1024
_MATMUL = 2048
_MATMUL_SECONDS = 0.7


def stage_seconds(
    config: DivaConfig,
    parts: Architecture,
    batch: Batch,
    work: Work,
    device: torch.device,
    optimizer: Callable[..., torch.optim.Optimizer],
    gradient_clip: float,
) -> Figures:
    """Seconds of each stage of a training step on one micro-batch at full depth, and of its "optimizer".

    Each is the median of a few rounds. Other load on the machine is included, because it slows down the run as well.
    """
    config, parts = _without_words(config, parts)
    timers = []
    for layers in (BASE, deepen(_FURTHER)):
        model = prepare(config, parts.with_layers(layers, _VOCABULARY), work, device)
        timers.append(_Timer(model, batch, work, optimizer(model.trained_parameters()), gradient_clip))
    # The two depths take turns, so that noise affects both. The first round is a warm-up.
    rounds = [[timer() for timer in timers] for _ in range(_ROUNDS + 1)][1:]
    base, deeper = (
        {stage: median(of[n][stage] for of in rounds) for stage in rounds[0][n]} for n in range(2)
    )
    seconds = stages_at_full_depth(base, deeper, _FURTHER, parts.layers)
    return {stage: max(0.0, value) for stage, value in seconds.items()}


def _without_words(config: DivaConfig, parts: Architecture) -> tuple[DivaConfig, Architecture]:
    """The same config and parts with a small vocabulary. The prompt has as many tokens, all from that vocabulary."""
    prompt = user_turn(parts.tokenizer, config.llm.system_prompt, template_kwargs=config.llm.template_kwargs)
    tokenizer = StandInTokenizer(len(prompt.prefix_ids), len(prompt.suffix_ids))
    llm = replace(config.llm, system_prompt=None, template_kwargs={})
    bare = DivaConfig(config.encoder, config.adapter, llm, config.frozen_dtype)
    return bare, replace(parts, tokenizer=tokenizer)


class _Timer:
    """Times one training step of a model, stage by stage."""

    def __init__(
        self,
        model: DivaForConditionalGeneration,
        batch: Batch,
        work: Work,
        optimizer: torch.optim.Optimizer,
        gradient_clip: float,
    ):
        self.model = model.train()
        self.batch, self.work = batch, work
        self.optimizer = optimizer
        self.gradient_clip = gradient_clip

    def __call__(self) -> Figures:
        seconds: Figures = {}
        self.optimizer.zero_grad()
        before = self._now()

        def mark(stage: str) -> None:
            nonlocal before
            now = self._now()
            seconds[stage] = now - before
            before = now

        step(self.model, self.batch, self.work, mark)
        if self.gradient_clip > 0:
            nn.utils.clip_grad_norm_(self.model.trained_parameters(), self.gradient_clip)
        self.optimizer.step()
        mark("optimizer")
        return seconds

    def _now(self) -> float:
        if self.model.prefix_ids.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def matmul_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """TFLOP/s of large square matrix products: an upper limit for large models.

    It is that of the fastest product in about a second, because other work on the machine makes some of them slow.
    """
    side = _MATMUL if device.type == "cpu" else 4 * _MATMUL
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def product() -> Any:
        result = left @ right
        if result.is_cuda:
            torch.cuda.synchronize()
        return result

    product()
    seconds: list[float] = []
    began = time.perf_counter()
    while not seconds or time.perf_counter() - began < _MATMUL_SECONDS:
        started = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds) / 1e12
