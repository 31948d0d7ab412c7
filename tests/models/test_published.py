"""The published inference code and ours, on the same checkpoint: same ids in, same ids out."""

import pytest
import torch
from tiny import make_tokenizer, noise
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from benchmarks.published import Published
from diva import DivaConfig, DivaForConditionalGeneration
from diva.models.build import build
from diva.models.parts import load_tokenizer

LLAMA3_TEMPLATE = (
    "{% for m in messages %}{% if loop.first %}<|endoftext|>{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '<|im_end|>\n\n' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\n\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The published layout at the real widths, with one layer of everything and random weights."""
    folder = tmp_path_factory.mktemp("released")
    torch.manual_seed(7)
    tokenizer = make_tokenizer(LLAMA3_TEMPLATE)
    whisper = WhisperConfig(
        d_model=1280, encoder_layers=1, decoder_layers=1, encoder_attention_heads=20, decoder_attention_heads=20,
        encoder_ffn_dim=256, decoder_ffn_dim=256, vocab_size=100, num_mel_bins=128, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    WhisperModel(whisper).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder / "whisper")
    llama = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=4096, intermediate_size=512, num_hidden_layers=1,
        num_attention_heads=32, num_key_value_heads=8, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        pad_token_id=None, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    config = DivaConfig(
        {"name": str(folder / "whisper"), "context": "full"},
        {"num_query_tokens": 448, "projection_init": "default"},
        {"name": str(folder / "llama")},
        frozen_dtype="float32",
    )
    model = build(config, load_tokenizer(str(folder / "llama")))
    torch.nn.init.normal_(model.adapter.projection.weight, std=0.5)
    model.save_pretrained(folder / "checkpoint", layout="released")
    end = tokenizer.eos_token_id
    published = Published.load(
        folder / "checkpoint", folder / "whisper", folder / "llama", end, torch.float32
    )
    return published, DivaForConditionalGeneration.from_pretrained(folder / "checkpoint", dtype="float32")


CLIPS = [noise(1.0, 1), noise(2.5, 2)]


def new_ids(model, clips, prompts) -> list[list[int]]:
    batch = model.processor.spoken_turns(clips, prompts)
    ids = model.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch["input_ids"].shape[1] :]
    end = model.processor.tokenizer.eos_token_id
    rows = ids.tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


@pytest.mark.parity
def test_the_same_embeddings_and_ids_go_in(checkpoint):
    published, ours = checkpoint
    batch = ours.processor.spoken_turns(CLIPS, ["be brief"] * 2)
    with torch.no_grad():
        prefix, suffix = published.around(["be brief"] * 2, 2)
        embed = published.llm.get_input_embeddings()
        expected = torch.cat([embed(prefix), published.virtual_tokens(CLIPS), embed(suffix)], dim=1)
        actual = ours.input_embeddings(batch["input_ids"], batch["audio"], batch["audio_samples"])
    assert ours.adapter.query_tokens.shape == (448, 1280)
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)
    assert bool(batch["attention_mask"].all())


@pytest.mark.parity
@pytest.mark.parametrize(
    "prompts", [None, ["be brief", "be brief"], ["stop", "name three red fruits please"]]
)
def test_released_checkpoint_generates_the_ids_of_the_published_code(checkpoint, prompts):
    published, ours = checkpoint
    if prompts is None or prompts[0] == prompts[1]:
        expected = published.generate(CLIPS, prompts, max_new_tokens=8)
    else:  # there the published code puts padding into the chat: what it says to each alone is what counts
        pairs = zip(CLIPS, prompts, strict=True)
        expected = [published.generate([clip], [prompt], max_new_tokens=8)[0] for clip, prompt in pairs]
    assert new_ids(ours, CLIPS, prompts or [None, None]) == expected
    assert expected[0] != expected[1]
    texts = ours.generate(CLIPS, prompts, max_new_tokens=8)
    assert texts == [published.tokenizer.decode(row, skip_special_tokens=True) for row in expected]
