"""What people say to a voice assistant: short English sentences from templates, numbers always in words.

`sentences(count, seed)` is pure and deterministic. A question whose answer can be checked has its accepted answers,
separated by `|`.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product

from diva.data.corpora.spoken import knowledge as k
from diva.data.corpora.spoken import vocabulary as v

# The slowest voice needs about 3.5 seconds for this number of characters.
MAX_CHARACTERS = 46
MAX_WORDS = 12
MIN_WORDS = 3
# Templates with two or three slots have thousands of rows; this many are tried from each.
ROWS_TRIED = 3_000
VOCABULARY = 400

Row = tuple[str, ...]


@dataclass(frozen=True)
class Sentence:
    """`answer`: the accepted answers, separated by `|`; None if the answer cannot be checked."""

    text: str
    template: str
    answer: str | None


@dataclass(frozen=True)
class Template:
    """`pattern` is filled with each row in turn; `a(n)` in it becomes the article that fits the next word."""

    pattern: str
    rows: Sequence[Row]
    answer: Callable[..., str] | None = None

    def fill(self, name: str, row: Row) -> Sentence:
        text = re.sub(r"a\(n\) (?=(\w+))", lambda match: f"{article(match[1])} ", self.pattern.format(*row))
        return Sentence(text[0].upper() + text[1:], name, self.answer(*row) if self.answer else None)


def sentences(count: int, seed: int, vocabulary: int | None = VOCABULARY) -> list[Sentence]:
    """`count` distinct sentences in random order, of at most `vocabulary` different words (None: of any words).

    Each template gives the same number, as far as it has enough. There are fewer than `count` sentences if the
    templates have no more.
    """
    chance = random.Random(f"sentences {seed}")
    pools = []
    for name, template in TEMPLATES.items():
        rows = chance.sample(template.rows, min(len(template.rows), ROWS_TRIED))
        filled = (template.fill(name, row) for row in rows)
        pool = list({sentence.text: sentence for sentence in filled if _speakable(sentence.text)}.values())
        pools.append(pool)
    if vocabulary is not None:
        known = common_words(pools, vocabulary)
        pools = [[sentence for sentence in pool if words_of(sentence.text) <= known] for pool in pools]
    chosen: dict[str, Sentence] = {}
    for rank in range(max(map(len, pools))):
        layer = [pool[rank] for pool in pools if rank < len(pool)]
        chance.shuffle(
            layer
        )  # the last layer is cut; without the shuffle it would favour the first templates
        for sentence in layer:
            if len(chosen) < count:
                chosen.setdefault(sentence.text, sentence)
    result = list(chosen.values())
    chance.shuffle(result)
    return result


def common_words(pools: Sequence[Sequence[Sentence]], vocabulary: int) -> set[str]:
    """The `vocabulary` most frequent words of the templates, all templates with the same weight.

    A word that occurs only three times is not learned in a quarter of an hour. With the whole vocabulary, a tenth of
    the words in the held-out sentences would occur less than five times in training.
    """
    weight: dict[str, float] = defaultdict(float)
    for pool in pools:
        for sentence in pool:
            for word in words_of(sentence.text):
                weight[word] += 1 / len(pool)
    # Ties are sorted alphabetically, because the order of a set differs between processes.
    return set(sorted(weight, key=lambda word: (-weight[word], word))[:vocabulary])


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z'-]+", text.lower()))


def _speakable(text: str) -> bool:
    return len(text) <= MAX_CHARACTERS and MIN_WORDS <= len(text.split()) <= MAX_WORDS


def article(word: str) -> str:
    """'a' or 'an', by sound; correct for the words of this vocabulary."""
    return "an" if re.match(r"(?!uni|use|one)[aeiou]", word.lower()) else "a"


def plural(noun: str) -> str:
    if noun in k.PLURALS:
        return k.PLURALS[noun].split("|")[0]
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if re.search(r"(s|x|z|ch|sh)$", noun) else "s")


_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    """0 to 999 as it is spoken: 342 -> 'three hundred forty-two'."""
    if number < 20:
        return _UNITS[number]
    if number < 100:
        tens, units = divmod(number, 10)
        return _TENS[tens] + (f"-{_UNITS[units]}" if units else "")
    hundreds, rest = divmod(number, 100)
    return f"{_UNITS[hundreds]} hundred" + (f" {in_words(rest)}" if rest else "")


_NUMBERS = {in_words(number): number for number in range(1000)}


def _number(value: int) -> str:
    return f"{value}|{in_words(value)}"


def _with_word(answers: str) -> str:
    """'8' -> '8|eight'. Text that is not a number is unchanged."""
    return "|".join(f"{a}|{in_words(int(a))}" if a.isdigit() else a for a in answers.split("|"))


def _arithmetic(operation: Callable[[int, int], int]) -> Callable[[str, str], str]:
    return lambda left, right: _number(operation(_NUMBERS[left], _NUMBERS[right]))


def _numbers(pairs: Iterable[tuple[int, int]]) -> list[Row]:
    return [(in_words(left), in_words(right)) for left, right in pairs]


def _each(values: Iterable[str]) -> list[Row]:
    return [(value,) for value in values]


def _both(*lists: Iterable[str]) -> list[Row]:
    return [row for row in product(*lists) if len(set(row)) == len(row)]


def _two(values: Iterable[str]) -> list[Row]:
    return list(permutations(values, 2))


def _after(cycle: Sequence[str], steps: int) -> Callable[[str], str]:
    return lambda value: cycle[(cycle.index(value) + steps) % len(cycle)]


def _rungs(ladders: Iterable[Sequence[str]]) -> list[Row]:
    """All pairs from the same ladder, in both orders."""
    return [row for ladder in ladders for pair in combinations(ladder, 2) for row in (pair, pair[::-1])]


def _higher(ladders: Sequence[Sequence[str]], sign: int = 1) -> Callable[[str, str], str]:
    """Of two words the higher on their ladder; the lower with sign -1."""
    height = {word: rung for ladder in ladders for rung, word in enumerate(ladder)}
    return lambda left, right: left if sign * height[left] > sign * height[right] else right


def _with_article(noun: str, kind: str) -> str:
    return noun if kind in k.UNCOUNTED_KINDS else f"a(n) {noun}"


def _kind_questions() -> list[Row]:
    """Rows of (kind, thing, another thing). Exactly one of the two things is of that kind."""
    things = [(_with_article(word, kind), kind) for kind, words in k.KINDS.items() for word in words]
    return [
        (kind, left, right)
        for (left, left_kind), (right, right_kind) in permutations(things, 2)
        if left_kind != right_kind
        for kind in (left_kind, right_kind)
    ]


def _of_kind(kind: str, left: str, right: str) -> str:
    return next(noun for thing in (left, right) if (noun := thing.removeprefix("a(n) ")) in k.KINDS[kind])


def _translations() -> list[Row]:
    return [(word, language) for language, words in k.TRANSLATIONS.items() for word in words]


_LEDGERS = [(left, right) for left in range(2, 50) for right in range(2, 50)]
_TIMES = [(left, right) for left in range(2, 13) for right in range(2, 13)]
_COUNTED = [in_words(number) for number in range(100)]
_NOUNS = sorted({*v.ANIMALS, *v.OBJECTS, *v.FRUITS, *v.VEGETABLES, *v.INSTRUMENTS})
_EVERYDAY = sorted({*k.OPPOSITES, *v.FEELINGS, *k.PAST_TENSES, *_NOUNS})
_CLOCK = [f"{hour} {half}" for hour in _UNITS[1:13] for half in ("o'clock", "thirty", "fifteen")]
_MINUTES = [
    f"{count} {unit}"
    for count in (*_UNITS[2:13], "fifteen", "twenty", "thirty", "forty")
    for unit in ("minutes", "seconds", "hours")
]

# Every template has its own name. Changing their order changes the sentences of a seed.
TEMPLATES: dict[str, Template] = {
    # Questions with an answer that can be checked.
    "capital": Template("What is the capital of {}?", _each(k.CAPITALS), k.CAPITALS.get),
    "capital_tell": Template("Tell me the capital city of {}.", _each(k.CAPITALS), k.CAPITALS.get),
    "capital_of": Template(
        "{} is the capital of which country?",
        _each(city.split("|")[0] for city in k.CAPITALS.values()),
        {city.split("|")[0]: country for country, city in k.CAPITALS.items()}.get,
    ),
    "continent": Template("Which continent is {} in?", _each(k.CONTINENTS), k.CONTINENTS.get),
    "tongue": Template("What language do people speak in {}?", _each(k.TONGUES), k.TONGUES.get),
    "plus": Template("What is {} plus {}?", _numbers(_LEDGERS), _arithmetic(int.__add__)),
    "minus": Template(
        "What is {} minus {}?", _numbers((a + b, a) for a, b in _LEDGERS), _arithmetic(int.__sub__)
    ),
    "times": Template("What is {} times {}?", _numbers(_TIMES), _arithmetic(int.__mul__)),
    "divided": Template(
        "What is {} divided by {}?", _numbers((a * b, a) for a, b in _TIMES), _arithmetic(int.__floordiv__)
    ),
    "sum": Template("Can you add {} and {}?", _numbers(_LEDGERS), _arithmetic(int.__add__)),
    "larger": Template("Which is larger, {} or {}?", _two(_COUNTED), _arithmetic(max)),
    "smaller": Template("Which is smaller, {} or {}?", _two(_COUNTED), _arithmetic(min)),
    "number_after": Template(
        "What number comes after {}?", _each(_COUNTED), lambda n: _number(_NUMBERS[n] + 1)
    ),
    "half": Template(
        "What is half of {}?",
        _each(in_words(n) for n in range(2, 200, 2)),
        lambda n: _number(_NUMBERS[n] // 2),
    ),
    "odd_or_even": Template(
        "Is {} odd or even?",
        _each(in_words(n) for n in range(1, 200)),
        lambda n: ("even", "odd")[_NUMBERS[n] % 2],
    ),
    "day_after": Template("What day comes after {}?", _each(v.DAYS), _after(v.DAYS, 1)),
    "day_before": Template("What day comes before {}?", _each(v.DAYS), _after(v.DAYS, -1)),
    "month_after": Template("Which month comes after {}?", _each(v.MONTHS), _after(v.MONTHS, 1)),
    "month_before": Template("Which month comes before {}?", _each(v.MONTHS), _after(v.MONTHS, -1)),
    "fact": Template("{}", _each(k.FACTS), k.FACTS.get),
    "legs": Template(
        "How many legs does a(n) {} have?", _each(k.LEGS), lambda animal: _with_word(k.LEGS[animal])
    ),
    "baby": Template("What is a baby {} called?", _each(k.BABIES), k.BABIES.get),
    "sound": Template("What sound does a(n) {} make?", _each(k.SOUNDS), k.SOUNDS.get),
    "color": Template("What color is {}?", _each(k.COLORS), k.COLORS.get),
    "opposite": Template("What is the opposite of {}?", _each(k.OPPOSITES), k.OPPOSITES.get),
    "plural": Template("What is the plural of {}?", _each(k.PLURALS), k.PLURALS.get),
    "past_tense": Template("What is the past tense of {}?", _each(k.PAST_TENSES), k.PAST_TENSES.get),
    "translate": Template(
        "How do you say {} in {}?", _translations(), lambda word, tongue: k.TRANSLATIONS[tongue][word]
    ),
    "first_letter": Template(
        "What letter does {} start with?", _each(_EVERYDAY), lambda word: word[0].upper()
    ),
    "letters": Template(
        "How many letters are in {}?",
        _each(w for w in _EVERYDAY if " " not in w),
        lambda word: _number(len(word)),
    ),
    "bigger": Template("Which is bigger, a(n) {} or a(n) {}?", _rungs(k.SIZES), _higher(k.SIZES)),
    "smaller_thing": Template("What is smaller, a(n) {} or a(n) {}?", _rungs(k.SIZES), _higher(k.SIZES, -1)),
    "faster": Template("What is faster, a(n) {} or a(n) {}?", _rungs([k.SPEEDS]), _higher([k.SPEEDS])),
    "which_kind": Template("Which is a(n) {}, {} or {}?", _kind_questions(), _of_kind),
    "fruit_or_vegetable": Template(
        "Is a(n) {} a fruit or a vegetable?",
        _each(v.FRUITS + v.VEGETABLES),
        lambda food: "fruit" if food in v.FRUITS else "vegetable",
    ),
    "workplace": Template("Who works at a(n) {}?", _each(k.WORKPLACES), k.WORKPLACES.get),
    "author": Template("Who wrote {}?", _each(k.AUTHORS), k.AUTHORS.get),
    # Questions that are open.
    "animal_food": Template("What do {} eat?", _each(map(plural, v.ANIMALS))),
    "animal_home": Template("Where do {} live?", _each(map(plural, v.ANIMALS))),
    "object_use": Template("What is a(n) {} used for?", _each(v.OBJECTS)),
    "made_of": Template("What is a(n) {} made of?", _each(v.OBJECTS)),
    "how_works": Template("How does a(n) {} work?", _each(v.INVENTIONS)),
    "inventor": Template("Who invented the {}?", _each(v.INVENTIONS)),
    "job_duty": Template("What does a(n) {} do all day?", _each(v.JOBS)),
    "become": Template("How do I become a(n) {}?", _each(v.JOBS)),
    "skill": Template("How do I {}?", _each(v.SKILLS)),
    "skill_time": Template("How long does it take to {}?", _each(v.SKILLS + v.CHORES)),
    "weather": Template(
        "What is the weather like in {} {}?",
        _both(v.CITIES, ("today", "tomorrow", "this weekend", "tonight")),
    ),
    "forecast": Template("Will it {} in {} on {}?", _both(("rain", "snow"), v.CITIES, v.DAYS)),
    "time_in": Template("What time is it in {}?", _each(v.CITIES)),
    "distance": Template("How far is {} from {}?", _two(v.CITIES)),
    "sights": Template("What should I see in {}?", _each(v.CITIES)),
    "famous_for": Template("What is {} famous for?", _each((*v.CITIES, *k.CAPITALS))),
    "wear": Template("What should I wear to {}?", _each(v.OCCASIONS)),
    "difference": Template("How do {} differ from {}?", _two(map(plural, v.ANIMALS))),
    "why": Template("Why are {} so important?", _each(map(plural, (*v.JOBS, *v.OBJECTS)))),
    "do_you_like": Template("Do you like {}?", _each((*v.DISHES, *v.SPORTS, *v.ACTIVITIES))),
    "healthy": Template(
        "Is {} good for my {}?",
        _both(v.DRINKS + v.SPORTS, ("heart", "back", "brain", "skin", "teeth", "sleep", "mood", "diet")),
    ),
    "meaning": Template("What does the word {} mean?", _each(_EVERYDAY)),
    "spelling": Template("How do you spell {}?", _each((*_EVERYDAY, *v.SUBJECTS, *v.JOBS))),
    "nearest": Template("Where is the nearest {}?", _each(v.PLACES)),
    "opening": Template("When does the {} open on {}?", _both(v.PLACES, v.DAYS)),
    # Requests.
    "poem": Template("Write a(n) {} poem about {}.", _both(v.ADJECTIVES, v.TOPICS)),
    "story": Template("Tell me a(n) {} story about a(n) {}.", _both(v.ADJECTIVES, v.ANIMALS + v.JOBS)),
    "joke": Template("Tell me a joke about {}.", _each(map(plural, (*v.ANIMALS, *v.JOBS)))),
    "song": Template("Sing a(n) {} song about a(n) {}.", _both(v.ADJECTIVES, v.OBJECTS + v.ANIMALS)),
    "explain": Template("Explain {} in simple words.", _each((*v.TOPICS, *v.SUBJECTS))),
    "teach": Template("Can you teach me about {}?", _each((*v.SUBJECTS, *v.TOPICS))),
    "interesting_fact": Template("Give me an interesting fact about {}.", _each((*k.CAPITALS, *v.SUBJECTS))),
    "history": Template("Tell me about the history of {}.", _each((*v.CITIES, *k.CAPITALS))),
    "recipe": Template("Give me a recipe for {}.", _each(v.DISHES)),
    "cook_with": Template("What can I cook with {} and {}?", _two(v.INGREDIENTS)),
    "shopping_list": Template("Add {} and {} to my shopping list.", _two(v.GROCERIES)),
    "remind": Template("Remind me to {} on {}.", _both(v.CHORES, v.DAYS)),
    "remind_tonight": Template(
        "Please remind me to {} {}.", _both(v.CHORES, ("tonight", "tomorrow", "later", "at noon"))
    ),
    "timer": Template("Set a timer for {}.", _each(_MINUTES)),
    "alarm": Template("Wake me up at {} on {}.", _both(_CLOCK, v.DAYS)),
    "meeting": Template("Book a meeting with {} at {}.", _both(v.NAMES, _CLOCK)),
    "call": Template(
        "Call {} and say I am {}.", _both(v.NAMES + v.PEOPLE, ("late", "busy", "sorry", "sick", "at home"))
    ),
    "message": Template("Send {} a message about the {}.", _both(v.PEOPLE, v.BELONGINGS + v.PLACES)),
    "play": Template(
        "Play some {} in the {}.",
        _both(v.MUSIC, ("kitchen", "bedroom", "bathroom", "office", "garage", "car")),
    ),
    "turn": Template("Please turn {} the {}.", _both(("on", "off"), v.APPLIANCES)),
    "gift": Template("Suggest a gift for {} who likes {}.", _both(v.PEOPLE, v.ACTIVITIES)),
    "tips": Template("Give me three tips for {}.", _each(v.ACTIVITIES)),
    "name_three": Template(
        "Name three famous {} from {}.",
        _both(
            ("writers", "painters", "singers", "actors", "scientists", "athletes", "leaders", "dishes"),
            k.CONTINENTS,
        ),
    ),
    "rhyme": Template("What rhymes with {}?", _each(_EVERYDAY)),
    "use_in_sentence": Template("Use the word {} in a sentence.", _each(_EVERYDAY)),
    "describe": Template("Describe a(n) {} to a(n) {}.", _both(v.OBJECTS, v.JOBS)),
    "pretend": Template("Pretend you are a(n) {} from {}.", _both(v.JOBS + v.ANIMALS, v.CITIES)),
    "directions": Template("Take me to the {} near the {}.", _two(v.PLACES)),
    "learn": Template(
        "Help me learn {}.", _each((*v.LANGUAGES, *(f"the {i}" for i in v.INSTRUMENTS), *v.SUBJECTS))
    ),
    "pet_name": Template("Invent a name for a(n) {} {}.", _both(v.ADJECTIVES, v.ANIMALS)),
    "order": Template("I would like {} and {}, please.", _both(v.DISHES, v.DRINKS)),
    # Statements and opinions.
    "small_talk": Template("{}", _each(v.SMALL_TALK)),
    "feel": Template("I feel {} {}.", _both(v.FEELINGS, ("today", "this morning", "tonight", "right now"))),
    "person_feels": Template("{} is feeling {}.", _both(v.PEOPLE, v.FEELINGS)),
    "hurts": Template(
        "My {} hurts a lot {}.", _both(v.BODY_PARTS, ("today", "this morning", "tonight", "again"))
    ),
    "lost": Template("I lost my {} at the {}.", _both(v.BELONGINGS, v.PLACES)),
    "broken": Template(
        "The {} is {}.", _both(v.APPLIANCES, ("broken", "too loud", "not working", "leaking", "too hot"))
    ),
    "flight": Template("I am flying from {} to {}.", _two(v.CITIES)),
    "relative": Template("{} is a(n) {}.", _both(v.PEOPLE, v.JOBS)),
    "prefer": Template("I prefer {} to {}.", [*_two(v.DISHES), *_two(v.ACTIVITIES)]),
    "forgot": Template("I forgot to {} yesterday.", _each(v.CHORES)),
    "want": Template("I want to learn to {} in {}.", _both(v.SKILLS, v.MONTHS)),
    "saw": Template("I saw a(n) {} and a(n) {} in the garden.", _two(v.ANIMALS)),
    "afraid": Template(
        "My {} is afraid of {}.",
        _both(("son", "daughter", "cat", "dog", "brother", "sister", "baby"), map(plural, v.ANIMALS)),
    ),
    "talk": Template("Let's talk about {}.", _each((*v.TOPICS, *v.SUBJECTS, *v.SPORTS))),
    "opinion": Template("I think {} is better than {}.", [*_two(v.SPORTS), *_two(v.SUBJECTS)]),
    "studying": Template("{} is studying {} in {}.", _both(v.NAMES, v.SUBJECTS, v.CITIES)),
    "bought": Template("I bought a(n) {} and a(n) {}.", _two(v.OBJECTS)),
}
