"""Attention in plain matrix products against torch's own."""

from types import SimpleNamespace

import pytest
import torch
from tiny import noise
from torch.nn.functional import scaled_dot_product_attention

from diva.audio.frames import pad_clips
from diva.models.adapter import grouped_attention
from diva.models.build import build
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig
from diva.models.parts import load_tokenizer

LOOKS_ANYWHERE, CAUSAL = (
    SimpleNamespace(is_causal=False, training=False),
    SimpleNamespace(is_causal=True, training=False),
)


def tensors(heads: int, groups: int, length: int, keys: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = ((heads, length), (groups, keys), (groups, keys))
    return [torch.randn(2, *shape, 8, requires_grad=True) for shape in shapes]


def expected(query, key, value, **options):
    return scaled_dot_product_attention(query, key, value, enable_gqa=True, scale=0.3, **options)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_outputs_and_gradients_are_those_of_torch(heads, groups):
    inputs = tensors(heads, groups, 5, 7)
    output, weights = grouped_attention(LOOKS_ANYWHERE, *inputs, None, 0.3)
    wanted = expected(*inputs).transpose(1, 2)
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, heads, 5))
    direction = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad(output, inputs, direction),
        torch.autograd.grad(wanted, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_grouped_attention_takes_boolean_and_additive_masks():
    inputs = tensors(4, 2, 5, 7)
    seen = torch.rand(2, 1, 5, 7) > 0.3
    seen[..., 0] = True
    wanted = expected(*inputs, attn_mask=seen).transpose(1, 2)
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    for mask in (seen, added):
        torch.testing.assert_close(grouped_attention(CAUSAL, *inputs, mask, 0.3)[0], wanted)
    row = seen[:, :, :1]  # one for all queries, as for a clip's valid frames
    wanted = expected(*inputs, attn_mask=row.expand(-1, 4, 5, -1)).transpose(1, 2)
    torch.testing.assert_close(grouped_attention(LOOKS_ANYWHERE, *inputs, row, 0.3)[0], wanted)


def test_a_causal_module_looks_at_the_past_only():
    inputs = tensors(4, 2, 5, 5)
    wanted = expected(*inputs, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(grouped_attention(CAUSAL, *inputs, None, 0.3)[0], wanted)
    behind = tensors(4, 2, 3, 7)  # four positions are cached
    mask = torch.ones(3, 7, dtype=torch.bool).tril(4)
    wanted = expected(*behind, attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(grouped_attention(CAUSAL, *behind, None, 0.3)[0], wanted)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_where_a_model_on_a_cpu_uses_it(tiny_whisper, tiny_llm, attention):
    config = DivaConfig(
        EncoderConfig(str(tiny_whisper)),
        AdapterConfig(num_query_tokens=12),
        LLMConfig(str(tiny_llm), attention=attention),
        frozen_dtype="float32",
    )
    model = build(config, load_tokenizer(str(tiny_llm)))
    model.student_states(model.virtual_tokens(*pad_clips([noise(1.0, 0)])))
    assert model.adapter.config._attn_implementation == "grouped"
    assert model.encoder.body.config._attn_implementation == "sdpa"
    assert model.llm.config._attn_implementation == {"eager": "grouped", "sdpa": "sdpa"}[attention]
