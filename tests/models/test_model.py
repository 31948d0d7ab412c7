"""The network against transformers' own classes, and the shortcuts it takes against the long way."""

import pytest
import torch
import torch.nn.functional as F
from tiny import noise
from transformers import AutoModelForCausalLM, WhisperModel

from diva.audio.frames import pad_clips, padded_samples
from diva.errors import UserError
from diva.models.adapter import GROUPED, pooling_matrix
from diva.models.build import build, start_among_embeddings, start_from_shared_tokens
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.parts import load_tokenizer

Q = 12


def model_config(tiny_whisper, tiny_llm, context="bucket", **adapter) -> DivaConfig:
    return DivaConfig(
        encoder=EncoderConfig(str(tiny_whisper), context),
        adapter=AdapterConfig(num_query_tokens=Q, **adapter),
        llm=LLMConfig(str(tiny_llm)),
        frozen_dtype="float32",
    )


def make(tiny_whisper, tiny_llm, context="bucket", **adapter) -> DivaForConditionalGeneration:
    torch.manual_seed(0)
    return build(model_config(tiny_whisper, tiny_llm, context, **adapter), load_tokenizer(str(tiny_llm)))


@pytest.fixture
def diva(tiny_whisper, tiny_llm) -> DivaForConditionalGeneration:
    return make(tiny_whisper, tiny_llm)


@pytest.mark.parity
def test_encoder_and_qformer_equal_transformers_at_full_context(tiny_whisper, tiny_llm):
    diva = make(tiny_whisper, tiny_llm, context="full")
    whisper = WhisperModel.from_pretrained(tiny_whisper).eval()
    waveforms = torch.from_numpy(noise(2.0, 0)).unsqueeze(0)
    with torch.no_grad():
        frames, mask = diva.encoder(waveforms, torch.tensor([32_000]))
        mel = diva.encoder.log_mel(F.pad(waveforms, (0, 480_000 - 32_000)))
        expected_frames = whisper.encoder(mel).last_hidden_state
        queries = diva.adapter.query_tokens.unsqueeze(0)
        hidden = whisper.decoder(inputs_embeds=queries, encoder_hidden_states=expected_frames)
        expected = diva.adapter.projection(hidden.last_hidden_state)
        actual = diva.virtual_tokens(waveforms, torch.tensor([32_000]))
    assert mask is None
    torch.testing.assert_close(frames, expected_frames, atol=1e-5, rtol=0)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_a_clip_has_the_same_virtual_tokens_alone_and_in_any_batch(diva):
    clips = [noise(seconds, seed) for seed, seconds in enumerate((0.4, 1.37, 2.9))]
    alone = torch.cat([diva.virtual_tokens(*pad_clips([clip])) for clip in clips])
    for width in (padded_samples(2.9), padded_samples(7.0)):
        batch = torch.zeros(4, width)
        for row, clip in enumerate(clips):
            batch[row, : len(clip)] = torch.from_numpy(clip)
        samples = torch.tensor([len(clip) for clip in clips] + [0])
        together = diva.virtual_tokens(batch, samples)
        assert together.isfinite().all()  # the empty row too
        torch.testing.assert_close(together[:3], alone, atol=2e-5, rtol=0)


def test_student_states_equal_the_whole_sequence_in_one_pass(diva, tiny_llm):
    llm = AutoModelForCausalLM.from_pretrained(tiny_llm).eval()
    v = torch.randn(3, Q, 32)
    embed = llm.get_input_embeddings()
    parts = [embed(ids).expand(3, -1, -1) for ids in (diva.prefix_ids, diva.suffix_ids)]
    with torch.no_grad():
        whole = llm.model(inputs_embeds=torch.cat([parts[0], v, parts[1]], dim=1)).last_hidden_state[:, -1]
        torch.testing.assert_close(diva.student_states(v), whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            diva.student_states(v), whole, atol=1e-5, rtol=0
        )  # the prefix is not used up
        torch.testing.assert_close(diva.logits(whole), llm.lm_head(whole), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("prefix", [True, False])
def test_the_llm_reads_as_many_virtual_tokens_as_the_clip_is_long(tiny_whisper, tiny_llm, attention, prefix):
    diva = make(tiny_whisper, tiny_llm, tokens_per_second=4.0)
    diva.llm.set_attn_implementation({"eager": GROUPED, "sdpa": "sdpa"}[attention])
    if not prefix:
        diva.prefix_ids = diva.prefix_ids[:0]
    embed = diva.llm.get_input_embeddings()
    # With a second of tail 5.6, 9.6 and more than the 12 there are; an empty row has its tail.
    seconds, counts = (0.4, 1.4, 2.9, 0.0), (6, 10, 12, 4)
    samples = torch.tensor([round(s * 16_000) for s in seconds])
    assert diva.config.adapter.tokens_read(samples).tolist() == list(counts)
    v = torch.randn(4, Q, 32)
    with torch.no_grad():
        for longest in (2.9, 7.0):
            states = diva.student_states(v, samples, padded_samples(longest))
            for row, count in enumerate(counts):
                parts = [embed(diva.prefix_ids), v[row, -count:], embed(diva.suffix_ids)]
                whole = diva.llm.model(inputs_embeds=torch.cat(parts).unsqueeze(0)).last_hidden_state[0, -1]
                torch.testing.assert_close(states[row], whole, atol=1e-5, rtol=0)


def test_virtual_tokens_that_no_clip_of_a_batch_has_are_not_computed_with(
    tiny_whisper, tiny_llm, monkeypatch
):
    diva = make(tiny_whisper, tiny_llm, tokens_per_second=4.0)
    lengths = []
    monkeypatch.setattr(diva, "_states", lambda x, unread: lengths.append((x.shape[1], unread.tolist())) or x)
    suffix = len(diva.suffix_ids)
    # The second clip is longer than its bucket says, which happens where durations are listed wrongly.
    diva.student_states(torch.randn(2, Q, 32), torch.tensor([6_400, 22_400]), padded_samples(0.9))
    assert lengths == [(8 + suffix, [2, 0])]


def test_teacher_states_equal_each_transcript_read_alone(diva, tiny_llm):
    llm = AutoModelForCausalLM.from_pretrained(tiny_llm).eval()
    tokens = torch.tensor([5, 1, 9])
    ids = torch.randint(3, 300, (3, 9))
    actual = diva.teacher_states(ids, tokens)
    for row, count in enumerate(tokens.tolist()):
        sequence = torch.cat([diva.prefix_ids, ids[row, :count], diva.suffix_ids]).unsqueeze(0)
        with torch.no_grad():
            expected = llm.model(sequence).last_hidden_state[0, -1]
        torch.testing.assert_close(actual[row], expected, atol=1e-5, rtol=0)


def test_gradients_reach_the_adapter_and_nothing_else(diva):
    diva.train()
    v = diva.virtual_tokens(*pad_clips([noise(1.0, 0)]))
    diva.student_states(v).sum().backward()
    for name, parameter in diva.named_parameters():
        if name.startswith("adapter."):
            assert parameter.requires_grad
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert not parameter.requires_grad
            assert parameter.grad is None
    assert not diva.llm.training
    assert not diva.encoder.training


def test_virtual_tokens_start_near_the_mean_token_embedding(tiny_whisper, tiny_llm):
    whisper = WhisperModel.from_pretrained(tiny_whisper)
    llm = AutoModelForCausalLM.from_pretrained(tiny_llm)
    diva = make(tiny_whisper, tiny_llm)
    mean = llm.get_input_embeddings().weight.mean(dim=0)
    torch.testing.assert_close(diva.adapter.projection.bias, mean)
    spread = (llm.get_input_embeddings().weight - mean).norm(dim=1).mean()
    v = diva.virtual_tokens(*pad_clips([noise(1.0, 0)]))
    assert 0.5 < (v - mean).norm(dim=-1).mean() / spread < 2
    torch.testing.assert_close(diva.adapter.layers[1].fc1.weight, whisper.decoder.layers[1].fc1.weight)
    torch.testing.assert_close(diva.adapter.positions, whisper.decoder.embed_positions.weight[:Q])
    random = make(tiny_whisper, tiny_llm, init="random", projection_init="default")
    assert not torch.allclose(random.adapter.layers[1].fc1.weight, whisper.decoder.layers[1].fc1.weight)
    assert not torch.allclose(random.adapter.projection.bias, mean)


def test_the_last_norm_of_whispers_decoder_starts_at_size_one(tiny_whisper, tiny_llm):
    """As trained it multiplies by about 11: so far outside the embeddings would the virtual tokens start."""
    diva = make(tiny_whisper, tiny_llm, projection_init="default")
    with torch.no_grad():
        diva.adapter.norm.weight.mul_(torch.linspace(10, 12, 16))
        diva.adapter.norm.bias.fill_(3.0)
    direction = diva.adapter.norm.weight.clone()
    start_among_embeddings(diva.adapter, diva.llm.get_input_embeddings().weight)
    gain = direction.square().mean().sqrt()
    torch.testing.assert_close(diva.adapter.norm.weight, direction / gain)
    torch.testing.assert_close(diva.adapter.norm.bias, torch.full((16,), 3.0) / gain)


def test_the_projection_starts_where_the_llm_has_the_tokens_that_whisper_hears(tiny_whisper, tiny_llm):
    """Where a matrix turns Whisper's token embeddings into the LLM's, that matrix is found, up to its size."""
    torch.manual_seed(0)
    whisper = WhisperModel.from_pretrained(tiny_whisper)
    llm = AutoModelForCausalLM.from_pretrained(tiny_llm)
    speech_tokenizer, tokenizer = load_tokenizer(str(tiny_whisper)), load_tokenizer(str(tiny_llm))
    truth = torch.randn(16, 32)
    heard, read = whisper.decoder.embed_tokens.weight, llm.get_input_embeddings().weight
    with torch.no_grad():
        for token, number in speech_tokenizer.get_vocab().items():
            if number < len(heard):
                read[tokenizer.get_vocab()[token]] = heard[number] @ truth
    adapter = make(tiny_whisper, tiny_llm).adapter
    size = adapter.projection.weight.norm()
    start_from_shared_tokens(adapter, whisper, speech_tokenizer, llm, tokenizer)
    found = adapter.projection.weight.T
    assert F.cosine_similarity(found.flatten(), truth.flatten(), dim=0) > 0.99
    torch.testing.assert_close(found.norm(), size)
    foreign = load_tokenizer(str(tiny_llm))
    foreign.get_vocab = lambda: {"one": 1, "two": 2}
    with pytest.raises(UserError, match=r"share 0 tokens.*projection_init=embeddings"):
        start_from_shared_tokens(adapter, whisper, foreign, llm, tokenizer)
    with pytest.raises(UserError, match=r"needs model\.adapter\.kind=qformer"):
        AdapterConfig(num_query_tokens=4, kind="mlp", projection_init="shared_tokens")


def test_mlp_pools_like_adaptive_average_pooling():
    frames = torch.randn(2, 50, 4)
    mask = torch.arange(50) < torch.tensor([[50], [17]])
    pooled = pooling_matrix(frames, mask, 20) @ frames
    for row, count in enumerate((50, 17)):
        expected = F.adaptive_avg_pool1d(frames[row, :count].T, 20).T
        torch.testing.assert_close(pooled[row], expected, atol=1e-5, rtol=0)


def test_mlp_adapter_gives_as_many_virtual_tokens(tiny_whisper, tiny_llm):
    diva = make(tiny_whisper, tiny_llm, kind="mlp")
    assert diva.virtual_tokens(*pad_clips([noise(1.0, 0)])).shape == (1, Q, 32)


def test_wrong_model_settings_name_their_key(tiny_whisper, tiny_llm):
    for build_config in (
        lambda: EncoderConfig("x", "buckets"),
        lambda: AdapterConfig(num_query_tokens=0),
        lambda: AdapterConfig(num_query_tokens=4, tokens_per_second=0.0),
        lambda: AdapterConfig(num_query_tokens=4, tokens_per_second=2.0, kind="mlp"),
        lambda: AdapterConfig(num_query_tokens=4, kind="qfomer"),
        lambda: AdapterConfig(num_query_tokens=4, init="none"),
    ):
        with pytest.raises(UserError, match=r"model\.(encoder|adapter)\."):
            build_config()
    config = DivaConfig(
        EncoderConfig(str(tiny_whisper)),
        AdapterConfig(num_query_tokens=65),
        LLMConfig(str(tiny_llm)),
        "float32",
    )
    with pytest.raises(UserError, match="num_query_tokens=65 is more than the 64"):
        build(config, load_tokenizer(str(tiny_llm)))
