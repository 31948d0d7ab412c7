"""Activation checkpointing: the backward pass recomputes each layer instead of storing its activations."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Cache

from diva.models.llm import decoder
from diva.models.modeling import DivaForConditionalGeneration, PrefixCache


def checkpoint_activations(model: DivaForConditionalGeneration) -> None:
    """Store only the inputs of the layers of adapter and LLM for the backward pass. Call it once."""
    # transformers' own version needs the LLM in training mode, and drops the cached keys and values of the prefix.
    for layer in [*getattr(model.adapter, "layers", []), *decoder(model.llm).layers]:
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled() or isinstance(kwargs.get("past_key_values"), PrefixCache):
        return forward(hidden, *args, **kwargs)

    def run(hidden: Tensor) -> Any:
        # A layer adds its keys to the cache. The recomputation must not see the keys of the first computation.
        copies = {k: _copy(v) if isinstance(v, Cache) else v for k, v in kwargs.items()}
        return forward(hidden, *args, **copies)

    if hidden.device.type == "xla":
        from torch_xla.utils.checkpoint import checkpoint as xla_checkpoint

        # Without this barrier XLA sees that both computations are equal, merges them and stores the activations.
        return xla_checkpoint(run, hidden)
    return checkpoint(run, hidden, use_reentrant=False)


def _copy(cache: Cache) -> Cache:
    result = copy.copy(cache)
    result.layers = [copy.copy(layer) for layer in cache.layers]
    return result
