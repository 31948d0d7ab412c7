"""ModelConfig -> Diva: loads the frozen parts and gives the adapter its start."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, WhisperModel

from diva.checkpoints import read_export
from diva.errors import UserError
from diva.models.adapter import MLPAdapter, QFormerAdapter
from diva.models.config import AdapterConfig, ModelConfig
from diva.models.diva import Diva
from diva.models.encoder import SpeechEncoder
from diva.pretrained import resolve
from diva.prompts import user_turn


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of an LLM, with its chat template."""
    return AutoTokenizer.from_pretrained(resolve(name))


def build(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Diva:
    """Load encoder and LLM frozen and give the adapter its start; `tokenizer` is the LLM's."""
    dtype = getattr(torch, config.frozen_dtype)
    llm = AutoModelForCausalLM.from_pretrained(
        resolve(config.llm.name), dtype=dtype, attn_implementation=config.llm.attention
    )
    whisper = WhisperModel.from_pretrained(
        resolve(config.encoder.name), dtype=torch.float32, attn_implementation="sdpa"
    )
    adapter = make_adapter(config.adapter, whisper, llm.get_input_embeddings().weight)
    encoder = SpeechEncoder(whisper.encoder.to(dtype), config.encoder.context)
    prompt = user_turn(tokenizer, config.llm.system_prompt)
    model = Diva(encoder, adapter, llm, prompt, max_tokens=config.adapter.num_query_tokens)
    return model.eval()


def make_adapter(config: AdapterConfig, whisper: WhisperModel, embeddings: Tensor) -> nn.Module:
    """An adapter in float32 with its configured start; `embeddings` [V, D] are the LLM's."""
    limit = whisper.config.max_target_positions
    if config.num_query_tokens > limit:
        raise UserError(
            f"model.adapter.num_query_tokens={config.num_query_tokens} is more than the {limit} positions of"
            " the Whisper decoder that they go through"
        )
    cls = {"qformer": QFormerAdapter, "mlp": MLPAdapter}[config.kind]
    adapter = cls(whisper.config, config.num_query_tokens, embeddings.shape[1])
    if config.init == "whisper" and isinstance(adapter, QFormerAdapter):
        load_whisper_decoder(adapter, whisper)
    if config.projection_init == "embeddings":
        start_among_embeddings(adapter, embeddings.float())
    return adapter


@torch.no_grad()
def start_among_embeddings(adapter: nn.Module, embeddings: Tensor) -> None:
    """Let the virtual tokens start with the mean and the spread of the token embeddings [V, D].

    The last norm of Whisper's decoder multiplies by about 11, for its own output matrix: a projection behind it
    would start far outside, and each Adam step would move it 11 times as far as lr says. So it is brought to 1.
    """
    if isinstance(adapter, QFormerAdapter):
        gain = adapter.norm.weight.square().mean().sqrt()
        adapter.norm.weight /= gain
        adapter.norm.bias /= gain
    mean = embeddings.mean(dim=0)
    spread = (embeddings - mean).norm(dim=1).mean()
    adapter.projection.weight.normal_(std=float(spread) / adapter.projection.weight.numel() ** 0.5)
    adapter.projection.bias.copy_(mean)


@torch.no_grad()
def load_whisper_decoder(adapter: QFormerAdapter, whisper: WhisperModel) -> None:
    """Copy Whisper's decoder, but for its token embeddings, into the adapter."""
    decoder = whisper.decoder
    adapter.positions.copy_(decoder.embed_positions.weight[: len(adapter.positions)])
    adapter.layers.load_state_dict(decoder.layers.state_dict())
    adapter.norm.load_state_dict(decoder.layer_norm.state_dict())


def load_trained(path: Path) -> tuple[Diva, PreTrainedTokenizerBase]:
    """A trained model from a run directory or its export, with the LLM's tokenizer."""
    export = path / "export" if (path / "export").is_dir() else path
    values, state = read_export(export)
    config = ModelConfig.from_dict(values)
    tokenizer = load_tokenizer(config.llm.name)
    model = build(config, tokenizer)
    model.adapter.load_state_dict(state)
    return model, tokenizer
