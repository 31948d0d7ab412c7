"""Published checkpoints as they lie on the hub, with tiny weights inside (fixtures in `conftest.py`)."""

import torch
from tiny import noise
from transformers import AutoModelForCausalLM, WhisperModel

from diva.models.pretrained import resolve

DIVA = "WillHeld/DiVA-llama-3-v0-8b"
WHISPER, LLAMA = "openai/whisper-large-v3", "meta-llama/Meta-Llama-3-8B-Instruct"
REFERENCES = {"reference_encoder": WHISPER, "reference_decoder": LLAMA}
SMALL, QWEN = "alvanlii/whisper-small-cantonese", "hon9kon9ize/CantoneseLLMChat-v1.0-7B"
CLIP = noise(1.3, 3)


def answers(model) -> list[str]:
    return model.generate([CLIP], max_new_tokens=6)


def frozen_parts(tiny_whisper, tiny_llm) -> dict[str, torch.Tensor]:
    """The LLM and the encoder as the authors' shards hold them."""
    llm = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32).state_dict()
    encoder = WhisperModel.from_pretrained(tiny_whisper).encoder.state_dict()
    return {f"decoder.{key}": value.clone() for key, value in llm.items()} | {
        f"encoder.{key}": value for key, value in encoder.items()
    }


def torch_weights(model) -> tuple[dict, dict]:
    """The Q-Former and the encoder as torch names them in the published model class."""
    released = WhisperModel.from_pretrained(resolve(SMALL)).decoder
    adapter = model.adapter
    released.layers.load_state_dict(adapter.layers.state_dict())
    released.layer_norm.load_state_dict(adapter.norm.state_dict())
    released.embed_positions.weight.data[: len(adapter.positions)] = adapter.positions.data
    qformer = {f"decoder.{key}": value for key, value in released.state_dict().items()}
    qformer |= {"query_tokens": adapter.query_tokens.data}
    qformer |= {f"projection.{key}": value.data for key, value in adapter.projection.named_parameters()}
    return qformer, dict(model.encoder.body.state_dict())
