"""Neighbouring queries stacked into one virtual token (`model.adapter.stack`), from the network to a run."""

import json
from dataclasses import replace

import pytest
import torch
from command_line import run
from safetensors.torch import load_file
from tiny import noise
from transformers import AutoProcessor, WhisperModel

from diva.audio.frames import pad_clips
from diva.errors import UserError
from diva.models.build import build, start_from_shared_tokens
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.parts import load_tokenizer
from diva.plan import compose
from diva.planning.counting import Work, count_flops
from diva.planning.run import Run
from diva.plots.cross_attention import cross_attention

CLIPS = [noise(1.3, 3), noise(0.6, 4)]


@pytest.fixture(scope="module")
def model(tiny_whisper, tiny_llm):
    adapter = AdapterConfig(num_query_tokens=12, stack=4)
    config = DivaConfig(
        EncoderConfig(str(tiny_whisper), "full"), adapter, LLMConfig(str(tiny_llm)), "float32"
    )
    torch.manual_seed(5)
    model = build(config, load_tokenizer(str(tiny_llm)))
    torch.nn.init.normal_(model.adapter.projection.weight)
    return model


@pytest.mark.parity
def test_stacked_virtual_tokens_equal_the_published_reshape(model, tiny_whisper):
    whisper = WhisperModel.from_pretrained(tiny_whisper).eval()
    waveforms, samples = pad_clips(CLIPS)
    with torch.no_grad():
        frames, _ = model.encoder(waveforms, samples)
        queries = model.adapter.query_tokens.expand(2, -1, -1)
        hidden = whisper.decoder(inputs_embeds=queries, encoder_hidden_states=frames).last_hidden_state
        actual = model.virtual_tokens(waveforms, samples)
        for row, states in enumerate(hidden):
            for number in range(3):
                beside = torch.cat([states[4 * number + place] for place in range(4)])
                expected = model.adapter.projection(beside)
                torch.testing.assert_close(actual[row, number], expected, atol=1e-4, rtol=1e-4)
    assert actual.shape == (2, 3, 32)


def test_a_clip_has_as_many_places_in_a_prompt_as_virtual_tokens(model):
    batch = model.processor.spoken_turns(CLIPS, [None, None])
    assert (batch["input_ids"] == model.processor.audio_token_id).sum(dim=1).tolist() == [3, 3]
    together = model.generate(CLIPS, max_new_tokens=6)
    assert together == [model.generate([clip], max_new_tokens=6)[0] for clip in CLIPS]


@pytest.mark.parametrize("layout", ["diva", "released"])
def test_a_stacked_adapter_survives_both_layouts(model, tmp_path, layout):
    model.save_pretrained(tmp_path, layout=layout)
    again = DivaForConditionalGeneration.from_pretrained(tmp_path, dtype="float32")
    assert (again.config.adapter.stack, again.config.adapter.num_virtual_tokens) == (4, 3)
    assert again.generate(CLIPS, max_new_tokens=6) == model.generate(CLIPS, max_new_tokens=6)
    if layout == "released":
        assert load_file(tmp_path / "model.safetensors")["projection.weight"].shape == (64, 32)
    else:
        assert AutoProcessor.from_pretrained(tmp_path).num_virtual_tokens == 3


def test_processors_of_earlier_exports_keep_their_number_of_virtual_tokens(export, tmp_path):
    for file in export.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((tmp_path / "processor_config.json").read_text())
    values["num_query_tokens"] = values.pop("num_virtual_tokens")
    (tmp_path / "processor_config.json").write_text(json.dumps(values))
    assert AutoProcessor.from_pretrained(tmp_path).num_virtual_tokens == 12


def test_only_the_last_stacked_tokens_are_read_of_a_short_clip():
    adapter = AdapterConfig(num_query_tokens=48, stack=4, tokens_per_second=4.0)
    assert adapter.tokens_read(torch.tensor([6_400, 160_000])).tolist() == [6, 12]


def test_cross_attention_of_a_stacked_token_is_the_mean_of_its_queries(model):
    seen = cross_attention(model, CLIPS[0])
    assert len(seen.tokens) == len(seen.virtual_tokens) == 3
    stack, model.adapter.stack = model.adapter.stack, 1
    model.adapter.projection, projection = torch.nn.Linear(16, 32), model.adapter.projection
    model.config.adapter, adapter = AdapterConfig(num_query_tokens=12), model.config.adapter
    each = cross_attention(model, CLIPS[0]).weights
    model.adapter.stack, model.adapter.projection, model.config.adapter = stack, projection, adapter
    for number in range(3):
        mean = each[:, :, 4 * number : 4 * number + 4].mean(dim=2)
        torch.testing.assert_close(seen.weights[:, :, number], mean)


def test_every_stacked_query_starts_from_the_shared_tokens(model, tiny_whisper, tiny_llm):
    adapter, size = model.adapter, model.adapter.projection.weight.norm()
    before = adapter.projection.weight.detach().clone()
    start_from_shared_tokens(
        adapter,
        WhisperModel.from_pretrained(tiny_whisper),
        load_tokenizer(str(tiny_whisper)),
        model.llm,
        model.processor.tokenizer,
    )
    first, *others = adapter.projection.weight.detach().split(16, dim=1)
    assert len(others) == 3
    assert all(torch.equal(first, other) for other in others)
    torch.testing.assert_close(adapter.projection.weight.norm(), size)
    adapter.projection.weight.data.copy_(before)


def test_a_plan_counts_as_many_virtual_tokens_as_the_llm_reads(tiny_overrides, tiny_release):
    corpus = ["data=common_voice", f"data.root={tiny_release}", "data.batch_size=4"]
    whole = Run(compose([*tiny_overrides, *corpus]))
    stacked = Run(compose([*tiny_overrides, *corpus, "model.adapter.stack=4"]))
    batch = whole.batch(3, 40_000)
    assert (batch.text_width, stacked.batch(3, 40_000).text_width) == (48, 12)
    fewer = replace(whole.model.adapter, num_query_tokens=12)
    fewer_read = count_flops(
        DivaConfig(whole.model.encoder, fewer, whole.model.llm), whole.parts, batch, Work()
    )
    counted = count_flops(stacked.model, stacked.parts, batch, Work())
    assert counted["student"] == fewer_read["student"]
    assert counted["adapter"] > fewer_read["adapter"]
    assert stacked.weights.adapter - whole.weights.adapter == 4 * 3 * 16 * 32  # bytes of a wider projection


@pytest.mark.integration
def test_a_run_with_stacked_queries_trains_and_exports(tiny_run, shared_cache, tmp_path):
    given = ["model.adapter.stack=16", "max_steps=3", "val_every=3", "sample_responses=1"]
    given += [
        "optimizer.warmup_steps=1",
        "objective.distill_from_step=1",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    # Of 48 queries the LLM reads 3 tokens: longer transcripts are skipped, and counted.
    done = run(
        "diva.train", *tiny_run, *given, "data.max_skipped_fraction=0.9", cache=shared_cache, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    model = DivaForConditionalGeneration.from_pretrained(tmp_path / "run", dtype="float32")
    assert model.virtual_tokens(*pad_clips(CLIPS)).shape == (2, 3, 32)
    assert "into 3 virtual tokens" in (tmp_path / "run" / "export" / "README.md").read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["clips_in_corpus"]["train"] < 22


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"num_query_tokens": 10, "stack": 4}, "stack=4 must divide"),
        ({"num_query_tokens": 8, "stack": 0}, "stack=0 must divide"),
        ({"num_query_tokens": 8, "stack": 2, "kind": "mlp"}, "needs model.adapter.kind=qformer"),
    ],
)
def test_a_stack_that_cannot_be_is_refused(adapter, said):
    with pytest.raises(UserError, match=said):
        AdapterConfig(**adapter)
