"""Cross-attention weights against transformers' eager attention, and the picture of them."""

import copy

import pytest
import torch
from tiny import noise

from diva.audio.frames import pad_clips, valid_frames
from diva.audio.log_mel import LogMel
from diva.errors import AudioFault, UserError
from diva.models.adapter import MLPAdapter
from diva.models.configuration import AdapterConfig
from diva.models.load import load_model
from diva.plots.cross_attention import Attention, cross_attention, plot
from diva.training.metrics import nearest_tokens

CLIP = noise(1.3, 7)


@pytest.fixture(scope="module")
def model(export):
    return load_model(str(export))


def eager_weights(model, waveforms, samples) -> tuple[torch.Tensor, torch.Tensor]:
    """[layers, heads, Q, F] and virtual tokens [Q, D] by transformers' own eager attention, which returns weights."""
    frames, mask = model.encoder(waveforms, samples)
    adapter = copy.deepcopy(model.adapter)
    hidden = (adapter.query_tokens + adapter.positions)[None]
    queries, lowest = hidden.shape[1], torch.finfo(torch.float32).min
    causal = torch.triu(torch.full((queries, queries), lowest), 1)[None, None]
    unheard = None if mask is None else (~mask).float()[:, None, None, :] * lowest
    weights = []
    for layer in adapter.layers:
        for attention in (layer.self_attn, layer.encoder_attn):
            attention.config = copy.deepcopy(attention.config)
            attention.config._attn_implementation = "eager"
        layer.encoder_attn.register_forward_hook(lambda _module, _args, output: weights.append(output[1][0]))
        hidden = layer(hidden, causal, frames, unheard, use_cache=False)
    return torch.stack(weights), adapter.projection(adapter.norm(hidden))[0]


@pytest.mark.parity
@pytest.mark.parametrize("context", ["bucket", "full"])
@torch.no_grad()
def test_weights_are_those_of_eager_attention(model, context, monkeypatch):
    monkeypatch.setattr(model.encoder, "context", context)
    waveforms, samples = pad_clips([CLIP])
    attention = cross_attention(model, CLIP)
    weights, v = eager_weights(model, waveforms, samples)
    torch.testing.assert_close(attention.weights, weights, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(attention.virtual_tokens, v, atol=1e-4, rtol=1e-4)
    frames = 1500 if context == "full" else waveforms.shape[1] // 320
    assert attention.weights.shape == (2, 2, 12, frames)
    assert attention.mel.shape == (80, 2 * frames)
    torch.testing.assert_close(
        attention.mel, LogMel()(torch.nn.functional.pad(waveforms, (0, frames * 320 - waveforms.shape[1])))[0]
    )
    torch.testing.assert_close(attention.weights.sum(dim=-1), torch.ones(2, 2, 12))
    assert attention.seconds == pytest.approx(1.3)


def test_only_what_the_llm_reads_is_shown(model, monkeypatch):
    whole = cross_attention(model, CLIP)
    adapter = AdapterConfig(num_query_tokens=12, tokens_per_second=4.0)
    monkeypatch.setattr(model.config, "adapter", adapter)
    read = cross_attention(model, CLIP)  # of 1.3 s and a second of tail
    assert torch.equal(read.virtual_tokens, whole.virtual_tokens[-10:])
    assert torch.equal(read.weights, whole.weights[:, :, -10:])
    assert read.tokens == whole.tokens[-10:]


def test_frames_behind_the_tail_get_nothing(model):
    attention = cross_attention(model, CLIP)
    heard = int(valid_frames(torch.tensor(len(CLIP))))
    assert heard < attention.weights.shape[-1]
    assert (attention.weights[..., heard:] == 0).all()
    assert (attention.weights[..., :heard] > 0).all()


@torch.no_grad()
def test_the_model_is_left_as_it_was(model):
    before = model.virtual_tokens(*pad_clips([CLIP]))[0]
    attention = cross_attention(model, CLIP)
    assert torch.equal(attention.virtual_tokens, before)
    assert not any(layer.encoder_attn._forward_pre_hooks for layer in model.adapter.layers)
    nearest = nearest_tokens(before, model.embed(torch.arange(model.llm.config.vocab_size)))
    assert attention.tokens == [model.processor.tokenizer.decode([token]) for token in nearest.tolist()]


def test_what_cannot_be_shown_is_said(model, monkeypatch):
    with pytest.raises(AudioFault, match="silence"):
        cross_attention(model, 0 * CLIP)
    monkeypatch.setattr(model, "adapter", MLPAdapter(model.encoder.width, 12, 32))
    with pytest.raises(UserError, match="qformer"):
        cross_attention(model, CLIP)


def test_the_picture_shows_mel_and_mean_attention_of_the_last_tokens(tmp_path):
    weights = torch.rand(2, 3, 5, 40).softmax(dim=-1)
    tokens = ["gone", "gone", " what", "$x$", "\n"]
    figure = plot(Attention(torch.rand(80, 80), weights, torch.rand(5, 4), tokens, 0.5), tokens=3)
    above, below = figure.axes[:2]
    assert above.images[0].get_array().shape == (80, 80)
    torch.testing.assert_close(torch.tensor(below.images[0].get_array().data), weights.mean(dim=(0, 1))[2:])
    assert [label.get_text() for label in below.get_yticklabels()] == ["␣what", r"\$x\$", r"\n"]
    assert below.get_xlim() == (0, 0.8)
    figure.savefig(tmp_path / "picture.png")
