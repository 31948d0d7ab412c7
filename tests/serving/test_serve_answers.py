"""What `python -m diva.serve` answers, asked by OpenAI's own client."""

import asyncio
import functools
import sys

import httpx
import numpy as np
import openai
import pytest
from requests_to_diva import KEY, WORDS, long_question, metrics, single, spoken, user, wav
from tiny import noise

from diva.generate import Question, parse_arguments
from diva.generate import chat as generate_chat


@pytest.mark.integration
def test_text_and_speech_answer_as_generate_does(client, model, monkeypatch):
    chat = [{"role": "system", "content": "Be brief."}, *user("play some music")]
    expected, prompt, new = single(model, chat, 12)
    answer = client.chat.completions.create(model="diva", messages=chat, max_tokens=12)
    assert answer.choices[0].message.content == expected
    assert answer.usage.to_dict() == {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
    }
    assert answer.choices[0].finish_reason == ("length" if new == 12 else "stop")
    assert "hearing" not in answer.model_extra
    # A clip and a prompt, as `diva.generate --prompt` puts them together; the prompt counts virtual tokens.
    monkeypatch.setattr(sys, "argv", ["generate", "MODEL", "clip", "--prompt", "Reply briefly"])
    clip = noise(1.2, 3)
    expected, prompt, new = single(model, generate_chat(Question("clip", clip), parse_arguments()), 12)
    heard = user(spoken(wav(clip)), "Reply briefly")
    answer = client.chat.completions.create(model="diva", messages=heard, max_completion_tokens=12)
    assert answer.choices[0].message.content == expected
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, new)
    assert prompt > 12  # 12 virtual tokens
    distance = pytest.approx(model.hearing_distance(clip), rel=1e-3)
    assert answer.model_extra["hearing"] == {"distance": distance, "threshold": None}
    mp3 = wav(clip, subtype="MPEG_LAYER_III", kind="MP3")
    expected, _, _ = single(model, user({"type": "audio", "audio": mp3}), 12)
    answer = client.chat.completions.create(model="diva", messages=user(spoken(mp3, "mp3")), max_tokens=12)
    assert answer.choices[0].message.content == expected


@pytest.mark.integration
def test_a_stream_is_the_answer_in_pieces(client, model):
    chat, expected = long_question(model, 60)
    chunks = list(
        client.chat.completions.create(
            model="diva", messages=chat, max_tokens=60, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 10
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "length"
    ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 60
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.integration
def test_stop_ends_the_row_before_the_string(client, model):
    chat, text = long_question(model, 60)
    stop = text[len(text) // 2 :][:3]
    for stream in (False, True):
        answer = client.chat.completions.create(
            model="diva", messages=chat, max_tokens=60, stop=["never to be said", stop], stream=stream
        )
        if stream:
            chunks = list(answer)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            said, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
            assert answer.usage.completion_tokens < 60
        assert said == text.partition(stop)[0]
        assert reason == "stop"


@pytest.mark.integration
def test_two_hundred_at_once_are_each_answered_as_if_alone(base_url, client, model):
    rng = np.random.default_rng(0)
    chats, heard, limits = [], [], []
    for number in range(40):
        text = " ".join(rng.choice(WORDS, rng.integers(1, 16)))
        clip = noise(float(rng.uniform(0.2, 3)), number)
        speaks = number % 5 == 0
        chats.append(user({"type": "audio", "audio": clip}, f"\n{text}") if speaks else user(text))
        heard.append(user(spoken(wav(clip)), text) if speaks else chats[-1])
        limits.append(int(rng.integers(1, 20)))
    expected = [single(model, chat, limit) for chat, limit in zip(chats, limits, strict=True)]

    async def everyone() -> list:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=100) as many:
            return await asyncio.gather(*(ask(many, number % 40, number % 3 == 0) for number in range(200)))

    async def ask(many: openai.AsyncOpenAI, number: int, stream: bool) -> tuple[str, int, int]:
        call = {"model": "diva", "messages": heard[number], "max_tokens": limits[number]}
        if not stream:
            answer = await many.chat.completions.create(**call)
            usage = answer.usage
            return answer.choices[0].message.content, usage.prompt_tokens, usage.completion_tokens
        chunks = await many.chat.completions.create(
            **call, stream=True, stream_options={"include_usage": True}
        )
        text = ""
        async for chunk in chunks:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        return text, chunk.usage.prompt_tokens, chunk.usage.completion_tokens

    before = steps(client)
    answers = asyncio.run(everyone())
    assert [answer for number, answer in enumerate(answers) if answer != expected[number % 40]] == []
    made, rows = (after - start for after, start in zip(steps(client), before, strict=True))
    assert rows > 8 * made  # of up to 16 in a step


def steps(client: openai.OpenAI) -> tuple[float, float]:
    """How many steps there were, and rows in them."""
    shown = metrics(client)
    return shown["diva_batch_rows_count"], shown["diva_batch_rows_sum"]


@pytest.mark.integration
def test_a_seed_draws_the_same_in_any_company(base_url, client):
    def draw(**sampling) -> str:
        answer = client.chat.completions.create(
            model="diva", messages=user("tell me a joke"), max_tokens=10, **sampling
        )
        return answer.choices[0].message.content

    alone = {seed: draw(temperature=0.9, top_p=0.8, seed=seed) for seed in range(6)}
    assert len(set(alone.values())) > 3
    assert draw(temperature=0, seed=3) == draw()
    assert draw(top_p=0.9) != draw(top_p=0.9)  # a top_p asks for a draw, each its own without a seed

    async def together() -> list:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0) as many:
            call = functools.partial(
                many.chat.completions.create, model="diva", messages=user("tell me a joke"), max_tokens=10
            )
            return await asyncio.gather(*(call(temperature=0.9, top_p=0.8, seed=seed) for seed in alone))

    assert [answer.choices[0].message.content for answer in asyncio.run(together())] == list(alone.values())


@pytest.mark.integration
def test_models_and_unknown_models_are_answered_as_openai_does(base_url, client):
    assert [model.id for model in client.models.list()] == ["diva"]
    assert client.models.retrieve("diva").owned_by == "diva"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("whisper-1")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=user("hello"))
    assert unknown.value.code == "model_not_found"
    assert metrics(client)['diva_requests_total{status="404"}'] >= 1
    root = base_url.removesuffix("/v1")
    assert httpx.get(f"{root}/health").json() == {"status": "ok"}
    for path in ("/metrics", "/v1/models", "/v1/models/diva"):
        for headers in (
            {},
            {"authorization": KEY},
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": b"\xff"},
        ):
            assert httpx.get(root + path, headers=headers).status_code == 401
    with pytest.raises(openai.AuthenticationError) as refused:
        client.with_options(api_key="wrong").chat.completions.create(model="diva", messages=user("hello"))
    assert refused.value.code == "invalid_api_key"
    authorized = {"authorization": f"Bearer {KEY}"}
    for status, answer in (
        (404, httpx.get(f"{root}/v1/nothing", headers=authorized)),
        (405, httpx.get(f"{base_url}/chat/completions", headers=authorized)),
    ):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.integration
def test_unused_openai_parameters_are_accepted(client):
    answer = client.chat.completions.create(
        model="diva",
        messages=[{"role": "developer", "content": "Be brief.", "name": "ops"}, *user("hello")],
        max_tokens=3,
        max_completion_tokens=3,
        n=1,
        stop=None,
        user="me",
        metadata={"a": "b"},
        logprobs=False,
        response_format={"type": "text"},
        presence_penalty=0,
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        store=False,
        extra_body={"top_k": 0, "min_p": None, "repetition_penalty": 1.0},
    )
    assert answer.usage.completion_tokens <= 3
