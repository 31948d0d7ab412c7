"""Systems on tiny models: what is asked reaches them, labels bind them, batches change nothing."""

import copy
import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from diva.errors import UserError
from diva.evaluation.labels import NoLabel, OnlyTokens, label_tokens, which_label
from diva.evaluation.samples import Instruction, Sample
from diva.evaluation.systems.local import Cascade, Diva, Teacher, TextLLM, beside, teacher
from diva.evaluation.systems.others import OpenAIEndpoint, TransformersAudio

PLAIN = Instruction()
TOLD = Instruction("Translate.", None)
ASKED = Instruction(None, "Is it a joke?")
TEXTS = ["what is the capital of france", "stop", "how many legs has a spider", "good morning"]


def noise(seconds: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32)


SAMPLES = [
    Sample(str(i), i, ("x",), text, waveform=noise(0.5 + i, i)) for i, text in enumerate(TEXTS)
]  # fmt: skip


@pytest.fixture(scope="module")
def diva(export):
    return Diva(str(export))


def test_diva_answers_as_generate_does(diva):
    clips = [sample.waveform for sample in SAMPLES]
    expected = diva.model.generate(clips, ["Translate."] * 4, max_new_tokens=8)
    assert diva.answer(SAMPLES, TOLD, 8) == [text.strip() for text in expected]
    assert len(diva.identity["weights"]) == 12


@pytest.mark.parametrize("instruction", [PLAIN, TOLD, ASKED])
def test_a_batch_answers_as_each_alone(diva, instruction):
    for system in (diva, Teacher(diva.reader), Cascade(diva.reader)):
        alone = [system.answer([sample], instruction, 8)[0] for sample in SAMPLES]
        assert system.answer(SAMPLES, instruction, 8) == alone


def test_instructions_reach_the_model(diva):
    answers = {tuple(diva.answer(SAMPLES, instruction, 8)) for instruction in (PLAIN, TOLD, ASKED)}
    assert len(answers) == 3


def test_in_the_authors_layout_the_question_stands_before_the_speech(diva):
    asked = replace(ASKED, layout="authors")
    before = Instruction("\n".join(filter(None, (ASKED.system, ASKED.question))))
    for system in (diva, Teacher(diva.reader)):
        said = system.answer(SAMPLES, asked, 8)
        assert said == system.answer(SAMPLES, before, 8)
        assert said != system.answer(SAMPLES, ASKED, 8)


def test_template_variables_reach_what_reads(diva):
    reader = diva.reader
    assert "template_kwargs" not in reader.identity
    reader.tokenizer = copy.deepcopy(reader.tokenizer)
    reader.tokenizer.chat_template += "{% if loud %}LOUD{% endif %}"
    loud = TextLLM(reader.llm, reader.tokenizer, reader.name, template_kwargs={"loud": True})
    assert loud.identity["template_kwargs"] == '{"loud": true}'
    after = reader.tokenizer.decode(loud._around(PLAIN)[1])
    assert after.endswith("LOUD")
    assert not reader.tokenizer.decode(reader._around(PLAIN)[1]).endswith("LOUD")
    with pytest.raises(UserError, match=r"system\.template_kwargs is for system\.llm=NAME"):
        TextLLM.load("run", None, template_kwargs={"loud": True})


def test_the_teacher_reads_the_transcript_in_the_chat_template(diva, tiny_llm):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    llm = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32)
    messages = [{"role": "user", "content": TEXTS[1]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected = tokenizer.decode(
        llm.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :], skip_special_tokens=True
    )
    assert Teacher(diva.reader).answer(SAMPLES[1:2], PLAIN, 8) == [expected.strip()]


def test_a_teacher_by_itself_is_the_one_beside_the_diva(diva, export, tiny_llm):
    expected = Teacher(diva.reader).answer(SAMPLES, TOLD, 8)
    assert teacher(model=str(export)).answer(SAMPLES, TOLD, 8) == expected
    assert teacher(llm=str(tiny_llm)).answer(SAMPLES, TOLD, 8) == expected
    for wrong in ({}, {"model": str(export), "llm": str(tiny_llm)}):
        with pytest.raises(UserError, match=r"system\.model=RUN"):
            TextLLM.load(**{"model": None, "llm": None} | wrong)


def test_another_prompt_is_another_ceiling_and_another_cascade(diva, tiny_llm):
    """Answers are kept in a folder named after the identity: those under another prompt must not be found there."""
    plain, told = (
        TextLLM(diva.model.llm, diva.model.processor.tokenizer, "x", p) for p in (None, "Be brief.")
    )
    released = TextLLM(diva.model.llm, diva.model.processor.tokenizer, "x", None, "released")
    for rival in (Teacher, lambda reader: Cascade(reader, diva.reader.whisper)):
        assert len({str(rival(reader).identity) for reader in (plain, told, released)}) == 3
    assert diva.identity.items() >= diva.reader.identity.items()


def test_no_ceiling_without_transcripts(diva):
    with pytest.raises(UserError, match="reads transcripts, and this task has none"):
        Teacher(diva.reader).answer([Sample("a", 0, ("x",), None)], PLAIN, 8)


def test_the_cascade_reads_what_whisper_writes(diva, tiny_llm):
    cascade = beside(diva, "cascade", None)
    heard = cascade.transcribe(SAMPLES)
    as_read = [Sample(s.id, s.row, s.references, text) for s, text in zip(SAMPLES, heard, strict=True)]
    assert cascade.answer(SAMPLES, PLAIN, 8) == Teacher(diva.reader).answer(as_read, PLAIN, 8)
    with pytest.raises(
        UserError, match=r"whisper=openai/whisper-large-v3 for one beside .* system\.whisper="
    ):
        Cascade(TextLLM.load(None, str(tiny_llm)))


def test_the_cascade_transcribes_all_of_a_long_clip(diva):
    class Speller:
        """Writes a word for each window."""

        device = "cpu"

        def generate(self, input_features, **kwargs):
            return torch.tensor([[i] for i in range(len(input_features))])

    cascade = beside(diva, "cascade", None)
    cascade.whisper = Speller()
    cascade.tokenizer = type("T", (), {"batch_decode": lambda self, ids, **k: [f" w{int(i)}" for i in ids]})()
    long = Sample("long", 0, (), None, waveform=noise(65.0, 1))
    assert cascade.transcribe([SAMPLES[0], long, SAMPLES[1]]) == ["w0", "w1 w2 w3", "w4"]


# ---- labels


@pytest.mark.parametrize("labels", [["Yes", "No"], ["Anger", "Joy", "Sadness"]])
def test_labels_bind_every_system_to_the_likeliest_first_token(diva, labels):
    for system in (diva, Teacher(diva.reader)):
        said = system.answer(SAMPLES, ASKED, 64, labels)
        assert set(said) <= set(labels)
    tokens = label_tokens(diva.model.processor.tokenizer, labels)
    inputs = diva.model.processor.spoken_turns([SAMPLES[0].waveform], [None])
    with torch.no_grad():
        logits = diva.model(**inputs).logits[0, -1]
    likeliest = max(tokens, key=lambda token: float(logits[token]))
    assert diva.answer(SAMPLES[:1], PLAIN, 64, labels) == [tokens[likeliest]]


def test_only_the_labels_tokens_are_left_each_with_its_own_score():
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4], [4.0, 3.0, 2.0, 1.0]])
    left = OnlyTokens([1, 2])(torch.zeros(2, 1, dtype=torch.long), scores)
    infinity = float("inf")
    expected = torch.tensor([[-infinity, 0.2, 0.3, -infinity], [-infinity, 3.0, 2.0, -infinity]])
    assert torch.equal(left, expected)


def test_labels_that_begin_alike_are_an_error(diva):
    with pytest.raises(UserError, match="'Sad' and 'Surprise' both begin with the token 'S'"):
        diva.answer(SAMPLES, ASKED, 64, ["Sad", "Surprise"])


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("Yes", "Yes"), ("yes", "Yes"), ("No, it is not.", "No"), ("N", "No"), (" Yes\n", "Yes"),
        ("Nothing", None), ("Maybe", None), ("", None),
    ],
)  # fmt: skip
def test_which_label_takes_the_one_that_is_said(said, label):
    assert which_label(said, ["Yes", "No"]) == label


def test_a_beginning_that_two_labels_share_is_none():
    assert which_label("S", ["Sadness", "Surprise"]) is None
    assert which_label("Sur", ["Sadness", "Surprise"]) == "Surprise"


# ---- other people's systems


def test_any_audio_llm_of_transformers(diva, export):
    """Our own export is one, with the code that it brings along."""
    other = TransformersAudio(str(export), trust_remote_code=True)
    for instruction in (TOLD, ASKED):
        assert other.answer(SAMPLES, instruction, 8) == diva.answer(SAMPLES, instruction, 8)
        expected = Teacher(diva.reader).answer(SAMPLES, instruction, 8)
        assert beside(other, "teacher", None).answer(SAMPLES, instruction, 8) == expected
    assert other.answer(SAMPLES, ASKED, 8, ["Yes", "No"]) == diva.answer(SAMPLES, ASKED, 8, ["Yes", "No"])


def test_a_text_model_is_no_audio_llm(tiny_llm):
    with pytest.raises(UserError, match="no audio LLM"):
        TransformersAudio(str(tiny_llm)).answer(SAMPLES, PLAIN, 8)


@pytest.fixture
def server():
    """A server of OpenAI's protocol that records its requests."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": " Yes, it is. "}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1", asked
    http.shutdown()


def test_openai_endpoint_sends_the_clip_and_returns_the_answer(server):
    url, asked = server
    system = OpenAIEndpoint("m", url, "DIVA_TEST_NO_SUCH_KEY", 10.0)
    told = Instruction("Be brief.", "Is it a joke?")
    assert system.answer(SAMPLES[:1], told, 7) == ["Yes, it is."]
    assert system.answer(SAMPLES[:1], told, 7, ["Yes", "No"]) == ["Yes"]
    with pytest.raises(NoLabel, match="no label"):
        system.answer(SAMPLES[:1], told, 7, ["Joy", "Anger"])
    first = asked[0]
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("m", 7, 0.0)
    system_message, user = first["messages"]
    assert system_message == {"role": "system", "content": "Be brief."}
    audio, question = user["content"]
    assert audio["input_audio"]["format"] == "wav"
    assert question == {"type": "text", "text": "\nIs it a joke?"}
    assert beside(system, "teacher", None).answer(SAMPLES[:1], PLAIN, 7) == ["Yes, it is."]
    assert asked[-1]["messages"][0]["content"] == [{"type": "text", "text": TEXTS[0]}]


def test_openai_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        OpenAIEndpoint("m", "https://api.openai.com/v1", "OPENAI_API_KEY", 10.0)
