"""Chats with speech: what the processor makes of them, and what the model answers alone and in batches."""

import io

import numpy as np
import pytest
import soundfile
import torch
from tiny import TEMPLATE, make_tokenizer, noise

from diva import DivaForConditionalGeneration
from diva.audio.decoding import to_waveform
from diva.audio.frames import windows
from diva.errors import AudioFault, UserError
from diva.models.processing import AUDIO
from diva.models.prompts import chat_pieces, released_user_turn, user_turn

DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nbe good<|im_end|>\n' }}{% endif %}"
    + TEMPLATE
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + TEMPLATE
)
LLAMA_LIKE = (
    "{{ '<|endoftext|>' }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_end|>\n\n' +"
    " m['content'] | trim }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
TEMPLATES = {
    "plain": TEMPLATE,
    "default_system": DEFAULT_SYSTEM,
    "no_system": NO_SYSTEM,
    "llama_like": LLAMA_LIKE,
}
SPOKEN = {"type": "audio", "audio": noise(0.7, 1)}


def text(part: str) -> dict:
    return {"type": "text", "text": part}


def user(*content) -> dict:
    return {"role": "user", "content": list(content)}


# ---- templates


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_pieces_are_the_rendered_chat_around_the_audios(template):
    tokenizer = make_tokenizer(template)
    chat = [user(SPOKEN), {"role": "assistant", "content": "a cat"}, user(text("and "), SPOKEN, text("?"))]
    pieces = chat_pieces(tokenizer, chat)
    flat = [
        {"role": "user", "content": "AAA"},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "and BBB?"},
    ]
    rendered = tokenizer.apply_chat_template(flat, tokenize=False, add_generation_prompt=True)
    first, rest = rendered.split("AAA")
    expected = [
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (first, *rest.split("BBB"))
    ]
    assert pieces == expected
    assert user_turn(tokenizer).prefix_ids == pieces[0]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_system_message_reaches_every_template(template):
    tokenizer = make_tokenizer(template)
    prefix = tokenizer.decode(user_turn(tokenizer, "speak like a king").prefix_ids)
    assert prefix.count("speak like a king") == 1
    assert "be good" not in prefix
    if template is NO_SYSTEM:  # it stands at the head of the user's turn
        assert prefix == "<|im_start|>user\nspeak like a king\n\n"


def test_what_users_write_cannot_pass_for_audio():
    tokenizer = make_tokenizer()
    chat = [user(text("THESPEECHGOESHERE"), SPOKEN, text(AUDIO))]
    before, after = (tokenizer.decode(piece) for piece in chat_pieces(tokenizer, chat))
    assert before == "<|im_start|>user\nTHESPEECHGOESHERE"
    assert after.startswith(AUDIO)


def test_the_released_prompt_stands_between_first_and_last_line():
    tokenizer = make_tokenizer(DEFAULT_SYSTEM)
    prompt = released_user_turn(tokenizer, "stop")
    assert tokenizer.decode(prompt.prefix_ids) == "<|im_start|>system\nstop\n<|im_start|>user\n"
    assert released_user_turn(tokenizer) == user_turn(tokenizer)


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([{"content": "x"}], "needs a role"),
        ([{"role": "user", "content": 3}], "string or a list"),
        ([{"role": "user", "content": ["x"]}], "string or a list"),
        ([user({"type": "image_url"})], "'image_url' cannot be understood"),
        ([user({"type": "text"})], "needs its text"),
        ([user({"type": "audio"})], "needs one of"),
        ([user({"type": "audio", "audio": SPOKEN["audio"], "path": "x"})], "needs one of"),
    ],
)
def test_messages_that_cannot_be_read_are_named(model, chat, said):
    with pytest.raises(UserError, match=said):
        model.processor.apply_chat_template(chat)


# ---- clips


def test_a_clip_may_come_in_any_form():
    mono = noise(0.5, 2)
    file = io.BytesIO()
    soundfile.write(file, mono, 16_000, format="WAV", subtype="FLOAT")
    forms = {
        "bytes": file.getvalue(),
        "array": mono,
        "tensor": torch.from_numpy(mono),
        "list": mono.tolist(),
        "stereo": np.stack([mono, mono], axis=1),
        "channels first": np.stack([mono, mono]),
        "whole numbers": (mono * 32767).astype(np.int16),
    }
    for name, form in forms.items():
        np.testing.assert_allclose(to_waveform(form), mono, atol=1e-4, err_msg=name)
    tone = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100).astype(np.float32)
    there = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(to_waveform(tone, 44_100) - there)[200:-200].max() < 1e-2


@pytest.mark.parametrize(
    ("clip", "rate", "reason"),
    [
        ("https://example.org/a.wav", 16_000, "missing file"),
        ("nowhere.wav", 16_000, "missing file"),
        (b"RIFF no audio", 16_000, "damaged audio"),
        (np.zeros(16_000), 16_000, "silence"),
        (np.full(16_000, np.nan), 16_000, "damaged audio"),
        (np.zeros((2, 3, 4)), 16_000, "damaged audio"),
        (np.array(["a"]), 16_000, "damaged audio"),
        (np.ones(16_000), 0, "damaged audio"),
        (np.ones(16_000), 262_139, "damaged audio"),
        (np.ones(700 * 16_000, dtype=np.float32), 16_000, "too long"),
        (np.zeros(0), 16_000, "zero length"),
    ],
)
def test_what_is_no_clip_is_named(model, clip, rate, reason):
    with pytest.raises(AudioFault) as caught:
        model.processor.apply_chat_template([user({"type": "audio", "audio": clip, "sampling_rate": rate})])
    assert caught.value.reason == reason


def test_long_audio_is_cut_where_it_is_quiet():
    wave = noise(70.0, 4)
    wave[int(27.3 * 16_000) : int(27.6 * 16_000)] *= 0.01
    parts = windows(wave)
    np.testing.assert_array_equal(np.concatenate(parts), wave)
    assert 27.3 <= len(parts[0]) / 16_000 <= 27.6
    assert all(len(part) <= 30 * 16_000 for part in parts)
    assert len(parts) == 3
    assert len(windows(wave[: 30 * 16_000])) == 1


def test_long_audio_can_be_refused(model):
    processor = model.processor
    chat = [user({"type": "audio", "audio": noise(31.0, 5)})]
    assert int((processor.apply_chat_template(chat)["input_ids"] == processor.audio_token_id).sum()) == 2 * 12
    processor.long_audio = "error"
    try:
        with pytest.raises(AudioFault, match=r"too long: the clip lasts 31\.0 s"):
            processor.apply_chat_template(chat)
    finally:
        processor.long_audio = "split"


# ---- model inputs


@pytest.fixture(scope="module")
def model(export) -> DivaForConditionalGeneration:
    return DivaForConditionalGeneration.from_pretrained(export, dtype="float32")


def test_text_with_marks_and_clips_gives_the_same_as_the_chat(model):
    processor = model.processor
    chat = [user(text("hear "), SPOKEN, text(" and "), SPOKEN)]
    wanted = processor.apply_chat_template(chat)
    rendered = processor.apply_chat_template(chat, tokenize=False)
    assert rendered.count(AUDIO) == 2
    actual = processor(text=rendered, audio=[SPOKEN["audio"]] * 2)
    for key, value in wanted.items():
        assert torch.equal(actual[key], value), key
    with pytest.raises(UserError, match=r"1 <\|audio\|> for 2 clips"):
        processor(text=AUDIO, audio=[SPOKEN["audio"]] * 2)
    with pytest.raises(TypeError):
        processor(text=AUDIO, audios=[SPOKEN["audio"]])


def test_the_prompt_of_the_training_is_the_default(model):
    processor = model.processor
    processor.system_prompt = "be brief"
    try:
        assert "be brief" in processor.apply_chat_template([user(SPOKEN)], tokenize=False)
        own = [{"role": "system", "content": "sing"}, user(SPOKEN)]
        assert "be brief" not in processor.apply_chat_template(own, tokenize=False)
    finally:
        processor.system_prompt = None


def test_placeholders_and_clips_must_agree(model):
    batch = model.processor.apply_chat_template([user(SPOKEN)])
    with pytest.raises(ValueError, match="12 places for virtual tokens, while 2 clips give 24"):
        model.generate(
            **(
                batch
                | {"audio": batch["audio"].repeat(2, 1), "audio_samples": batch["audio_samples"].repeat(2)}
            )
        )


# ---- answers

CHATS = {
    "text alone": [{"role": "user", "content": "how many legs has a spider"}],
    "a short clip": [user(SPOKEN)],
    "a longer clip": [user({"type": "audio", "audio": noise(2.9, 6)})],
    "two windows": [user({"type": "audio", "audio": noise(33.0, 7)})],
    "two clips": [
        user(
            {"type": "audio", "audio": noise(1.1, 8)}, text(" or "), {"type": "audio", "audio": noise(0.4, 9)}
        )
    ],
    "a system message": [{"role": "system", "content": "name three red fruits"}, user(SPOKEN)],
    "several turns": [
        user({"type": "audio", "audio": noise(0.9, 10)}),
        {"role": "assistant", "content": "good morning"},
        user(text("what is "), {"type": "audio", "audio": noise(1.9, 11)}),
    ],
}
GREEDY = {"max_new_tokens": 10, "do_sample": False}


def answers(model, chats, **kwargs) -> list[list[int]]:
    batch = model.processor.apply_chat_template(chats)
    ids = model.generate(**batch, **(GREEDY | kwargs))[:, batch["input_ids"].shape[1] :]
    end = model.processor.tokenizer.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in ids.tolist()]


@pytest.fixture(scope="module")
def alone(model) -> dict[str, list[int]]:
    return {name: answers(model, [chat])[0] for name, chat in CHATS.items()}


def test_answers_differ_so_that_comparing_them_says_something(alone):
    assert len({tuple(ids) for ids in alone.values()}) >= 5


@pytest.mark.parity
def test_batched_answers_equal_single_ones(model, alone):
    assert answers(model, list(CHATS.values())) == list(alone.values())
    backwards = list(CHATS.values())[::-1]
    assert answers(model, backwards) == list(alone.values())[::-1]


@pytest.mark.parity
@pytest.mark.parametrize("name", CHATS)
def test_a_pair_with_each_kind_of_chat_equals_single_ones(model, alone, name):
    """One test per padding trap: prompt lengths, audio lengths, number of clips, windows, none at all."""
    pair = ["a short clip", name]
    assert answers(model, [CHATS[key] for key in pair]) == [alone[key] for key in pair]


@pytest.mark.parity
def test_generate_equals_the_llm_fed_by_hand(model, alone):
    batch = model.processor.apply_chat_template(CHATS["several turns"])
    with torch.no_grad():
        embeddings = model.input_embeddings(batch["input_ids"], batch["audio"], batch["audio_samples"])
        ids: list[int] = []
        while len(ids) < GREEDY["max_new_tokens"] and (
            not ids or ids[-1] != model.processor.tokenizer.eos_token_id
        ):
            ids.append(int(model.llm(inputs_embeds=embeddings).logits[0, -1].argmax()))
            embeddings = torch.cat([embeddings, model.embed(torch.tensor([[ids[-1]]]))], dim=1)
        logits = model(**batch).logits[0, -1]
    assert ids == alone["several turns"]
    assert int(logits.argmax()) == ids[0]


def test_clip_in_a_text_shorter_than_the_prefix_is_answered(model, monkeypatch):
    inputs = model.processor("<|audio|>", noise(0.7, 1))
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    monkeypatch.setitem(model._buffers, "prefix_ids", torch.arange(inputs["input_ids"].shape[1] + 1))
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), answer)


def test_transformers_generation_options_work(model, alone):
    chat = [CHATS["two clips"], CHATS["a short clip"]]
    beams = answers(model, chat, num_beams=3)
    assert beams[1] == answers(model, chat[1:], num_beams=3)[0]
    torch.manual_seed(0)
    sampled = answers(model, chat[:1], do_sample=True, temperature=5.0)
    torch.manual_seed(0)
    assert sampled == answers(model, chat[:1], do_sample=True, temperature=5.0)
    assert sampled[0] != alone["two clips"]
    assert answers(model, chat[:1], repetition_penalty=1000.0)[0] != alone["two clips"]
    two = model.generate(
        **model.processor.apply_chat_template(chat[:1]), **GREEDY, num_beams=2, num_return_sequences=2
    )
    assert len(two) == 2
    assert int(two.max()) < model.llm.config.vocab_size, "what looks at the prompt's ids finds no placeholder"


@pytest.mark.parametrize("drafter", ["prompt_lookup_num_tokens", "assistant_model"])
def test_assisted_decoding_is_refused_with_speech(model, drafter):
    """transformers' own gives another answer from embeddings, without an error."""
    given = {"prompt_lookup_num_tokens": 3, "assistant_model": model.llm}[drafter]
    with pytest.raises(UserError, match=f"{drafter}: .* does not work with speech"):
        answers(model, [CHATS["a short clip"]], **{drafter: given})
    assert answers(model, [CHATS["text alone"]], **{drafter: given})


def test_a_stream_gives_the_same_words_in_pieces(model):
    whole = model.generate([SPOKEN["audio"]], max_new_tokens=10)[0]
    pieces = list(model.generate_stream(SPOKEN["audio"], max_new_tokens=10, do_sample=False))
    assert "".join(pieces) == whole
    assert len(pieces) > 1


def test_a_stream_can_be_left_and_hands_on_errors(model):
    stream = model.generate_stream(SPOKEN["audio"], max_new_tokens=100_000, min_new_tokens=100_000)
    assert next(stream)
    stream.close()  # waits for the generation, which would otherwise take hours
    with pytest.raises(ValueError, match="temperature"):
        list(model.generate_stream(SPOKEN["audio"], do_sample=True, temperature=-1.0))
    with pytest.raises(AudioFault):
        next(model.generate_stream(np.zeros(16_000)))


def test_prompts_and_clips_must_be_as_many(model):
    with pytest.raises(UserError, match="1 clips and 2 prompts"):
        model.generate([SPOKEN["audio"]], ["a", "b"])
    both = model.generate([SPOKEN["audio"]] * 2, ["stop", "name three red fruits please"], max_new_tokens=6)
    one = [
        model.generate([SPOKEN["audio"]], prompt, max_new_tokens=6)[0]
        for prompt in ("stop", "name three red fruits please")
    ]
    assert both == one
