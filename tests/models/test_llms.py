"""Any chat LLM: tiny random ones of the real classes, each against itself as transformers alone runs it."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from llms import EAGER_ONLY, FAMILIES, make_llm_of
from steps import assert_served_alike
from tiny import as_if_trained, noise
from transformers import PreTrainedModel

from diva.audio.frames import pad_clips, padded_samples
from diva.data.batch import SpeechBatch
from diva.errors import UserError
from diva.models.build import build
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig, LoraConfig
from diva.models.llm import decoder, load_llm
from diva.models.lora import lora_state
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.parts import load_tokenizer
from diva.models.processing import DivaProcessor
from diva.models.skeleton import architecture
from diva.planning.counting import Batch, Work, _count, fake_tensors, prepare
from diva.training.frozen import FrozenParts
from diva.training.llm_check import check_llm
from diva.training.losses import Objective
from diva.training.step import loss_sums, measure_sums

COUNTED = FAMILIES.keys() - {"gemma2", "granite", "gpt_oss", "lfm2"}
Q = 12
SYSTEM = "be brief and kind please"  # the prefix is longer than every sliding window
IDS = torch.tensor([7, 300, 45, 121, 9, 88, 250, 17, 33])


@pytest.fixture(scope="module")
def llms(tmp_path_factory):
    """Family -> folder, made once."""
    root = tmp_path_factory.mktemp("llms")
    return cache(lambda family: make_llm_of(family, root / family))


def make(
    folder: Path, whisper: Path, attention: str = "eager", lora: LoraConfig | None = None, **adapter
) -> DivaForConditionalGeneration:
    torch.manual_seed(1)
    config = DivaConfig(
        EncoderConfig(str(whisper), "bucket"),
        AdapterConfig(num_query_tokens=Q, **adapter),
        LLMConfig(str(folder), SYSTEM, attention, lora=lora),
        "float32",
    )
    return build(config, load_tokenizer(str(folder)))


def alone(folder: Path) -> PreTrainedModel:
    """The LLM as transformers alone runs it."""
    return load_llm(folder, dtype=torch.float32, attn_implementation="eager")


def around(model, middle: torch.Tensor) -> torch.Tensor:
    """prefix | middle [N, D] | suffix as embeddings [1, L, D]."""
    return torch.cat([model.embed(model.prefix_ids), middle, model.embed(model.suffix_ids)]).unsqueeze(0)


def speech() -> SpeechBatch:
    """A clip in which IDS are said."""
    clip = torch.from_numpy(noise(1.0, 0)).unsqueeze(0)
    return SpeechBatch(
        torch.nn.functional.pad(clip, (0, 16_000)), torch.tensor([16_000]), IDS.unsqueeze(0),
        torch.tensor([len(IDS)]), torch.tensor([0]), ["clip"], 32_000,
    )  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_student_and_teacher_read_as_the_llm_alone_does_without_a_cache(
    family, attention, llms, tiny_whisper
):
    if attention == "sdpa" and family in EAGER_ONLY:
        with pytest.raises(UserError, match=r"model\.llm\.attention=sdpa.*take model\.llm\.attention=eager"):
            make(llms(family), tiny_whisper, attention)
        return
    model, llm = make(llms(family), tiny_whisper, attention), alone(llms(family))
    v = torch.randn(3, Q, 32) * model.embed(IDS).std()
    for states, middle in ((model.student_states(v), v[0]), (model.student_states(v), v[0])):
        wanted = llm(inputs_embeds=around(model, middle), use_cache=False).logits[0, -1]
        torch.testing.assert_close(model.logits(states)[0], wanted, atol=1e-4, rtol=1e-4)
    tokens = torch.tensor([len(IDS), 4])
    teacher = model.logits(model.teacher_states(IDS.expand(2, -1), tokens))
    for row, count in enumerate(tokens.tolist()):
        whole = torch.cat([model.prefix_ids, IDS[:count], model.suffix_ids]).unsqueeze(0)
        wanted = llm(input_ids=whole, use_cache=False).logits[0, -1]
        torch.testing.assert_close(teacher[row], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_transcripts_own_embeddings_are_no_loss_and_align_fully(family, llms, tiny_whisper, monkeypatch):
    model = make(llms(family), tiny_whisper)
    v = torch.cat([model.embed(IDS).flip(0)[: Q - len(IDS)], model.embed(IDS)]).unsqueeze(0)
    batch = speech()
    frozen = FrozenParts(model)
    monkeypatch.setattr(model, "adapt", lambda frames, mask: v)
    assert float(loss_sums(model, frozen, batch, Objective(), distills=False).align) < 1e-5
    sums = measure_sums(model, frozen, batch)
    assert sums["alignment_accuracy"].tolist() == [len(IDS), len(IDS)]
    # The free virtual tokens before them are none of the transcript's: without those nothing is left to learn.
    monkeypatch.setattr(model, "adapt", lambda frames, mask: v[:, -len(IDS) :])
    assert float(loss_sums(model, frozen, batch, Objective(), distills=True).distill) < 1e-3
    sums = measure_sums(model, frozen, batch)
    assert float(sums["kl"][0]) < 1e-5
    assert sums["first_token_agreement"].tolist() == [1, 1]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_answers_are_those_of_the_llm_alone_and_survive_an_export(family, llms, tiny_whisper, tmp_path):
    model, llm = make(llms(family), tiny_whisper), alone(llms(family))
    model.save_pretrained(tmp_path)
    again = DivaForConditionalGeneration.from_pretrained(tmp_path, dtype="float32")
    clips = [noise(1.0, 0), noise(1.4, 1)]
    batch = model.processor.spoken_turns(clips, [None, None])
    options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": -1}
    answers = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    torch.testing.assert_close(again.generate(**batch, **options)[:, -6:], answers)
    for row, v in enumerate(model.virtual_tokens(*pad_clips(clips))):
        embeddings = around(model, v)
        for token in answers[row]:
            said = llm(inputs_embeds=embeddings, use_cache=False).logits[0, -1].argmax()
            assert said == token
            embeddings = torch.cat([embeddings, model.embed(said.view(1, 1))], dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_trains_the_adapter_alone(family, llms, tiny_whisper):
    model = make(llms(family), tiny_whisper).train()
    sums = loss_sums(model, FrozenParts(model), speech(), Objective(), distills=True)
    (sums.distill + sums.align).backward()
    assert sums.distill > 0
    for name, parameter in model.named_parameters():
        learns = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert learns == name.startswith("adapter."), name


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_lora_is_added_to_the_weights_for_the_student_alone(family, llms, tiny_whisper):
    """The student reads as an LLM with the weights W + alpha / r B A does, the teacher as the LLM alone."""
    model = as_if_trained(make(llms(family), tiny_whisper, lora=LoraConfig(r=4, alpha=2.0)))
    llm, changed = alone(llms(family)), alone(llms(family))
    weights = dict(decoder(changed).layers.named_parameters())
    state = lora_state(model.llm)
    for name in [name for name in state if ".lora_A." in name]:
        b, weight = state[name.replace(".lora_A.", ".lora_B.")], name.replace(".lora_A.", ".")
        weights[weight.removeprefix("lora.")] += 2.0 / 4 * b @ state[name]
    v = torch.randn(2, Q, 32) * model.embed(IDS).std()
    for row, logits in enumerate(model.logits(model.student_states(v))):
        wanted = changed(inputs_embeds=around(model, v[row]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(
            wanted, llm(inputs_embeds=around(model, v[row]), use_cache=False).logits[0, -1], atol=1e-2
        )
    teacher = model.logits(model.teacher_states(IDS.unsqueeze(0), torch.tensor([len(IDS)])))
    whole = torch.cat([model.prefix_ids, IDS, model.suffix_ids]).unsqueeze(0)
    wanted = llm(input_ids=whole, use_cache=False).logits[0, -1]
    torch.testing.assert_close(teacher[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_server_answers_as_generate_does(family, llms, tiny_whisper):
    """What `diva.serve` does with a request: the chat, a batch of several, an answer in pieces."""
    model = make(llms(family), tiny_whisper)
    audio = {"type": "audio", "audio": noise(1.0, 0)}
    chats = [
        [{"role": "user", "content": [{"type": "text", "text": "say "}, audio]}],
        [{"role": "system", "content": "stop"}, {"role": "user", "content": [audio]}],
    ]
    assert_served_alike(model, chats)


@pytest.mark.parametrize("family", sorted(COUNTED))
def test_its_plan_counts_the_weights_and_a_step(family, llms, tiny_whisper):
    model = make(llms(family), tiny_whisper)
    parts = architecture(model.config)
    parts = parts.with_layers(parts.layers)
    with fake_tensors():
        flops, _ = _count(model.config, parts, Batch(2, 32_000, 9, 9), Work(autocast=None))
        counted = prepare(model.config, parts, Work())
    assert all(
        flops[stage] > 0 for stage in ("encoder", "adapter", "student", "teacher", "student, backward")
    )
    for part in ("llm", "adapter"):
        sizes = [sum(p.numel() for p in getattr(m, part).parameters()) for m in (counted, model)]
        assert sizes[0] == sizes[1]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gemma3", "mistral", "phi3"])
@torch.no_grad()
def test_windows_slide_over_what_is_read_of_a_short_clip(family, llms, tiny_whisper):
    model, llm = make(llms(family), tiny_whisper, tokens_per_second=4.0), alone(llms(family))
    samples = torch.tensor([6_400, 22_400])
    v = torch.randn(2, Q, 32) * model.embed(IDS).std()
    logits = model.logits(model.student_states(v, samples, padded_samples(2.9)))
    for row, count in enumerate((6, 10)):
        wanted = llm(inputs_embeds=around(model, v[row, -count:]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits[row], wanted, atol=1e-4, rtol=1e-4)


def test_a_recurrent_llm_reads_all_virtual_tokens(llms, tiny_whisper):
    with pytest.raises(UserError, match=r"model\.adapter\.tokens_per_second=4.*take null"):
        make(llms("lfm2"), tiny_whisper, tokens_per_second=4.0)


@torch.no_grad()
def test_virtual_tokens_start_where_a_scaled_embedding_is_read(llms, tiny_whisper):
    model = make(llms("gemma3"), tiny_whisper)
    table = model.llm.get_input_embeddings()
    read = table(torch.arange(len(table.weight)))
    assert float(read.norm() / table.weight.norm()) == pytest.approx(32**0.5, rel=1e-4)
    torch.testing.assert_close(model.adapter.projection.bias, read.mean(dim=0))
    spread = (read - read.mean(dim=0)).norm(dim=1).mean()
    v = model.virtual_tokens(*pad_clips([noise(1.0, 0)]))
    assert 0.5 < (v - read.mean(dim=0)).norm(dim=-1).mean() / spread < 2


@pytest.mark.parametrize("family", FAMILIES)
def test_an_llm_that_reads_its_embeddings_as_its_ids_can_teach(family, llms, tiny_whisper):
    check_llm(make(llms(family), tiny_whisper), IDS)


def test_an_llm_that_looks_at_the_ids_is_refused_in_words(llms, tiny_whisper, monkeypatch):
    model = make(llms("llama"), tiny_whisper)
    table = model.llm.get_input_embeddings()
    hook = table.register_forward_hook(lambda module, ids, read: read * 1.5)
    monkeypatch.setattr(model, "embed", lambda ids: table.weight[ids])
    with pytest.raises(
        UserError, match=r"cannot teach: after a transcript of 9 tokens.*reading its embeddings"
    ):
        check_llm(model, IDS)
    hook.remove()
    model._prefix_cache = None
    check_llm(model, IDS)
    cached = model._prefix_cache
    cached.layers[0].keys = cached.layers[0].keys * 2
    with pytest.raises(UserError, match=r"cannot teach.*reading"):
        check_llm(model, IDS)


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_a_template_without_a_system_role_gets_the_message_in_the_users_turn(family, llms, tiny_whisper):
    """Gemma's refuses it, Mistral's early one loses it."""
    model = make(llms(family), tiny_whisper)
    text = model.processor.tokenizer.decode(model.prefix_ids)
    assert SYSTEM in text
    assert "system" not in text


def test_template_variables_are_said_wherever_a_chat_is_built(llms, tiny_whisper, tmp_path):
    model = make(llms("qwen3"), tiny_whisper)
    config = model.config
    config.llm = replace(config.llm, template_kwargs={"enable_thinking": False})
    model = build(config, model.processor.tokenizer)
    thought = "<think>\n\n</think>\n\n"
    decode = model.processor.tokenizer.decode
    assert decode(model.suffix_ids).endswith(thought)
    model.save_pretrained(tmp_path)
    again = DivaForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.llm.template_kwargs == {"enable_thinking": False}
    for processor in (again.processor, DivaProcessor.from_pretrained(tmp_path)):
        chat = [{"role": "user", "content": [{"type": "audio", "audio": noise(1.0, 0)}]}]
        for batch in (processor.apply_chat_template(chat), processor.spoken_turns([noise(1.0, 0)], [None])):
            assert decode(batch["input_ids"][0, -len(model.suffix_ids) :]).endswith(thought)
    torch.testing.assert_close(again.suffix_ids, model.suffix_ids)


def test_a_misspelt_template_variable_is_named(llms, tiny_whisper):
    config = DivaConfig(
        EncoderConfig(str(tiny_whisper)),
        AdapterConfig(num_query_tokens=Q),
        LLMConfig(str(llms("qwen3")), template_kwargs={"enable_thinkin": False, "enable_thoughts": True}),
    )
    with pytest.raises(UserError, match=r"template_kwargs\.enable_thoughts: the chat template of"):
        build(config, load_tokenizer(config.llm.name))
