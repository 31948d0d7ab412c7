"""Audio LLMs of transformers: what is asked reaches them as their own processors would have it."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audio_llms import make_qwen2_audio, make_voxtral
from tiny import noise
from transformers import VoxtralForConditionalGeneration, VoxtralProcessor
from transformers.utils import is_mistral_common_available

from diva.errors import UserError
from diva.evaluation.samples import Instruction, Sample
from diva.evaluation.systems import others as other_systems
from diva.evaluation.systems.local import Teacher
from diva.evaluation.systems.others import TransformersAudio

TOLD = Instruction("Be brief.", "Is it a joke?")
SAMPLES = [
    Sample(str(i), i, ("x",), text, waveform=noise(seconds, i))
    for i, (text, seconds) in enumerate((("stop", 0.5), ("good morning", 2.0)))
]
needs_mistral_common = pytest.mark.skipif(
    not is_mistral_common_available(), reason="pip install 'mistral-common[audio]', with numpy below 2.4"
)


@pytest.fixture(scope="module")
def qwen2_audio(tmp_path_factory) -> Path:
    return make_qwen2_audio(tmp_path_factory.mktemp("models") / "qwen2_audio")


@pytest.fixture(scope="module")
def voxtral(tmp_path_factory) -> Path:
    return make_voxtral(tmp_path_factory.mktemp("models") / "voxtral")


def said(system: TransformersAudio, inputs) -> str:
    ids = system.model.generate(**inputs, do_sample=False, max_new_tokens=8)[
        0, inputs["input_ids"].shape[1] :
    ]
    return system.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_qwen2_audio_is_asked_as_its_processor_has_it(qwen2_audio):
    system = TransformersAudio(str(qwen2_audio))
    clip = SAMPLES[1].waveform
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n\nIs it a joke?<|im_end|>\n<|im_start|>assistant\n"
    )
    by_hand = system.processor(text=text, audio=[clip], sampling_rate=16_000, return_tensors="pt")
    assert (by_hand["input_ids"] == system.model.config.audio_token_id).sum() == 50  # 2 s of 25 a second
    assert system.answer(SAMPLES[1:], TOLD, 8) == [said(system, by_hand)]
    answers = {system.answer([s], i, 8)[0] for s in SAMPLES for i in (TOLD, Instruction())}
    assert len(answers) == 4
    assert set(system.answer(SAMPLES, TOLD, 64, ["Yes", "No"])) <= {"Yes", "No"}
    assert Teacher(system).answer(SAMPLES, TOLD, 8) != system.answer(SAMPLES, TOLD, 8)


@needs_mistral_common
def test_voxtral_is_asked_as_its_processor_has_it(voxtral, tmp_path):
    """The clip from a file, as the makers' example gives it; what it is told is the first paragraph of the turn."""
    system = TransformersAudio(str(voxtral))
    assert isinstance(system.model, VoxtralForConditionalGeneration)

    def by_hand(sample: Sample, instruction: Instruction):
        soundfile.write(tmp_path / "clip.wav", sample.waveform, 16_000)
        parts = [
            {"type": "text", "text": "Be brief.\n\n"},
            {"type": "audio", "path": str(tmp_path / "clip.wav")},
            {"type": "text", "text": "\nIs it a joke?"},
        ]
        parts = parts if instruction is TOLD else parts[1:2]
        return system.processor.apply_chat_template([{"role": "user", "content": parts}])

    given = by_hand(SAMPLES[0], TOLD)
    assert (given["input_ids"] == system.model.config.audio_token_id).sum() == 375  # 30 s of 12.5 a second
    assert given["input_features"].shape == (1, 128, 3000)
    for sample in SAMPLES:
        for instruction in (TOLD, Instruction()):
            expected = said(system, by_hand(sample, instruction))
            assert system.answer([sample], instruction, 8) == [expected]
    assert system.answer(SAMPLES, TOLD, 8) != system.answer(SAMPLES, Instruction(), 8)
    assert set(system.answer(SAMPLES, TOLD, 64, ["Yes", "No"])) <= {"Yes", "No"}
    assert Teacher(system).answer(SAMPLES, TOLD, 8) != system.answer(SAMPLES, TOLD, 8)


def test_voxtrals_template_is_given_what_it_takes(voxtral, monkeypatch):
    """Bytes of a file, and no system message; without mistral-common as well, which its own test above needs."""
    monkeypatch.setattr(other_systems, "is_mistral_common_available", lambda: True)
    asked = []
    system = TransformersAudio(str(voxtral))

    class Template(VoxtralProcessor):
        def __init__(self):
            pass

        def apply_chat_template(self, messages, **kwargs):
            asked.extend(messages)
            return type("Inputs", (dict,), {"to": lambda self, device: self})(input_ids=torch.tensor([[3]]))

    system.processor = Template()
    system.tokenizer = type("T", (), {"batch_decode": lambda self, ids, **kwargs: [" yes "]})()
    assert system.answer(SAMPLES[:1], TOLD, 1) == ["yes"]
    (turn,) = asked
    told, clip, question = turn["content"]
    assert (told["text"], question["text"]) == ("Be brief.\n\n", "\nIs it a joke?")
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(clip["base64"])))
    assert rate == 16_000
    np.testing.assert_allclose(heard, SAMPLES[0].waveform, atol=1e-4)
    assert clip["type"] == "audio"


def test_voxtral_without_its_tokenizer_says_what_it_needs(voxtral, monkeypatch):
    monkeypatch.setattr(other_systems, "is_mistral_common_available", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'diva\[voxtral\]'"):
        TransformersAudio(str(voxtral))


def test_a_model_of_another_rate_is_refused(tmp_path):
    folder = make_qwen2_audio(tmp_path / "fast")
    file = folder / "processor_config.json"
    file.write_text(file.read_text().replace('"sampling_rate": 16000', '"sampling_rate": 24000'))
    with pytest.raises(UserError, match="listens at 24000 Hz"):
        TransformersAudio(str(folder))
