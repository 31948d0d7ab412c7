"""torch.compile and float8 for a step on a GPU. Not shipped, because no GPU has shown yet that they are faster.

The parts with the most small operations are compiled: encoder layers, adapter layers, and the LLM's MLPs and norms. The
LLM's attention uses a cache by the number of its layer, so it would be compiled once for each layer. Whole layers are
compiled without a cache, so they read the prefix with every row. Lengths are dynamic after the second shape, so all
buckets share the compiled code.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from diva.models.modeling import DivaForConditionalGeneration


def compile_parts(model: DivaForConditionalGeneration) -> None:
    """Compile in place; what is saved, loaded and counted stays the same."""
    for part in compiled_parts(model):
        part.compile()


def compiled_parts(model: DivaForConditionalGeneration) -> Iterator[nn.Module]:
    """The modules that are compiled, each as a graph of its own."""
    yield from model.encoder.whisper.layers
    yield from getattr(model.adapter, "layers", [])
    for layer in model.llm.base_model.layers:
        # Names that the Llama family shares (Mistral, Qwen and SmolLM among it); others keep what they have.
        for name in ("input_layernorm", "post_attention_layernorm", "mlp"):
            if isinstance(part := getattr(layer, name, None), nn.Module):
                yield part


def compile_layers(model: DivaForConditionalGeneration) -> None:
    """Each layer of the LLM as one graph, which reads the prefix with every row: a cache is told a layer's number."""
    for layer in model.llm.base_model.layers:
        layer.compile()
    model._states = partial(_states_without_cache, model)


def _states_without_cache(
    model: DivaForConditionalGeneration, embeddings: Tensor, unread: Tensor | None = None
) -> Tensor:
    prefix = model.embed(model.prefix_ids).expand(len(embeddings), -1, -1)
    start, length = prefix.shape[1], prefix.shape[1] + embeddings.shape[1]
    told = {}
    if unread is not None:
        place = torch.arange(length, device=unread.device)
        read = (place < start) | (place >= start + unread.unsqueeze(1))
        mask = ((place <= place.unsqueeze(1)) & read.unsqueeze(1)) | (place == place.unsqueeze(1))
        positions = torch.where(place < start, place, (place - unread.unsqueeze(1)).clamp(min=0))
        told = {"attention_mask": mask.unsqueeze(1), "position_ids": positions}
    with torch.autocast(embeddings.device.type, enabled=False):
        states = model.llm.base_model(
            inputs_embeds=torch.cat([prefix, embeddings], dim=1), use_cache=False, **told
        ).last_hidden_state
    return states[:, start:]


def to_float8(model: DivaForConditionalGeneration) -> None:
    """The LLM's frozen layers multiply in float8, scaled by tensor (torchao)."""
    from torchao.float8 import convert_to_float8_training

    convert_to_float8_training(model.llm.base_model.layers)
