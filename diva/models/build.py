"""Build a DiVA for training: load the frozen parts and initialize the adapter as the config says."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, WhisperModel

from diva.errors import UserError
from diva.models.adapter import QFormerAdapter
from diva.models.configuration import DivaConfig
from diva.models.llm import Embeddings
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.parts import Parts, load_parts, load_tokenizer, load_whisper

# Fraction of the variance of an embedding.
_RIDGE = 1e-2


def build(config: DivaConfig, tokenizer: PreTrainedTokenizerBase) -> DivaForConditionalGeneration:
    """Load the frozen encoder and LLM, and initialize the adapter. `tokenizer` is the LLM's."""
    parts = load_parts(config, tokenizer)
    model = DivaForConditionalGeneration(config, parts).eval()
    start_adapter(config, model.adapter, parts)
    return model


def start_adapter(config: DivaConfig, adapter: nn.Module, parts: Parts) -> None:
    """Initialize an adapter as its config says."""
    name, whisper = config.adapter.decoder or config.encoder.name, parts.whisper
    if config.adapter.init == "whisper" and isinstance(adapter, QFormerAdapter):
        whisper = load_whisper(name) if config.adapter.decoder or whisper is None else whisper
        load_whisper_decoder(adapter, whisper)
    if config.adapter.projection_init != "default":
        start_among_embeddings(adapter, Embeddings(parts.llm)[:].float())
    if config.adapter.projection_init == "shared_tokens":
        assert isinstance(adapter, QFormerAdapter)  # AdapterConfig checks it
        assert whisper is not None
        tokenizer = parts.processor.tokenizer
        start_from_shared_tokens(adapter, whisper, load_tokenizer(name), parts.llm, tokenizer)


@torch.no_grad()
def start_among_embeddings(adapter: nn.Module, embeddings: Tensor) -> None:
    """Initialize the adapter so that virtual tokens have the mean and the spread of the token embeddings [V, D].

    The weights of the last norm of Whisper's decoder are about 11, which suits its own output matrix. With them the
    virtual tokens would start far from the embeddings, and each Adam step would be 11 times too large. So they are
    scaled to a root mean square of 1.
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
    """Initialize the projection with a map from Whisper's token embeddings to the LLM's, at the LLM's spread.

    The output of Whisper's decoder is close to the embedding of the spoken token. Both vocabularies share many tokens
    (most of them, if both are byte-level BPE). Ridge regression over the shared tokens gives the map.
    With `stack` all queries of a virtual token start with the same weights: it starts in the direction of their mean.
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
    """Copy Whisper's decoder, without its token embeddings, into the adapter."""
    decoder = whisper.decoder
    adapter.positions.copy_(decoder.embed_positions.weight[: len(adapter.positions)])
    adapter.layers.load_state_dict(decoder.layers.state_dict())
    adapter.norm.load_state_dict(decoder.layer_norm.state_dict())
