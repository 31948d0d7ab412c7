"""DivaConfig -> model: loads the frozen parts and gives the adapter its start."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    WhisperModel,
)

from diva.errors import UserError
from diva.models.adapter import MLPAdapter, QFormerAdapter
from diva.models.configuration import AdapterConfig, DivaConfig
from diva.models.encoder import SpeechEncoder
from diva.models.llm import Embeddings, load_llm
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.pretrained import resolve
from diva.models.processing import DivaProcessor

# Of the variance of an embedding.
_RIDGE = 1e-2


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of an LLM, with its chat template."""
    return AutoTokenizer.from_pretrained(resolve(name))


def build(
    config: DivaConfig,
    tokenizer: PreTrainedTokenizerBase,
    cls: type[DivaForConditionalGeneration] = DivaForConditionalGeneration,
    device_map: Any = None,
    start: bool = True,
) -> DivaForConditionalGeneration:
    """Load encoder and LLM frozen and give the adapter its start; `tokenizer` is the LLM's.

    Without `start` the adapter's weights are random, for the caller to load others.
    """
    dtype = getattr(torch, config.frozen_dtype)
    llm = load_llm(
        resolve(config.llm.name),
        dtype=dtype,
        attn_implementation=config.llm.attention,
        device_map=device_map,
    )
    whisper = WhisperModel.from_pretrained(
        resolve(config.encoder.name), dtype=torch.float32, attn_implementation="sdpa"
    )
    vocabulary, width = Embeddings(llm).shape
    adapter = make_adapter(config.adapter, whisper, width)
    if start:
        start_adapter(config, adapter, whisper, llm, tokenizer)
    encoder = SpeechEncoder(whisper.encoder.to(dtype), config.encoder.context)
    processor = DivaProcessor(
        tokenizer,
        num_virtual_tokens=config.adapter.num_virtual_tokens,
        tokens_per_second=config.adapter.tokens_per_second,
        audio_token_id=vocabulary,
        system_prompt=config.llm.system_prompt,
        prompt_layout=config.llm.prompt_layout,
        template_kwargs=config.llm.template_kwargs,
    )
    return cls(config, encoder, adapter, llm, processor).eval()


def make_adapter(config: AdapterConfig, whisper: WhisperModel, llm_width: int) -> nn.Module:
    """An adapter in float32, with random weights."""
    limit = whisper.config.max_target_positions
    if config.num_query_tokens > limit:
        raise UserError(
            f"model.adapter.num_query_tokens={config.num_query_tokens} is more than the {limit} positions of"
            " the Whisper decoder that they go through"
        )
    if config.kind == "mlp":
        return MLPAdapter(whisper.config, config.num_query_tokens, llm_width)
    return QFormerAdapter(whisper.config, config.num_query_tokens, llm_width, config.stack)


def start_adapter(
    config: DivaConfig,
    adapter: nn.Module,
    whisper: WhisperModel,
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Give an adapter the start that its config asks for."""
    if config.adapter.init == "whisper" and isinstance(adapter, QFormerAdapter):
        load_whisper_decoder(adapter, whisper)
    if config.adapter.projection_init != "default":
        start_among_embeddings(adapter, Embeddings(llm)[:].float())
    if config.adapter.projection_init == "shared_tokens":
        start_from_shared_tokens(adapter, whisper, load_tokenizer(config.encoder.name), llm, tokenizer)


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
def start_from_shared_tokens(
    adapter: QFormerAdapter,
    whisper: WhisperModel,
    speech_tokenizer: PreTrainedTokenizerBase,
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Start the projection with what turns Whisper's token embeddings into the LLM's, kept at its spread.

    The end of Whisper's decoder points at the embedding of the token it hears. Many tokens are in both
    vocabularies (most, where both are byte-level BPE): ridge regression over them says where the LLM has the
    same token. Of stacked queries all begin alike: the virtual token starts in the direction of their mean.
    """
    heard, read = Embeddings(whisper)[:].float(), Embeddings(llm)[:].float()
    ours, theirs = speech_tokenizer.get_vocab(), tokenizer.get_vocab()
    shared = sorted(token for token in ours.keys() & theirs.keys() if ours[token] < len(heard))
    if len(shared) < heard.shape[1]:
        raise UserError(
            f"model.adapter.projection_init=shared_tokens: Whisper and the LLM share {len(shared)} tokens, which"
            f" is too few for a width of {heard.shape[1]}; take model.adapter.projection_init=embeddings"
        )
    x, y = heard[[ours[token] for token in shared]], read[[theirs[token] for token in shared]]
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    ridge = _RIDGE * len(shared) * x.var() * torch.eye(x.shape[1])
    weight = torch.linalg.solve(x.T @ x + ridge, x.T @ y).T.repeat(1, adapter.stack)
    adapter.projection.weight.copy_(weight * adapter.projection.weight.norm() / weight.norm())


@torch.no_grad()
def load_whisper_decoder(adapter: QFormerAdapter, whisper: WhisperModel) -> None:
    """Copy Whisper's decoder, but for its token embeddings, into the adapter."""
    decoder = whisper.decoder
    adapter.positions.copy_(decoder.embed_positions.weight[: len(adapter.positions)])
    adapter.layers.load_state_dict(decoder.layers.state_dict())
    adapter.norm.load_state_dict(decoder.layer_norm.state_dict())
