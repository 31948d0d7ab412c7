"""LoRA on the LLM: at zero it is the frozen LLM, the teacher stays that LLM, and exports carry the matrices."""

import copy
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from command_line import environment
from llms import make_llm_of
from safetensors.torch import load_file
from steps import assert_same, batch_of, both_losses, learn
from tiny import as_if_trained, make_model, noise
from torch.func import functional_call

from diva.errors import UserError
from diva.evaluation.samples import Instruction
from diva.evaluation.systems.local import Diva, TextLLM
from diva.models import parts
from diva.models.build import build
from diva.models.configuration import LLMConfig, LoraConfig
from diva.models.llm import load_llm
from diva.models.lora import lora_state, without_lora
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.parts import load_tokenizer
from diva.models.start import read_start, start_from
from diva.serving.vllm import command
from diva.training.answer_table import by_llm
from diva.training.answers import AnswerSettings, answer
from diva.training.distributed.activation_checkpointing import checkpoint_activations
from diva.training.llm_check import check_llm
from diva.training.transcripts import weights_digest

LORA = LoraConfig(r=4, alpha=2.0)
SPEECH = batch_of(0.7, 1.5, 1.1)
CLIP = noise(1.3, 3)
IDS = torch.tensor([7, 300, 45, 121])


@pytest.fixture
def plain(tiny_whisper, tiny_llm) -> DivaForConditionalGeneration:
    return make_model(tiny_whisper, tiny_llm)


@pytest.fixture
def fresh(tiny_whisper, tiny_llm) -> DivaForConditionalGeneration:
    return make_model(tiny_whisper, tiny_llm, lora=LORA)


@pytest.fixture
def trained(fresh) -> DivaForConditionalGeneration:
    return as_if_trained(fresh)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_lora_gives_the_losses_and_gradients_of_the_frozen_llm_to_the_bit(
    tiny_whisper, tiny_llm, dtype, checkpointing
):
    models = [make_model(tiny_whisper, tiny_llm, 3, dtype, lora=lora).train() for lora in (None, LORA)]
    if checkpointing:
        for model in models:
            checkpoint_activations(model)
    without, with_lora = (learn(model, SPEECH) for model in models)
    assert with_lora[0] == without[0]
    assert without[1].keys() < with_lora[1].keys()
    assert all(torch.equal(with_lora[1][name], gradient) for name, gradient in without[1].items())


def test_the_teacher_stays_and_the_student_changes_with_training(fresh):
    v = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([4, 2])

    def states() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return fresh.teacher_states(IDS.expand(2, -1), tokens), fresh.student_states(v)

    teacher, student = states()
    optimizer = torch.optim.AdamW(fresh.train().trained_parameters(), lr=1e-2, weight_decay=0.5)
    frozen = {name: p.clone() for name, p in fresh.named_parameters() if not p.requires_grad}
    for _ in range(3):
        optimizer.zero_grad()
        sum(both_losses(fresh, SPEECH)).backward()
        optimizer.step()
    assert torch.equal(states()[0], teacher)
    assert (states()[1] - student).norm() > 0.1 * student.norm()
    assert all(torch.equal(value, dict(fresh.named_parameters())[name]) for name, value in frozen.items())
    assert not any(torch.equal(value, torch.zeros_like(value)) for value in lora_state(fresh.llm).values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_sum_of_the_weights(trained, tiny_llm, checkpointing):
    """Those of W + alpha / r B A in an LLM that reads prefix, speech and suffix at once."""
    state = lora_state(trained.llm)
    llm = load_llm(tiny_llm, dtype=torch.float32, attn_implementation="eager").model
    v = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    changed = dict(llm.named_parameters())
    for name, a in state.items():
        if ".lora_A." in name:
            weight = name.replace(".lora_A.", ".").replace("lora.", "layers.")
            changed[weight] = changed[weight] + LORA.alpha / LORA.r * state[name.replace("_A.", "_B.")] @ a
    rows = [torch.cat([trained.embed(trained.prefix_ids), x, trained.embed(trained.suffix_ids)]) for x in v]
    read = functional_call(llm, changed, kwargs={"inputs_embeds": torch.stack(rows), "use_cache": False})
    wanted = read.last_hidden_state[:, -1]
    expected = torch.autograd.grad((wanted * v[:, 0]).sum(), list(state.values()))
    if checkpointing:
        checkpoint_activations(trained)
    states = trained.train().student_states(v)
    torch.testing.assert_close(states, wanted, atol=1e-5, rtol=1e-5)
    (states * v[:, 0]).sum().backward()
    for weight, gradient in zip(state.values(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-3)


def test_recomputed_activations_give_the_same_gradients(trained):
    saving = copy.deepcopy(trained)
    checkpoint_activations(saving)
    assert_same(learn(saving.train(), SPEECH), learn(trained.train(), SPEECH))


@torch.no_grad()
def test_all_that_the_teacher_says_is_said_without_lora(trained, plain):
    rows = [[7, 300, 45, *plain.suffix_ids.tolist()], [9, *plain.suffix_ids.tolist()]]
    said, wanted = (by_llm(model, AnswerSettings(), 6)(0, rows) for model in (trained, plain))
    assert said == wanted
    assert answer(trained, [trained.embed(torch.tensor(ids)) for ids in rows], 6) != wanted
    check_llm(trained, IDS)
    assert weights_digest(trained.llm) == weights_digest(plain.llm)  # caches of the teacher are shared


@torch.no_grad()
def test_the_switch_is_as_it_was_after_an_error_and_inside_another(trained):
    v = torch.randn(1, 12, 32)
    seen = [trained.student_states(v)]

    def fail_inside() -> None:
        with without_lora(trained.llm):
            with without_lora(trained.llm):
                seen.append(trained.student_states(v))
            seen.append(trained.student_states(v))
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail_inside()
    on, off, still_off = seen
    assert torch.equal(trained.student_states(v), on)
    assert torch.equal(still_off, off)
    assert not torch.allclose(on, off, atol=1e-2)


@torch.no_grad()
def test_answers_are_those_of_the_student(trained):
    """As one token after the other by the states that training compares."""
    batch = trained.processor.spoken_turns([CLIP], [None])
    ids, v = trained.suffix_ids, trained.virtual_tokens(batch["audio"], batch["audio_samples"])
    generated = trained.generate(**batch, max_new_tokens=5, eos_token_id=-1, do_sample=False)[0, -5:]
    for token in generated:
        states = trained.student_states(v, after=ids[None], at=torch.tensor([[len(ids) - 1]]))
        assert trained.logits(states)[0, 0].argmax() == token
        ids = torch.cat([ids, token[None]])


# ---- files


def test_an_export_carries_the_matrices_and_says_so(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    state, own = load_file(tmp_path / "model.safetensors"), lora_state(trained.llm)
    assert "lora.0.self_attn.q_proj.lora_A.weight" in own
    assert state.keys() == trained.adapter.state_dict().keys() | own.keys()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["llm"]["lora"] == {"r": 4, "alpha": 2.0, "target_modules": None}
    again = DivaForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(value, own[name]) for name, value in lora_state(again.llm).items())
    assert again.generate([CLIP], max_new_tokens=6) == trained.generate([CLIP], max_new_tokens=6)
    with pytest.raises(UserError, match="released layout has no place for LoRA"):
        trained.save_pretrained(tmp_path / "released", layout="released")
    config["llm"]["lora"]["r"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"its lora\.0\.\S+ is \(4, 64\), here it is \(2, 64\)"):
        DivaForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
@torch.no_grad()
def test_a_full_export_has_the_llm_without_lora(family, tiny_whisper, tmp_path):
    """Of an LLM with tied embeddings, and of a multi-modal one."""
    llm = make_llm_of(family, tmp_path / "llm")
    model = as_if_trained(make_model(tiny_whisper, llm, lora=LORA))
    model.save_pretrained(tmp_path / "full", full=True)
    options = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    before, after = (load_llm(folder, **options) for folder in (llm, tmp_path / "full" / "llm"))
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    again = DivaForConditionalGeneration.from_pretrained(tmp_path / "full")
    v = torch.randn(1, 12, 32)
    torch.testing.assert_close(again.student_states(v), model.student_states(v))


FOREIGN = """
import sys
for name in ("diva", "gguf", "lightning", "hydra"):
    sys.modules[name] = None  # whoever imports it fails
import numpy as np
from transformers import AutoModel
sys.modules["peft"] = None
try:
    AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, dtype="float32")
except Exception as error:
    print("REFUSED" + str(error) + "END")
del sys.modules["peft"]
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, dtype="float32")
clip = (np.random.default_rng(3).standard_normal(int(1.3 * 16_000)) * 0.1).astype(np.float32)
print("ANSWER" + model.generate([clip], max_new_tokens=6)[0] + "END")
"""


@pytest.mark.integration
def test_it_loads_where_diva_is_not_installed_and_asks_for_peft(trained, shared_cache, tmp_path):
    trained.save_pretrained(tmp_path / "export")
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(tmp_path / "export")],
        env=environment(shared_cache) | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused, answered = (done.stdout.split(word)[1].split("END")[0] for word in ("REFUSED", "ANSWER"))
    assert refused == "this model has LoRA weights (model.llm.lora), which need peft: pip install peft"
    assert [answered] == trained.generate([CLIP], max_new_tokens=6)


def test_the_ceiling_of_an_evaluation_reads_without_lora(trained, plain, tmp_path):
    trained.save_pretrained(tmp_path)
    texts = ["what is the capital of france", "stop"]
    config = plain.config.llm
    alone = TextLLM(plain.llm, plain.processor.tokenizer, config.name)
    diva, wanted = Diva(str(tmp_path)), alone.read(texts, Instruction(), 8)
    assert diva.reader.read(texts, Instruction(), 8) == wanted
    inputs = trained.processor.apply_chat_template([[{"role": "user", "content": text}] for text in texts])
    ids = trained.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert trained.processor.batch_decode(ids, skip_special_tokens=True) != wanted


def test_vllm_refuses_it_in_one_line(trained, tmp_path, monkeypatch):
    trained.save_pretrained(tmp_path)
    monkeypatch.setattr(command, "find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"^vLLM serves no DiVA with LoRA.*serve it without --engine vllm$"):
        command.exec_server(SimpleNamespace(model=str(tmp_path)), [])


# ---- starting from another, and what is refused


def started(model: DivaForConditionalGeneration, source, lora: LoraConfig | None):
    """A model of this one's parts with other LoRA settings that starts from an export, and the line of the log."""
    config = copy.deepcopy(model.config)
    config.llm, config.start_from = LLMConfig(config.llm.name, lora=lora), str(source)
    start = read_start(config)
    assert start is not None
    new = build(config, load_tokenizer(config.llm.name))
    return new, start_from(new, start)


def test_a_run_starts_from_a_model_with_the_same_lora_or_none(trained, plain, tmp_path):
    trained.save_pretrained(tmp_path / "lora")
    plain.save_pretrained(tmp_path / "plain")
    new, line = started(trained, tmp_path / "lora", LORA)
    own = lora_state(trained.llm)
    assert all(torch.equal(value, own[name]) for name, value in lora_state(new.llm).items())
    assert line.endswith(", with its LoRA matrices of the LLM")
    new, line = started(trained, tmp_path / "plain", LORA)
    assert not any(value.any() for name, value in lora_state(new.llm).items() if ".lora_B." in name)
    for other in (None, LoraConfig(r=2, alpha=2.0), LoraConfig(r=4, alpha=4.0)):
        with pytest.raises(UserError, match=r"give model\.llm\.lora='\{r:4,alpha:2,target_modules:null\}'$"):
            started(trained, tmp_path / "lora", other)


def test_layers_that_the_llm_does_not_have_are_refused_before_its_weights_are_loaded(
    tiny_whisper, tiny_llm, monkeypatch
):
    monkeypatch.setattr(parts, "load_llm", lambda *given, **more: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r"is called 'qq_proj'; there are: down_proj, .*, v_proj$"):
        make_model(tiny_whisper, tiny_llm, lora=LoraConfig(r=2, target_modules=["q_proj", "qq_proj"]))


def test_named_layers_alone_have_matrices(tiny_whisper, tiny_llm):
    model = make_model(tiny_whisper, tiny_llm, lora=LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    layers = {name.split(".")[-3] for name in lora_state(model.llm)}
    assert layers == {"q_proj", "down_proj"}
    assert {value.dtype for value in lora_state(model.llm).values()} == {torch.float32}


@pytest.mark.parametrize("wrong", [{"r": 0}, {"r": 2, "alpha": 0.0}, {"r": 2, "target_modules": []}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=r"model\.llm\.lora"):
        LLMConfig("x", lora=LoraConfig(**wrong))
    assert LLMConfig("x", lora=LoraConfig()).lora is None
