"""A DiVA to be trained: its frozen parts loaded, its adapter at the start that the config asks for."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, WhisperModel

from diva.errors import UserError
from diva.models.adapter import QFormerAdapter
from diva.models.configuration import DivaConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.parts import Parts, embedding_matrix, load_parts, load_tokenizer

# Of the variance of an embedding.
_RIDGE = 1e-2


def build(config: DivaConfig, tokenizer: PreTrainedTokenizerBase) -> DivaForConditionalGeneration:
    """Load encoder and LLM frozen and give the adapter its start; `tokenizer` is the LLM's."""
    parts = load_parts(config, tokenizer)
    model = DivaForConditionalGeneration(config, parts).eval()
    start_adapter(config, model.adapter, parts)
    return model


def start_adapter(config: DivaConfig, adapter: nn.Module, parts: Parts) -> None:
    """Give an adapter the start that its config asks for."""
    if config.adapter.init == "whisper" and isinstance(adapter, QFormerAdapter):
        load_whisper_decoder(adapter, parts.whisper)
    if config.adapter.projection_init != "default":
        start_among_embeddings(adapter, embedding_matrix(parts.llm).float())
    if config.adapter.projection_init == "shared_tokens":
        speech_tokenizer = load_tokenizer(config.encoder.name)
        tokenizer = parts.processor.tokenizer
        start_from_shared_tokens(adapter, parts.whisper, speech_tokenizer, parts.llm, tokenizer)


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
    heard, read = embedding_matrix(whisper).float(), embedding_matrix(llm).float()
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
