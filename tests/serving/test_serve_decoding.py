"""Rows that come and go in a running batch: each answer is the one that `generate` gives alone."""

import numpy as np
import pytest
import torch
from requests_to_diva import WORDS, single, user
from tiny import noise

from diva.serving.batching import Batcher, BatchLimits
from diva.serving.decoding import RunningBatch
from diva.serving.protocol import Answer, Completion, Piece
from diva.serving.rows import Job, Row


def make_row(model, chat: list[dict], max_tokens: int, **changes) -> tuple[Row, list]:
    """A row, and what it delivers."""
    delivered: list = []
    length = model.processor.apply_chat_template([chat])["input_ids"].shape[1]
    job = Job(chat, length, 0, 0, max_tokens, (), None, False, delivered.append, **changes)
    return Row(job, model.processor.tokenizer, {model.generation_config.eos_token_id}), delivered


def test_rows_that_join_and_leave_are_answered_as_alone(model):
    rng = np.random.default_rng(1)
    running, asked = RunningBatch(model), []
    for step in range(60):
        newcomers = []
        for number in range(int(rng.integers(0, 3)) if step < 40 else 0):
            said = " ".join(rng.choice(WORDS, rng.integers(1, 25)))
            clip = {"type": "audio", "audio": noise(float(rng.uniform(0.3, 2)), step)}
            chat = user(clip, said) if number else user(said)
            limit = int(rng.integers(1, 20))
            row, delivered = make_row(model, chat, limit)
            newcomers.append(row)
            asked.append((row.job, limit, delivered))
        if newcomers:
            running.admit(newcomers)
        if step == 20:
            running.rows[0].job.cancelled = True
        running.step()
        longest = max((row.job.prompt_tokens + row.job.max_tokens for row in running.rows), default=0)
        assert running._mask.shape[0] == len(running.rows)
        assert not running.rows or running._mask.shape[1] <= longest
    assert running.rows == []
    assert len(asked) > 30
    for job, limit, delivered in asked:
        if job.cancelled:
            assert delivered == []
            continue
        text, prompt, new = single(model, job.chat, limit)
        (end,) = delivered
        assert (end.text, end.prompt_tokens, end.completion_tokens) == (text, prompt, new)


def test_the_distance_of_an_answer_is_that_of_its_last_clip(model):
    clips = [noise(seconds, number) for number, seconds in enumerate((0.5, 0.8, 1.1))]
    parts = [{"type": "audio", "audio": clip} for clip in clips]
    chats = [user(*parts[:2]), user("no clip"), user(parts[2]), user(*parts[:2])]
    windows = [(2, 1), (0, 0), (1, 1), (2, 2)]  # as if both clips were windows of one
    rows, delivered = [], []
    for chat, (number, last) in zip(chats, windows, strict=True):
        row, answers = make_row(model, chat, 1)
        row.job.windows, row.job.last_windows = number, last
        rows.append(row)
        delivered.append(answers)
    RunningBatch(model).admit(rows)
    alone = [pytest.approx(model.hearing_distance(clip), rel=1e-4) for clip in clips]
    found = [answers[-1].hearing for answers in delivered]
    assert found[:3] == [alone[1], None, alone[2]]
    assert found[3] == pytest.approx(max(model.hearing_distance(clip) for clip in clips[:2]), rel=1e-4)


def test_the_distance_comes_with_the_end_of_an_answer_and_its_threshold():
    answer, heard = Answer("diva", hearing_threshold=0.5), {"distance": 0.75, "threshold": 0.5}
    end = Completion("text", "stop", 3, 1, hearing=0.75)
    assert answer.whole([end, end])["hearing"] == heard
    assert answer.chunk(0, end)["hearing"] == heard
    for other in (answer.chunk(0, Piece("te")), answer.whole([Completion("text", "stop", 3, 1)])):
        assert "hearing" not in other


def test_columns_that_no_row_uses_are_cut_off(model):
    long, _ = make_row(model, user("what is " * 200), 2)
    short, _ = make_row(model, user("stop"), 30)
    running = RunningBatch(model)
    running.admit([long, short])
    assert running._mask.shape[1] == long.job.prompt_tokens
    running.step()
    assert running.rows == [short]
    assert running._mask.shape[1] == short.job.prompt_tokens + 1
    assert bool(running._mask.all())


def test_a_chat_that_fails_leaves_those_that_run_alone(model, monkeypatch):
    first, delivered = make_row(model, user("play some music"), 8)
    running = RunningBatch(model)
    running.admit([first])
    second, _ = make_row(model, user("stop"), 8)
    with monkeypatch.context() as patch:
        patch.setattr(model, "input_embeddings", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            running.admit([second])
    while running.rows:
        running.step()
    assert delivered[0].text == single(model, first.job.chat, 8)[0]


def test_a_repetition_penalty_is_that_of_generate(model):
    chat = user({"type": "audio", "audio": noise(1.0, 7)}, "tell me a joke")
    inputs = model.processor.apply_chat_template([chat])
    length = inputs["input_ids"].shape[1]
    said = set()
    for penalty in (1.0, 1.8, 5.0):
        ids = model.generate(**inputs, max_new_tokens=25, do_sample=False, repetition_penalty=penalty)
        text = model.processor.batch_decode(ids[:, length:], skip_special_tokens=True)[0]
        row, delivered = make_row(model, chat, 25, repetition_penalty=penalty)
        other, _ = make_row(model, user("name three red fruits " * 4), 25)
        running = RunningBatch(model)
        running.admit([other, row])
        while running.rows:
            running.step()
        assert delivered[0].text == text
        said.add(text)
    assert len(said) > 1


def test_log_probabilities_are_those_of_the_model(model):
    chat = user("how many legs has a spider")
    inputs = model.processor.apply_chat_template([chat])
    made = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    tokens = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    row, delivered = make_row(model, chat, 6, logprobs=3)
    running = RunningBatch(model)
    running.admit([row])
    while running.rows:
        running.step()
    end = delivered[0]
    assert isinstance(end, Completion)
    shown = [token for token in tokens if token != model.generation_config.eos_token_id]
    assert [entry.token for entry in end.logprobs] == [model.processor.tokenizer.decode([t]) for t in shown]
    for entry, token, logits in zip(end.logprobs, shown, made.logits, strict=False):
        expected = logits[0].float().log_softmax(-1)
        assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-4)
        torch.testing.assert_close(
            torch.tensor([other.logprob for other in entry.top]), expected.topk(3).values, atol=1e-4, rtol=0
        )


def test_only_those_are_admitted_who_fit(model):
    def job(tokens: int, windows: int = 0) -> Job:
        return Job([], tokens, windows, 16_000, 10, (), None, False, print)

    batcher = Batcher(model, BatchLimits(rows=3, tokens=100, audio_seconds=2), print)
    assert batcher._fits([], [job(500)])  # a job alone always fits
    assert batcher._fits([job(20)], [job(20), job(20)])
    assert not batcher._fits([job(20)], [job(20), job(20), job(1)])  # rows
    assert not batcher._fits([job(20)], [job(41)])  # tokens
    assert batcher._fits([job(20, 9)], [job(20, 2)])  # the running jobs' audio is already encoded
    assert not batcher._fits([], [job(5, 2), job(5, 1)])
