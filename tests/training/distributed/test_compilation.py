"""hardware.compile: the same numbers, from programs whose number depends on neither layers nor shapes.

Traced here, and not compiled: that takes minutes. tests/gpu compiles.
"""

import copy

import pytest
import torch
from encoders import make_encoder_of
from steps import assert_same, batch_of, learn
from tiny import as_if_trained, make_model, noise
from torch._dynamo.utils import counters

from diva.errors import UserError
from diva.models.configuration import LoraConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.plan import compose
from diva.training.answers import Continuation
from diva.training.distributed.activation_checkpointing import checkpoint_activations
from diva.training.distributed.checks import check_hardware, check_settings
from diva.training.distributed.compilation import compile_layers


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def answers(model: DivaForConditionalGeneration, rows: int) -> Continuation:
    """Three tokens after the suffix in each row."""
    suffix, answer = len(model.suffix_ids), 3
    ids = torch.cat([model.suffix_ids.expand(rows, -1), torch.full((rows, answer), 7)], dim=1)
    at = (suffix - 1 + torch.arange(answer + 1)).expand(rows, -1)
    return Continuation(ids, at, torch.full((rows,), answer), torch.zeros(rows, dtype=torch.bool), [])


@pytest.mark.parametrize(("rate", "answering"), [(None, False), (3.0, True)])
def test_losses_and_gradients_are_those_of_uncompiled_layers(tiny_whisper, tiny_llm, rate, answering):
    plain, speech = make_model(tiny_whisper, tiny_llm, tokens_per_second=rate), batch_of(0.7, 1.5, 2.1)
    compiled = copy.deepcopy(plain)
    compile_layers(compiled, backend="eager")
    after = answers(plain, 3) if answering else None
    assert_same(learn(compiled, speech, after), learn(plain, speech, after))
    assert counters["stats"]["unique_graphs"] > 0


def test_activations_may_be_recomputed_in_compiled_layers(tiny_model):
    plain, speech = tiny_model.train(), batch_of(0.7, 1.5)
    compiled = copy.deepcopy(plain)
    compile_layers(compiled, backend="eager")
    checkpoint_activations(compiled)
    assert_same(learn(compiled, speech), learn(plain, speech))


def test_lora_is_on_for_the_student_and_off_for_the_teacher_in_compiled_layers(tiny_whisper, tiny_llm):
    plain, speech = (
        as_if_trained(make_model(tiny_whisper, tiny_llm, lora=LoraConfig(r=2))),
        batch_of(0.7, 1.5),
    )
    compiled = copy.deepcopy(plain)
    compile_layers(compiled, backend="eager")
    for _ in range(2):
        assert_same(learn(compiled, speech), learn(plain, speech))


@pytest.mark.parametrize("encoder", ["hubert_base", "wavlm_large", "wav2vec2_bert", "qwen2_audio", "voxtral"])
def test_other_encoders_than_whisper_give_the_same_numbers_compiled(encoder, tiny_llm, tmp_path):
    plain = make_model(make_encoder_of(encoder, tmp_path), tiny_llm, init="random")
    compiled = copy.deepcopy(plain)
    compile_layers(compiled, backend="eager")
    for speech in (batch_of(0.7, 1.5), batch_of(1.1, 2.2, 2.6)):
        assert_same(learn(compiled, speech), learn(plain, speech))


def test_layers_and_shapes_share_their_programs(tiny_model):
    model = tiny_model.train()
    layers = sum(
        len(part) for part in (model.encoder.body.layers, model.adapter.layers, model.llm.base_model.layers)
    )
    assert layers >= 6, "or nothing is shared"
    compile_layers(model, backend="eager")
    learn(model, batch_of(0.7, 1.5))
    first = counters["stats"]["unique_graphs"]
    # Encoder; adapter, whose first layer reads expanded queries; LLM with and without a gradient.
    assert first <= 5
    learn(model, batch_of(1.1, 2.2, 2.6))
    second = counters["stats"]["unique_graphs"]
    for longest in (3.0, 3.4, 5.1, 6.3):
        learn(model, batch_of(1.0, longest))
        learn(model, batch_of(1.0, 1.3, longest))
    assert counters["stats"]["unique_graphs"] <= second + 2


def test_answers_are_generated_by_the_uncompiled_layers(tiny_model):
    plain = tiny_model
    compiled = copy.deepcopy(plain)
    compile_layers(compiled, backend="eager")

    def answer(model: DivaForConditionalGeneration) -> list[list[int]]:
        inputs = model.processor.spoken_turns([noise(1.0, 1), noise(1.4, 2)], [None, None])
        return model.generate(**inputs, do_sample=False, max_new_tokens=8, min_new_tokens=8).tolist()

    assert answer(compiled) == answer(plain)
    # Of encoder and adapter; none for the lengths of the answer.
    assert counters["stats"]["unique_graphs"] <= 3


def test_no_c_compiler_is_one_line(tiny_overrides, monkeypatch, tmp_path):
    config = compose([*tiny_overrides, "hardware.compile=true"])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(
        UserError, match=r"hardware\.compile=true needs a C compiler.*hardware\.compile=false"
    ):
        check_hardware(config)


def test_xla_compiles_by_itself(tiny_overrides):
    config = compose([*tiny_overrides, "hardware=tpu_v4_256", "hardware.compile=true"])
    with pytest.raises(UserError, match=r"XLA compiles by itself: set hardware\.compile=false"):
        check_settings(config)
