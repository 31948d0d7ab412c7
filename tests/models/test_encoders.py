"""Any speech encoder: tiny random ones of the real classes, each against transformers' own features and model."""

from functools import cache
from pathlib import Path

import pytest
import torch
from encoders import ENCODERS, WHISPERS, WINDOWS, make_encoder_of
from steps import assert_served_alike
from tiny import noise
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, HubertForCTC

from diva import DivaForConditionalGeneration
from diva.audio.frames import pad_clips
from diva.data.batch import SpeechBatch
from diva.errors import UserError
from diva.evaluation.systems.local import Cascade
from diva.models.build import build
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig
from diva.models.parts import load_parts, load_tokenizer, load_whisper, of_encoder, random_parts
from diva.models.skeleton import architecture
from diva.planning.counting import Batch, Work, ZeroTables, _count, fake_tensors, prepare
from diva.plots.cross_attention import cross_attention
from diva.training.frozen import FrozenParts
from diva.training.losses import Objective
from diva.training.step import loss_sums, measure_sums

Q = 12
CLIPS = [noise(seconds, seed) for seed, seconds in enumerate((0.4, 1.3737, 2.9))]
IDS = torch.tensor([7, 300, 45, 121, 9])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Encoder -> folder, made once."""
    root = tmp_path_factory.mktemp("encoders")
    return cache(lambda name: make_encoder_of(name, root / name))


def describe(folder: Path, llm: Path, context: str = "bucket", **adapter) -> DivaConfig:
    adapter = {"init": "random", "num_query_tokens": Q} | adapter
    return DivaConfig(
        EncoderConfig(str(folder), context), AdapterConfig(**adapter), LLMConfig(str(llm)), "float32"
    )


@pytest.fixture
def make(folders, tiny_llm):
    def make(name: str, context: str = "bucket", **adapter) -> DivaForConditionalGeneration:
        torch.manual_seed(1)
        config = describe(folders(name), tiny_llm, context, **adapter)
        return build(config, load_tokenizer(config.llm.name))

    return make


def speech(samples: list[int], padded: int) -> SpeechBatch:
    """Clips in which IDS are said."""
    waveforms = torch.stack([torch.from_numpy(noise(padded / 16_000, seed)) for seed in range(len(samples))])
    count = len(samples)
    return SpeechBatch(
        waveforms, torch.tensor(samples), IDS.expand(count, -1), torch.full((count,), len(IDS)),
        torch.arange(count), [f"clip{n}" for n in range(count)], padded,
    )  # fmt: skip


def reference(folder: Path, clip, context: str) -> torch.Tensor:
    """The frames of one clip as transformers alone makes them, [F, E]."""
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(clip, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
    model = AutoModel.from_pretrained(folder).eval()
    if model.config.model_type == "whisper":
        return model.encoder(inputs["input_features"]).last_hidden_state[0]
    if tower := getattr(model, "audio_tower", None):
        if context == "full":
            return tower(inputs["input_features"]).last_hidden_state[0]
        seen, frames = tower._get_feat_extract_output_lengths(inputs["attention_mask"].sum(-1))
        mask = torch.arange(1500).expand(1, 1, 1500, -1) < seen
        return tower(inputs["input_features"], attention_mask=mask).last_hidden_state[0, : int(frames)]
    mask = inputs["attention_mask"]
    frames = model(inputs[model.main_input_name], attention_mask=mask).last_hidden_state[0]
    return frames[: int(mask.sum())] if model.config.model_type == "wav2vec2-bert" else frames


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "context"),
    [(name, "bucket") for name in ENCODERS if name not in (*WHISPERS, "voxtral")]
    + [(name, "full") for name in WINDOWS],
)
@torch.no_grad()
def test_frames_are_those_of_transformers_for_the_clip_alone(name, context, folders, tiny_llm):
    config = describe(folders(name), tiny_llm, context)
    encoder = load_parts(config).encoder
    waveforms, samples = pad_clips(CLIPS)
    frames, mask = encoder(waveforms, samples)
    assert frames.shape[2] == encoder.width == 16
    for row, clip in enumerate(CLIPS):
        wanted = reference(folders(name), clip, context)
        found = frames[row] if mask is None else frames[row, mask[row]]
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_a_clip_has_the_same_frames_in_any_batch(name, folders, tiny_llm):
    encoder = load_parts(describe(folders(name), tiny_llm)).encoder
    waveforms, samples = pad_clips(CLIPS)
    together, mask = encoder(torch.nn.functional.pad(waveforms, (0, 4_321)), samples)
    assert mask.sum(dim=1).tolist() == encoder.frame_count.valid(samples).tolist()
    for row, clip in enumerate(CLIPS):
        frames, valid = encoder(*pad_clips([clip]))
        torch.testing.assert_close(together[row, mask[row]], frames[0, valid[0]], atol=2e-5, rtol=1e-4)
    empty, valid = encoder(torch.zeros(1, 20_000), torch.tensor([0]))  # a row that fills up a batch
    assert valid.any()
    assert empty.isfinite().all()


@pytest.mark.parametrize("name", ENCODERS)
def test_a_step_trains_the_adapter_alone(name, make):
    model = make(name).train()
    batch = speech([16_000, 9_000], 32_000)
    sums = loss_sums(model, FrozenParts(model), batch, Objective(), distills=True)
    (sums.distill + sums.align).backward()
    assert sums.distill > 0
    for parameter, value in model.named_parameters():
        learns = value.grad is not None and bool(value.grad.abs().sum() > 0)
        assert learns == parameter.startswith("adapter."), parameter
    measured = measure_sums(model, FrozenParts(model), batch)
    assert all(torch.isfinite(value).all() for value in measured.values())


@pytest.mark.parametrize("name", ENCODERS)
def test_the_server_answers_as_generate_does(name, make):
    """What `diva.serve` does with a request: the chat, a batch of several, an answer in pieces."""
    model = make(name)
    chats = [
        [{"role": "user", "content": [{"type": "audio", "audio": clip}, {"type": "text", "text": " go on"}]}]
        for clip in CLIPS[:2]
    ]
    assert_served_alike(model, chats)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_it_survives_an_export(name, full, make, folders, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path / "export", full=full)
    if full:
        assert str(folders(name)) not in (tmp_path / "export" / "config.json").read_text()
    again = DivaForConditionalGeneration.from_pretrained((tmp_path / "export").rename(tmp_path / "moved"))
    assert torch.equal(again.virtual_tokens(*pad_clips(CLIPS)), model.virtual_tokens(*pad_clips(CLIPS)))


@pytest.mark.parametrize("name", ENCODERS)
def test_its_plan_counts_the_weights_and_a_step(name, make):
    model = make(name)
    parts = architecture(model.config)
    assert parts.layers == (len(model.encoder.layers), len(model.adapter.layers), 3)
    work = Work(autocast=None)
    with fake_tensors():
        batch = Batch(2, 32_000, 5, 5)
        flops, _ = _count(model.config, parts, batch, work)
        counted = prepare(model.config, parts, Work())
        deeper = prepare(model.config, parts.with_layers((4, 5, 3)), Work())
        cached = ZeroTables(counted, batch, Work(frames_at_hand=True)).shape
    assert all(flops[stage] > 0 for stage in ("encoder", "adapter", "student", "teacher"))
    assert (len(deeper.encoder.layers), len(deeper.adapter.layers)) == (4, 5)
    for part in ("encoder", "adapter"):
        sizes = [sum(p.numel() for p in getattr(m, part).parameters()) for m in (counted, model)]
        assert sizes[0] == sizes[1]
    assert cached == (2, int(model.encoder.frame_count.valid(torch.tensor(16_000))))


@pytest.mark.parametrize("name", ["hubert_base", "wav2vec2_bert", "qwen2_audio"])
def test_a_whispers_decoder_starts_the_qformer(name, make, tiny_whisper):
    model = make(name, init="whisper", decoder=str(tiny_whisper), projection_init="embeddings")
    decoder = load_whisper(str(tiny_whisper)).decoder
    for own, given in zip(model.adapter.layers.parameters(), decoder.layers.parameters(), strict=True):
        assert torch.equal(own, given)
    assert torch.equal(model.adapter.positions, decoder.embed_positions.weight[:Q])


def test_frames_of_another_width_are_mapped_to_the_decoders(make, folders, tiny_llm, tmp_path):
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(folders("hubert_base"), hidden_size=24)
    AutoModel.from_config(config).save_pretrained(tmp_path / "wide")
    (tmp_path / "wide" / "preprocessor_config.json").write_text('{"do_normalize": false}')
    wide = describe(tmp_path / "wide", tiny_llm, init="whisper", decoder=str(folders("whisper")))
    model = build(wide, load_tokenizer(wide.llm.name))
    assert not model.encoder.standardizes
    assert model.adapter.from_frames.weight.shape == (16, 24)
    model.save_pretrained(tmp_path / "export", full=True)
    again = DivaForConditionalGeneration.from_pretrained(tmp_path / "export")
    assert again.config.adapter.decoder == str(tmp_path / "export" / "decoder")
    assert torch.equal(again.virtual_tokens(*pad_clips(CLIPS)), model.virtual_tokens(*pad_clips(CLIPS)))
    assert architecture(again.config).layers == (2, 2, 3)


def test_an_mlp_reads_any_encoder(make):
    model = make("wavlm_base", kind="mlp", init="whisper", projection_init="embeddings")
    assert model.virtual_tokens(*pad_clips(CLIPS)).shape == (3, Q, 32)


def test_its_attention_can_be_shown(make):
    attention = cross_attention(make("wav2vec2_bert"), CLIPS[1])
    assert attention.mel.shape[1] == 2 * attention.weights.shape[-1]


def test_a_recogniser_by_ctc_lends_its_encoder(folders, tiny_llm, tmp_path):
    torch.manual_seed(2)
    HubertForCTC(AutoConfig.from_pretrained(folders("hubert_large"))).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": true}')
    own = HubertForCTC.from_pretrained(tmp_path).hubert.state_dict()
    body = load_parts(describe(tmp_path, tiny_llm)).encoder.body
    assert all(torch.equal(value, own[name]) for name, value in body.state_dict().items())


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "hubert_base",
            {"init": "whisper"},
            r"is a hubert, which has no decoder; name a Whisper in model\.adapter\.dec",
        ),
        ("voxtral", {"init": "whisper"}, "is a voxtral_encoder, which has no decoder"),
        (
            "wavlm_base",
            {"context": "full"},
            r"is a wavlm, which has none: give model\.encoder\.context=bucket",
        ),
        (
            "hubert_base",
            {"decoder": "hubert_large"},
            r"model\.adapter\.decoder=.* is no Whisper but 'hubert'",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_a_weight_is_read(
    name, changes, words, folders, tiny_llm, monkeypatch
):
    monkeypatch.setattr("diva.models.parts.load_llm", lambda *args, **options: pytest.fail("loaded"))
    changes = changes | ({"decoder": str(folders(changes["decoder"]))} if "decoder" in changes else {})
    config = describe(folders(name), tiny_llm, **changes)
    for use in (load_parts, random_parts, architecture):
        with pytest.raises(UserError, match=words):
            use(config)


def test_what_is_no_speech_encoder_is_refused(folders, tiny_llm, tmp_path):
    for use in (load_parts, architecture):
        with pytest.raises(
            UserError, match="is a llama, which is no known speech encoder; known are whisper, qwen2_audio"
        ):
            use(describe(tiny_llm, tiny_llm))
    config = AutoConfig.from_pretrained(folders("wav2vec2"), add_adapter=True)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has an adapter of its own"):
        load_parts(describe(tmp_path, tiny_llm))
    AutoModel.from_config(of_encoder(AutoConfig.from_pretrained(folders("wav2vec2")))).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match=r"preprocessor_config\.json is missing: it says"):
        load_parts(describe(tmp_path, tiny_llm))
    with pytest.raises(UserError, match=r"model\.adapter\.decoder=x needs model\.adapter\.kind=qformer"):
        AdapterConfig(num_query_tokens=Q, kind="mlp", decoder="x")


def test_what_needs_a_whisper_says_so(make, folders, tmp_path):
    model = make("hubert_base")
    with pytest.raises(UserError, match=r"the published code has a Whisper.*model\.encoder\.name="):
        model.save_pretrained(tmp_path, layout="released")
    with pytest.raises(
        UserError, match=r"the cascade needs a Whisper, and .* is a hubert; name one: whisper=NAME"
    ):
        Cascade(None, str(folders("hubert_base")))
