"""Answers of a server with OpenAI's completions endpoint, here a stand-in that runs the tiny LLM."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from diva.errors import UserError
from diva.training.answer_table import AnswerTable
from diva.training.answers import AnswerSettings
from diva.training.transcripts import Transcripts

TRANSCRIPTS = Transcripts([(7,), (40, 41), (90, 8, 12)], {"a": 0, "b": 1, "c": 2})


@pytest.fixture
def server(tiny_model):
    """The address of a server that answers with token ids, and what it was asked. `gives` changes what it gives."""
    end = tiny_model.generation_config.eos_token_id

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            service.asked.append(asked)
            prompt = torch.tensor([asked["prompt"]])
            ids = tiny_model.llm.generate(prompt, max_new_tokens=asked["max_tokens"], do_sample=False)[
                0, prompt.shape[1] :
            ]
            text = tiny_model.processor.tokenizer.decode(ids, skip_special_tokens=True)
            choice = {"text": text, "finish_reason": "stop" if int(ids[-1]) == end else "length"}
            if service.gives == "token ids":
                choice["token_ids"] = ids.tolist()
            if service.gives == "unknown text":
                choice["text"] = "\ufffd" + text
            body = json.dumps(
                {"choices": [choice]} if service.gives != "refusal" else {"error": "no such model"}
            )
            self.send_response(404 if service.gives == "refusal" else 200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *given):
            """Nothing."""

    service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.asked, service.gives = [], "token ids"
    threading.Thread(target=service.serve_forever, daemon=True).start()
    yield service
    service.shutdown()


def settings(server, **changes) -> AnswerSettings:
    return AnswerSettings(
        endpoint=f"http://127.0.0.1:{server.server_port}/v1/", model="tiny", concurrency=2, **changes
    )


def build_table(model, monkeypatch, cache: Path, given: AnswerSettings) -> AnswerTable:
    monkeypatch.setenv("DIVA_CACHE", str(cache))
    return AnswerTable.build(model, TRANSCRIPTS, 6, given)


def test_a_server_gives_the_answers_of_the_llm(tiny_model, server, tmp_path, monkeypatch):
    own = build_table(tiny_model, monkeypatch, tmp_path / "own", AnswerSettings())
    table = build_table(tiny_model, monkeypatch, tmp_path / "served", settings(server))
    assert table.answers == own.answers
    prefix, suffix = tiny_model.prefix_ids.tolist(), tiny_model.suffix_ids.tolist()
    prompts = [asked["prompt"] for asked in server.asked]
    assert sorted(prompts) == sorted([*prefix, *ids, *suffix] for ids in TRANSCRIPTS.distinct)
    assert {(asked["model"], asked["max_tokens"], asked["temperature"]) for asked in server.asked} == {
        ("tiny", 6, 0)
    }
    build_table(tiny_model, monkeypatch, tmp_path / "served", settings(server))
    assert len(server.asked) == 3  # cached


def test_samples_are_drawn_with_seeds_of_their_own(tiny_model, server, tmp_path, monkeypatch):
    build_table(tiny_model, monkeypatch, tmp_path, settings(server, temperature=1.0, samples=2, seed=5))
    assert sorted(asked["seed"] for asked in server.asked) == [5, 6, 7, 8, 9, 10]


def test_answers_that_their_text_does_not_give_exactly_are_counted(
    tiny_model, server, tmp_path, monkeypatch, capsys
):
    server.gives = "unknown text"
    build_table(tiny_model, monkeypatch, tmp_path, settings(server))
    said = " ".join(capsys.readouterr().err.split())
    assert "http://127.0.0.1" in said
    assert "returns no token ids: 3 of 3 answers are not exactly the tokens that were said" in said


def test_a_server_that_refuses_or_is_not_there_is_one_line(tiny_model, server, tmp_path, monkeypatch):
    server.gives = "refusal"
    with pytest.raises(UserError, match=r"refuses with 404: .*no such model"):
        build_table(tiny_model, monkeypatch, tmp_path, settings(server))
    nobody = AnswerSettings(endpoint="http://127.0.0.1:9/v1", model="tiny")
    with pytest.raises(UserError, match="does not answer"):
        build_table(tiny_model, monkeypatch, tmp_path, nobody)


def test_an_endpoint_needs_a_name_of_the_llm_there():
    with pytest.raises(UserError, match="go together"):
        AnswerSettings(endpoint="http://127.0.0.1:9/v1")
