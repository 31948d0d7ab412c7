"""The call forms of the published model class, on ours."""

import sys
from types import ModuleType

import pytest
import soundfile
import torch
from hub_cache import put, write_config
from huggingface_hub import constants
from tiny import noise

from diva import DivaForConditionalGeneration
from diva.models.load import load_model

CLIP, OTHER = noise(1.3, 3), noise(0.8, 4)


@pytest.fixture(scope="module")
def model(export):
    model = load_model(str(export))
    model.generation_config.eos_token_id = None  # it never ends an answer by itself
    return model


def test_every_form_of_a_published_call_gives_the_same_text(model):
    expected = model.generate([CLIP], ["stop"], max_new_tokens=6)
    assert len(expected) == 1
    assert model.generate(audio=[CLIP], text_prompt=["stop"], max_new_tokens=6) == expected
    assert model.generate(CLIP, ["stop"], max_new_tokens=6) == expected
    assert model.generate(audio=CLIP, text_prompt="stop", max_new_tokens=6) == expected
    assert model.generate(torch.from_numpy(CLIP), "stop", max_new_tokens=6) == expected
    assert model.generate([CLIP], ["stop"], False, None, 6) == expected


def test_a_logits_processor_may_stand_alone(model):
    only = torch.zeros(1)

    def end(ids, logits):
        only.add_(1)
        return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([5]), 0.0)

    text = model.generate([CLIP], ["stop"], False, end, 3)
    assert text == [model.processor.tokenizer.decode([5] * 3)]
    assert int(only) == 3


def test_token_ids_are_still_token_ids(model):
    batch = model.processor.spoken_turns([CLIP], ["stop"])
    ids = model.generate(**batch, do_sample=False, max_new_tokens=6)[:, batch["input_ids"].shape[1] :]
    assert ids.shape == (1, 6)
    assert model.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=2).shape == (1, 5)


def test_a_stream_has_the_defaults_of_generate(model, monkeypatch):
    model.generation_config.do_sample = True
    try:
        streamed = "".join(model.generate_stream(CLIP, "stop"))
        assert streamed == model.generate([CLIP], ["stop"])[0]
    finally:
        model.generation_config.do_sample = False
    asked = []
    monkeypatch.setattr(model, "stream", lambda batch, **kwargs: asked.append(kwargs) or iter(()))
    list(model.generate_stream(CLIP))
    list(model.generate_stream(CLIP, max_new_tokens=3))
    assert asked == [{"do_sample": False, "max_new_tokens": length} for length in (128, 3)]


def test_a_stream_with_outputs_gives_the_answer_so_far_and_what_it_rests_on(model):
    steps = list(model.generate_stream(CLIP, "stop", False, None, 6, True))
    (expected,) = model.generate([CLIP], ["stop"], max_new_tokens=6)
    assert len(steps) == 6
    assert steps[-1][0] == expected
    prompt = model.processor.spoken_turns([CLIP], ["stop"])["input_ids"].shape[1]
    assert steps[-1][1].past_key_values.get_seq_length() == prompt + 5  # the last token has not been read
    assert steps[-1][1].sequences.shape == (1, prompt + 6)


def test_a_stream_ends_with_the_answer(model):
    (_, first), *_ = model.generate_stream(CLIP, "stop", max_new_tokens=1, return_outputs=True)
    model.generation_config.eos_token_id = [7, int(first.sequences[0, -1])]
    try:
        assert len(list(model.generate_stream(CLIP, "stop", max_new_tokens=6, return_outputs=True))) == 1
    finally:
        model.generation_config.eos_token_id = None


def test_a_stream_goes_on_from_earlier_outputs(model):
    """The second turn's states are those of one forward pass over both turns."""
    *_, (_, before), _ = model.generate_stream(CLIP, "stop", max_new_tokens=5, return_outputs=True)
    known = before.sequences[:, :-1]
    turn = model.processor.spoken_turns([OTHER], ["stop"])
    first = model.processor.spoken_turns([CLIP], ["stop"])
    said = known[:, first["input_ids"].shape[1] :]
    ids = torch.cat([first["input_ids"], said, turn["input_ids"]], dim=1)
    waveforms = [(batch["audio"][0], batch["audio_samples"]) for batch in (first, turn)]
    width = max(len(waveform) for waveform, _ in waveforms)
    audio = torch.stack([torch.nn.functional.pad(w, (0, width - len(w))) for w, _ in waveforms])
    samples = torch.cat([samples for _, samples in waveforms])
    expected = model(input_ids=ids, audio=audio, audio_samples=samples).logits[0, -1].argmax()
    stream = model.generate_stream(OTHER, "stop", max_new_tokens=1, return_outputs=True, init_outputs=before)
    ((_, outputs),) = stream
    assert outputs.sequences.shape[1] == ids.shape[1] + 1
    assert int(outputs.sequences[0, -1]) == int(expected)


def test_the_speech_encoder_has_a_device_of_its_own(export):
    model = DivaForConditionalGeneration.from_pretrained(
        export, dtype="float32", speech_encoder_device="meta"
    )
    devices = {
        name: {p.device.type for p in getattr(model, name).parameters()} for name in ("encoder", "adapter")
    }
    assert devices == {"encoder": {"meta"}, "adapter": {"meta"}}
    assert model.llm.device.type == model.prefix_ids.device.type == "cpu"


# From the model card of WillHeld/DiVA-llama-3-v0-8b, "Inference Example", word for word.
CARD = """
from transformers import AutoModel
import librosa
import wget
from modeling_diva import DiVAModel

filename = wget.download(
    "https://github.com/ffaisal93/SD-QA/raw/refs/heads/master/dev/eng/irl/wav_eng/-1008642825401516622.wav"
)

speech_data, _ = librosa.load(filename, sr=16_000)

model = AutoModel.from_pretrained("WillHeld/DiVA-llama-3-v0-8b", trust_remote_code=True)

print(model.generate([speech_data]))
print(model.generate([speech_data], ["Reply Briefly Like A Pirate"]))

filename = wget.download(
    "https://github.com/ffaisal93/SD-QA/raw/refs/heads/master/dev/eng/irl/wav_eng/-2426554427049983479.wav"
)

speech_data2, _ = librosa.load(filename, sr=16_000)

print(
    model.generate(
        [speech_data, speech_data2],
        ["Reply Briefly Like A Pirate", "Reply Briefly Like A New Yorker"],
    )
)
"""


def test_the_model_cards_example_runs_word_for_word(export, tmp_path, monkeypatch, capsys):
    released = DivaForConditionalGeneration.from_pretrained(export, dtype="float32")
    released.save_pretrained(tmp_path / "released", layout="released")
    parts = {"reference_encoder": released.config.encoder.name, "reference_decoder": released.config.llm.name}
    write_config(tmp_path / "released", **parts)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    put(tmp_path, "WillHeld/DiVA-llama-3-v0-8b", tmp_path / "released")
    for name, clip in (("-1008642825401516622.wav", CLIP), ("-2426554427049983479.wav", OTHER)):
        soundfile.write(tmp_path / name, clip, 16_000, subtype="FLOAT")
    stand_in(monkeypatch, "wget", download=lambda url: str(tmp_path / url.rpartition("/")[2]))
    stand_in(monkeypatch, "librosa", load=lambda file, sr: soundfile.read(file, dtype="float32"))
    stand_in(monkeypatch, "modeling_diva", DiVAModel=DivaForConditionalGeneration)
    exec(CARD, {})
    prompts = ["Reply Briefly Like A Pirate", "Reply Briefly Like A New Yorker"]
    model = load_model(str(tmp_path / "released"))
    expected = [model.generate([CLIP]), model.generate([CLIP], prompts[:1])]
    expected.append([model.generate([clip], [p])[0] for clip, p in zip([CLIP, OTHER], prompts, strict=True)])
    assert capsys.readouterr().out == "".join(f"{answers}\n" for answers in expected)


def stand_in(monkeypatch, name: str, **members) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
