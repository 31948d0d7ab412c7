import operator
import re
from collections import Counter

import pytest

from diva.data.corpora.spoken import knowledge
from diva.data.corpora.spoken.sentences import (
    MAX_CHARACTERS,
    TEMPLATES,
    VOCABULARY,
    article,
    in_words,
    plural,
    sentences,
    words_of,
)

COUNT = 6_000
ALL = sentences(COUNT, seed=1)
BY_TEXT = {sentence.text: sentence for sentence in ALL}
NUMBER = {in_words(number): number for number in range(1000)}
NUMBER_WORD = "|".join({word for spoken in NUMBER for word in re.split("[ -]", spoken)})
NUMBER_PHRASE = rf"\b(?:{NUMBER_WORD})\b(?:[ -](?:{NUMBER_WORD})\b)*"


def test_there_are_enough_of_them_and_no_template_takes_over():
    shares = Counter(sentence.template for sentence in ALL)
    assert len(BY_TEXT) == len(ALL) == COUNT
    assert len(shares) >= 60
    assert max(shares.values()) < 0.05 * COUNT


def test_they_are_short_and_written_as_they_are_spoken():
    for text in BY_TEXT:
        assert 3 <= len(text.split()) <= 12, text
        assert len(text) <= MAX_CHARACTERS, text
        assert re.fullmatch(r"[A-Z][A-Za-z' ,-]*[.?!]", text), text


def test_their_words_are_many_but_each_is_heard_often():
    heard = Counter(word for text in BY_TEXT for word in words_of(text))
    assert 0.9 * VOCABULARY < len(heard) <= VOCABULARY
    rare = sum(times for times in heard.values() if times < 5)
    assert rare < 0.01 * heard.total()


def test_the_same_seed_gives_the_same_sentences_and_another_seed_others():
    assert sentences(200, seed=1) == sentences(200, seed=1)
    assert sentences(200, seed=1) != sentences(200, seed=2)


def test_asking_for_more_than_there_is_gives_all_there_is():
    everything = sentences(10**9, seed=1)
    assert len({sentence.text for sentence in everything}) == len(everything) > 8_000


def test_every_checkable_sentence_has_its_answer_and_no_other_has_one():
    checkable = {name for name, template in TEMPLATES.items() if template.answer is not None}
    assert len(checkable) >= 30
    for sentence in ALL:
        assert bool(sentence.answer) == (sentence.template in checkable), sentence
        assert "\t" not in (sentence.answer or "")


@pytest.mark.parametrize(
    ("template", "operation"),
    [
        ("plus", operator.add),
        ("minus", operator.sub),
        ("times", operator.mul),
        ("divided", operator.truediv),
        ("sum", operator.add),
        ("larger", max),
        ("smaller", min),
        ("half", lambda number: number / 2),
        ("number_after", lambda number: number + 1),
    ],
)
def test_arithmetic_is_right(template, operation):
    asked = [sentence for sentence in ALL if sentence.template == template]
    assert len(asked) > 20
    for sentence in asked:
        numbers = [NUMBER[phrase] for phrase in re.findall(NUMBER_PHRASE, sentence.text)]
        result = operation(*numbers)
        assert sentence.answer == f"{result:g}|{in_words(int(result))}", sentence


def test_odd_and_even_are_right():
    asked = [sentence for sentence in ALL if sentence.template == "odd_or_even"]
    for sentence in asked:
        number = NUMBER[sentence.text.removeprefix("Is ").removesuffix(" odd or even?")]
        assert sentence.answer == ("odd" if number % 2 else "even")
    assert {sentence.answer for sentence in asked} == {"odd", "even"}


@pytest.mark.parametrize("template", ["letters", "first_letter"])
def test_letters_are_counted_and_named_right(template):
    for sentence in (sentence for sentence in ALL if sentence.template == template):
        if template == "letters":
            word = sentence.text.removeprefix("How many letters are in ").rstrip("?")
            assert sentence.answer.split("|")[0] == str(len(word))
        else:
            word = sentence.text.removeprefix("What letter does ").removesuffix(" start with?")
            assert sentence.answer == word[0].upper()


def test_answers_that_are_common_knowledge():
    known = {
        "What is the capital of France?": "Paris",
        "Canberra is the capital of which country?": "Australia",
        "Which continent is Kenya in?": "Africa",
        "What language do people speak in Brazil?": "Portuguese",
        "What day comes after Sunday?": "Monday",
        "What day comes before Monday?": "Sunday",
        "Which month comes after December?": "January",
        "How many legs does a spider have?": "8|eight",
        "How many legs does a snake have?": "0|zero|no|none",
        "What is the opposite of hot?": "cold",
        "What is the plural of mouse?": "mice",
        "What is the past tense of go?": "went",
        "How do you say dog in French?": "chien",
        "Which is bigger, a flea or a planet?": "planet",
        "Which is bigger, a planet or a flea?": "planet",
        "What is smaller, a flea or a planet?": "flea",
        "What is faster, a snail or a rocket?": "rocket",
        "Which is a bird, an owl or gold?": "owl",
        "Which is a metal, an owl or gold?": "gold",
        "Is an apple a fruit or a vegetable?": "fruit",
        "Is a carrot a fruit or a vegetable?": "vegetable",
        "Who wrote Hamlet?": "Shakespeare",
        "How many minutes are in an hour?": "60|sixty",
    }
    filled = {
        sentence.text: sentence.answer
        for name, template in TEMPLATES.items()
        if template.answer is not None
        for sentence in (template.fill(name, row) for row in template.rows)
    }
    assert {text: filled.get(text) for text in known} == known


def test_the_facts_agree_with_each_other():
    kinds = [word for words in knowledge.KINDS.values() for word in words]
    assert len(kinds) == len(set(kinds)), "a thing of two kinds has two right answers"
    assert set(knowledge.CONTINENTS) <= set(knowledge.CAPITALS)
    cities = list(knowledge.CAPITALS.values())
    assert len(cities) == len(set(cities))


@pytest.mark.parametrize(
    ("number", "spoken"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (342, "three hundred forty-two"),
    ],
)
def test_numbers_in_words(number, spoken):
    assert in_words(number) == spoken


def test_articles_and_plurals():
    assert [article(word) for word in ("owl", "dog", "Umbrella", "university")] == ["an", "a", "an", "a"]
    assert [plural(noun) for noun in ("wolf", "puppy", "monkey", "fox", "dog")] == [
        "wolves",
        "puppies",
        "monkeys",
        "foxes",
        "dogs",
    ]
    for text in BY_TEXT:
        assert not re.search(r"\ba [aeio]|\ban (?!hour)[^aeiou]|a\(n\)", text, re.I), text
