"""torch.compile for what takes the most small operations: encoder layers, adapter layers, and the LLM's MLPs and norms.

The LLM's attention stays as it is: it reads and fills a cache by the number of its layer, and would be compiled once
for each layer. Lengths are dynamic after the second shape, so buckets share what has been compiled.
"""

from collections.abc import Iterator

from torch import nn

from diva.models.diva import DivaForConditionalGeneration


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
