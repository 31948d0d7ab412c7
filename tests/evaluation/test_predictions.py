"""Files of answers: both formats, and every way in which one belongs to other samples than it says."""

import json
import random
from pathlib import Path

import pytest

from diva.errors import UserError
from diva.evaluation.metrics import F1, Accuracy, Pedants, SentenceBleu, TokenF1
from diva.evaluation.predictions import by_themselves, check_scores, match, read_predictions
from diva.evaluation.results import figures
from diva.evaluation.samples import Sample

LABELS = {"Yes": "true", "No": "false"}
GOLD = ["true", "false", "false", "true", "true", "false"]
SAID = ["Yes", "Yes", "No", "No", "Yes", "No"]
SAMPLES = [Sample(str(i), i, (gold,), None) for i, gold in enumerate(GOLD)]
METRICS = [F1(LABELS, "Yes"), Accuracy(LABELS)]


def authors_file(path: Path, said=SAID, gold=GOLD, first=0) -> Path:
    lines = [
        f'{i}[SEP_DIAL]"""{s}"""[SEP_DIAL]{int(LABELS[s] == g)}'
        for i, (s, g) in enumerate(zip(said, gold, strict=True), start=first)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_both_formats_are_read(tmp_path):
    file = tmp_path / "x_outs.txt"
    file.write_text(
        'a1[SEP_DIAL]"""One[NEW_LINE]two """[SEP_DIAL]0.25\nb[SEP_DIAL]"""ERROR IN PROCESSING"""[SEP_DIAL]NA\n'
    )
    (one, failed), _ = read_predictions(file)
    assert (one.id, one.prediction, one.score) == ("a1", "One\ntwo", 0.25)
    assert (failed.prediction, failed.score) == (None, None)
    rows = [{"id": 7, "prediction": "x", "reference": "y"}, {"id": "8", "prediction": None, "score": 1}]
    (seven, eight), _ = read_predictions(jsonl(tmp_path / "x.jsonl", rows))
    assert (seven.id, seven.prediction, seven.references) == ("7", "x", ("y",))
    assert (eight.prediction, eight.references, eight.score) == (None, None, 1.0)


def test_the_authors_file_against_the_task_and_by_itself(tmp_path):
    file = authors_file(tmp_path / "outs.txt")
    lines, _ = read_predictions(file)
    against_task = match(lines, SAMPLES, file)
    check_scores(against_task, METRICS, file)
    alone = by_themselves(lines, LABELS, file)
    assert [a.references for a in alone] == [(gold,) for gold in GOLD]
    for found in (figures(against_task, METRICS), figures(alone, METRICS)):
        assert [f.value for f in found] == [pytest.approx(2 / 3), pytest.approx(4 / 6)]


def test_a_wrong_label_map_is_caught(tmp_path):
    file = authors_file(tmp_path / "outs.txt")
    swapped = {"Yes": "false", "No": "true"}
    answers = match(read_predictions(file)[0], SAMPLES, file)
    with pytest.raises(UserError, match=r"6 of 6.*task\.labels is wrong"):
        check_scores(answers, [Accuracy(swapped)], file)
    with pytest.raises(UserError, match="among the task's labels"):
        figures(answers, [Accuracy({"Yes": "sarcastic", "No": "sincere"})])


def test_shuffled_ids_are_caught_by_recorded_scores(tmp_path):
    lines = authors_file(tmp_path / "outs.txt").read_text().splitlines()
    ids, rest = zip(*(line.split("[SEP_DIAL]", 1) for line in lines), strict=True)
    file = tmp_path / "shuffled.txt"
    file.write_text("".join(f"{i}[SEP_DIAL]{r}\n" for i, r in zip(ids[::-1], rest, strict=True)))
    answers = match(read_predictions(file)[0], SAMPLES, file)
    with pytest.raises(UserError, match="shuffled or shifted"):
        check_scores(answers, METRICS, file)


def test_shuffled_ids_are_caught_by_references(tmp_path):
    rows = [
        {"id": str(i), "prediction": said, "reference": gold}
        for i, (said, gold) in enumerate(zip(SAID, [*GOLD[1:], GOLD[0]], strict=True))
    ]
    file = jsonl(tmp_path / "x.jsonl", rows)
    with pytest.raises(UserError, match=r"line 1: the reference of 0 is 'false', in the task it is 'true'"):
        match(read_predictions(file)[0], SAMPLES, file)


@pytest.mark.parametrize("first", [1, -1])
def test_a_file_that_counts_from_elsewhere_is_caught(tmp_path, first):
    file = authors_file(tmp_path / "outs.txt", first=first)
    with pytest.raises(UserError, match="1 of them"):
        match(read_predictions(file)[0], SAMPLES, file)


def test_a_file_with_more_samples_than_the_task_is_caught(tmp_path):
    file = authors_file(tmp_path / "outs.txt")
    with pytest.raises(UserError, match="has ids that the task does not: 1 of them, such as 5"):
        match(read_predictions(file)[0], SAMPLES[:-1], file)


def test_one_wrong_score_of_many_is_caught_where_scores_are_exact(tmp_path):
    gold = GOLD * 10
    samples = [Sample(str(i), i, (right,), None) for i, right in enumerate(gold)]
    rows = [
        {"id": str(i), "prediction": "Yes", "score": int(right == "true")} for i, right in enumerate(gold)
    ]
    file = jsonl(tmp_path / "x.jsonl", rows)
    check_scores(match(read_predictions(file)[0], samples, file), METRICS, file)
    rows[17]["score"] = 1 - rows[17]["score"]
    jsonl(file, rows)
    with pytest.raises(UserError, match="for 1 of 60 samples, such as 17"):
        check_scores(match(read_predictions(file)[0], samples, file), METRICS, file)


def test_bleu_may_differ_a_little_and_in_few_lines(tmp_path):
    """Another version of a tokenizer moves some scores; lines of other samples move most."""
    text = "ein guter Tag im Mai"
    samples = [Sample(str(i), i, (text,), None) for i in range(20)]

    def check(scores: list[float]) -> None:
        rows = [{"id": str(i), "prediction": text, "score": score} for i, score in enumerate(scores)]
        file = jsonl(tmp_path / "x.jsonl", rows)
        check_scores(match(read_predictions(file)[0], samples, file), [SentenceBleu("de")], file)

    check([98.5] * 20)
    check([50.0] * 2 + [100.0] * 18)
    with pytest.raises(UserError, match="for 3 of 20 samples"):
        check([50.0] * 3 + [100.0] * 17)


def test_a_file_off_by_one_line_is_caught(tmp_path):
    """Its ids are right and complete, its lines one sample late."""
    file = authors_file(tmp_path / "outs.txt", [SAID[-1], *SAID[:-1]], [GOLD[-1], *GOLD[:-1]])
    answers = match(read_predictions(file)[0], SAMPLES, file)
    with pytest.raises(UserError, match="shuffled or shifted"):
        check_scores(answers, METRICS, file)


def test_translations_of_other_sentences_are_caught(tmp_path):
    texts = [
        "ein guter Tag im Mai",
        "die Katze liegt auf dem Sofa",
        "wir gehen heute nach Hause",
        "es regnet den ganzen Tag",
    ]
    samples = [Sample(str(i), i, (text,), None) for i, text in enumerate(texts)]
    late = [texts[-1], *texts[:-1]]
    rows = [{"id": str(i), "prediction": text, "score": 100.0} for i, text in enumerate(late)]
    file = jsonl(tmp_path / "x.jsonl", rows)
    with pytest.raises(UserError, match="4 of 4"):
        check_scores(match(read_predictions(file)[0], samples, file), [SentenceBleu("de")], file)


# ---- scores that cannot be computed again


def questions(count: int) -> tuple[list[Sample], list[dict]]:
    """Samples with two-word answers, and a file that answers half of them, scored as PEDANTS would."""
    chance = random.Random(0)
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ad", "eg", "ib", "om", "ut")]
    names = [" ".join(chance.sample(words, 2)) for _ in range(count)]
    samples = [Sample(str(i), i, (name, f"the {name}"), None) for i, name in enumerate(names)]
    rows = []
    for i, name in enumerate(names):
        knows = chance.random() < 0.5
        said = name if knows else chance.choice(names)
        score = 1.0 if knows else 0.2 + 0.2 * chance.random()
        rows.append({"id": str(i), "prediction": f"The answer to that is {said}.", "score": score})
    return samples, rows


def check(tmp_path: Path, samples: list[Sample], rows: list[dict], ids: list[str] | None = None) -> None:
    given = rows if ids is None else [row | {"id": i} for row, i in zip(rows, ids, strict=True)]
    file = jsonl(tmp_path / "x.jsonl", given)
    check_scores(match(read_predictions(file)[0], samples, file), [Pedants(), TokenF1()], file)


def test_shuffled_answers_to_questions_are_caught(tmp_path):
    samples, rows = questions(300)
    check(tmp_path, samples, rows)
    ids = random.Random(1).sample([s.id for s in samples], 300)
    with pytest.raises(UserError, match=r"no better than shuffled ones: its ids are shuffled or shifted"):
        check(tmp_path, samples, rows, ids)


@pytest.mark.parametrize(("step", "where"), [(1, "after"), (-1, "before")])
def test_answers_to_questions_that_are_off_by_one_are_caught(tmp_path, step, where):
    samples, rows = questions(60)
    check(tmp_path, samples, rows)
    ids = [str((i - step) % 60) for i in range(60)]
    with pytest.raises(UserError, match=f"the sample {where} each: it is off by one line"):
        check(tmp_path, samples, rows, ids)


def test_nothing_is_said_where_scores_cannot_tell(tmp_path):
    """Few answers, scores that are all alike, answers without a word of any reference."""
    samples, rows = questions(300)
    ids = random.Random(1).sample([s.id for s in samples], 300)
    check(tmp_path, samples[:15], rows[:15], [s.id for s in samples[14::-1]])
    check(tmp_path, samples, [row | {"score": 0.3} for row in rows], ids)
    check(tmp_path, samples, [row | {"prediction": "hm"} for row in rows], ids)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no json\n", "1 of 1 lines, such as line 1, are neither JSON"),
        ('{"id": "b", "prediction": "x"}\nno json\n{"id": "a"}\n', "2 of 3 lines, such as line 2"),
        ('{"id": "a", "prediction": "x"}\n{"id": "a", "prediction": "y"}\n', "lines 1 and 2"),
        ('a[SEP_DIAL]"""x"""[SEP_DIAL]good\n', "such as line 1, .* could not convert"),
    ],
)
def test_files_that_cannot_be_read_are_named_with_their_line(tmp_path, text, problem):
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=problem):
        read_predictions(file)


def test_a_file_that_does_not_say_what_is_right_needs_the_task(tmp_path):
    file = jsonl(tmp_path / "x.jsonl", [{"id": "a", "prediction": "x"}])
    with pytest.raises(UserError, match="references=task"):
        by_themselves(read_predictions(file)[0], None, file)


def test_a_malformed_line_costs_its_own_sample_alone(tmp_path):
    file = authors_file(tmp_path / "outs.txt")
    rows = file.read_text().splitlines()
    file.write_text("\n".join([*rows[:2], rows[2].replace("[SEP_DIAL]", " ", 1), *rows[3:]]) + "\n")
    lines, skipped = read_predictions(file)
    assert [(skip.clip_id, skip.reason) for skip in skipped] == [("line 3", "malformed line")]
    answers = match(lines, SAMPLES, file, malformed=1)
    assert [answer.id for answer in answers] == ["0", "1", "3", "4", "5"]
    check_scores(answers, METRICS, file)
    with pytest.raises(UserError, match="lacks samples of the task: 1 of them, such as 2"):
        match(lines, SAMPLES, file)
