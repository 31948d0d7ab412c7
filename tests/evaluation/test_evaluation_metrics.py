"""Every metric against an example computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from diva.errors import UserError
from diva.evaluation.intervals import bootstrap, paired_difference, sign_test
from diva.evaluation.metrics import (
    F1,
    Accuracy,
    ContainsAnswer,
    CorpusBleu,
    ExactMatch,
    Measure,
    Pedants,
    SentenceBleu,
    TargetLanguage,
    TokenF1,
    Unavailable,
    WeightedF1,
    contains_answer,
    exact_match,
    mean,
    sentence_bleu,
    token_f1,
)
from diva.evaluation.preference import WinRate
from diva.evaluation.results import by_group, figures, headline
from diva.evaluation.samples import Answer

YES_NO = {"Yes": "true", "No": "false"}
EMOTIONS = {"Anger": "angry", "Neutral": "neutral", "Sadness": "sad"}


def answers(*pairs: tuple[str | None, str]) -> list[Answer]:
    return [Answer(str(i), said, (right,)) for i, (said, right) in enumerate(pairs)]


def value(metric, of: list[Answer]) -> float:
    measure = metric.measure(of)
    return measure.value(measure.rows)


@pytest.mark.parametrize(
    ("said", "right", "found"),
    [
        ("The capital of France is Paris.", ["Paris"], 1.0),
        ("It is new delhi!", ["New Delhi"], 1.0),
        ("Delhi is new.", ["New Delhi"], 0.0),
        ("Four times six is 24.", ["24", "twenty-four"], 1.0),
        ("Twenty-four", ["24", "twenty-four"], 1.0),
        ("It is twenty-two.", ["2", "two"], 0.0),
        ("It is 224.", ["24"], 0.0),
        ("The word starts with A.", ["A"], 1.0),
        ("Parisian", ["Paris"], 0.0),
        ("The answer is ４２.", ["42"], 1.0),
        ("", ["Paris"], 0.0),
    ],
)
def test_contains_answer(said, right, found):
    assert contains_answer(said, right) == found


def test_exact_match_and_token_f1_as_in_squad():
    assert exact_match("The Paris!", ["paris"]) == 1.0
    assert exact_match("in Paris", ["paris"]) == 0.0
    assert exact_match("A", ["B"]) == 0.0
    # said: {it, is, in, paris}, wanted: {paris, france}: precision 1/4, recall 1/2
    assert token_f1("It is in Paris.", ["the Paris, France", "Rome"]) == pytest.approx(2 * 1 / (4 + 2))
    assert token_f1("", ["Rome"]) == 0.0


def test_failed_answers_are_excluded_from_means_and_counted():
    of = answers(("Paris", "Paris"), (None, "Rome"), ("Oslo", "Bern"), ("Bern", "Bern"))
    for metric in (ContainsAnswer(), ExactMatch(), TokenF1()):
        (figure,) = figures(of, [metric])
        assert (figure.value, figure.n, figure.errors) == (pytest.approx(2 / 3), 3, 1)
        assert figure.failures_as_zero == pytest.approx(2 / 4)


def test_shares_have_a_wilson_interval_that_is_no_point_at_zero():
    (none, all_of_it) = (
        figures(answers(*[(said, "Paris")] * 24), [ExactMatch()])[0] for said in ("Rome", "Paris")
    )
    assert none.interval == (0.0, 0.0)
    z = 1.959964
    assert none.wilson == (0.0, pytest.approx(z**2 / (24 + z**2), abs=1e-6))
    assert all_of_it.wilson == (pytest.approx(24 / (24 + z**2), abs=1e-6), 1.0)
    assert figures(answers(("a b", "b c")), [TokenF1()])[0].wilson is None


def test_weighted_f1_by_hand_with_a_failure_as_neutral():
    of = answers(
        ("Anger", "angry"), ("Anger", "angry"), ("Sadness", "angry"),
        (None, "neutral"), ("Sadness", "sad"), (None, "sad"),
    )  # fmt: skip
    # angry: P 1, R 2/3, F1 0.8, 3 of 6; neutral: P 1/2, R 1, F1 2/3, 1 of 6; sad: P 1/2, R 1/2, F1 0.5, 2 of 6
    expected = (3 * 0.8 + 2 / 3 + 2 * 0.5) / 6
    assert value(WeightedF1(EMOTIONS, "neutral"), of) == pytest.approx(expected)
    assert value(Accuracy(EMOTIONS, "neutral"), of) == pytest.approx(4 / 6)
    assert value(Accuracy(EMOTIONS), of) == pytest.approx(3 / 6)


def test_f1_of_yes_as_the_authors_have_it():
    # The counts behind mustard, DiVA, in the authors' outputs: 468 times Yes, 363 right, 345 of 690 sarcastic.
    counts = {("Yes", "true"): 243, ("Yes", "false"): 225, ("No", "true"): 102, ("No", "false"): 120}
    of = answers(*(pair for pair, count in counts.items() for _ in range(count)))
    assert value(F1(YES_NO, "Yes"), of) == pytest.approx(0.5977859778597786, abs=1e-12)
    assert value(Accuracy(YES_NO), of) == pytest.approx(0.5260869565217391, abs=1e-12)


def test_f1_is_of_the_class_that_is_named_wherever_it_stands():
    of = answers(("Yes", "true"), ("No", "true"), ("No", "false"), ("Yes", "false"), ("Yes", "true"))
    for labels in (YES_NO, dict(reversed(YES_NO.items()))):
        assert value(F1(labels, "Yes"), of) == pytest.approx(2 / 3)  # P 2/3, R 2/3
        assert value(F1(labels, "No"), of) == pytest.approx(1 / 2)


def test_always_yes_scores_two_thirds_where_half_are():
    of = answers(("Yes", "true"), ("Yes", "false"))
    assert value(F1(YES_NO, "Yes"), of) == pytest.approx(2 / 3)


def test_a_failed_answer_is_neither_yes_nor_right():
    of = answers((None, "false"), (None, "true"), ("Yes", "true"))
    assert value(Accuracy(YES_NO), of) == pytest.approx(1 / 3)
    assert value(F1(YES_NO, "Yes"), of) == pytest.approx(2 / 3)  # P 1, R 1/2


def test_first_tokens_count_as_their_labels():
    assert value(Accuracy({"Happiness": "happy", "Anger": "angry"}), answers(("H", "happy"))) == 1.0


@pytest.mark.parametrize("pair", [("Maybe", "true"), ("Yes", "sarcastic")])
def test_what_is_no_label_is_an_error(pair):
    with pytest.raises(UserError, match=r"task\.labels"):
        Accuracy(YES_NO).measure(answers(pair))


def test_sentence_bleu_by_hand():
    # matches 5/6, 3/5, 2/4, 1/3 of 1- to 4-grams, equal length: BLEU = 100 (5/6 3/5 2/4 1/3)^(1/4)
    score = sentence_bleu("the cat sat on the mat", ["the dog sat on the mat"], "de").score
    assert score == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, abs=1e-6)


def test_sentence_bleu_is_the_mean_and_leaves_out_failures():
    same = "ein guter Tag ist heute"
    of = answers((same, same), ("nichts davon", same), (None, same))
    second = sentence_bleu("nichts davon", [same], "de").score
    assert value(SentenceBleu("de"), of) == pytest.approx((100 + second) / 2)


def test_corpus_bleu_is_sacrebleus():
    said = ["the cat sat on the mat today", "hello there my old friend"]
    right = ["the dog sat on the mat today", "hello there my good old friend"]
    expected = BLEU(trg_lang="tr").corpus_score(said, [right]).score
    of = answers(*zip(said, right, strict=True))
    assert value(CorpusBleu("tr"), of) == pytest.approx(expected)
    assert value(CorpusBleu("tr"), [*of, Answer("2", None, ("x",))]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("language", "text"), [("ja", "今日はとても良い天気です"), ("zh-CN", "今天天气非常好我很高兴")]
)
def test_bleu_cuts_words_as_the_target_language_does(language, text):
    """Without spaces 13a would see a single word, whose BLEU with itself is below 100."""
    assert sentence_bleu(text, [text], language).score == pytest.approx(100)
    assert sentence_bleu(text, [text], "de").score < 100


def test_target_language_counts_answers_in_that_language():
    of = answers(
        ("Das ist ein sehr schöner Tag.", ""), ("This is a very nice day.", ""), (None, ""),
    )  # fmt: skip
    assert value(TargetLanguage("de"), of) == 0.5
    for language, text in {
        "ar": "هذا يوم جميل جدا", "id": "Ini adalah hari yang sangat indah", "ja": "今日はとても良い天気です",
        "ta": "இது ஒரு மிக நல்ல நாள்", "tr": "Bugün çok güzel bir gün", "zh-CN": "今天天气非常好我很高兴",
    }.items():  # fmt: skip
        assert value(TargetLanguage(language), answers((text, ""))) == 1.0


def test_pedants_says_why_it_cannot_be_had_and_the_next_metric_leads():
    of = answers(("It is Paris", "Paris"), ("Rome", "Rome"), (None, "Bern"))
    of = [replace(of[0], score=0.5), *of[1:]]
    with pytest.raises(
        Unavailable, match=r"1 of 2 answers are not scored by qa-metrics yet: .*fig2_qa/README"
    ):
        Pedants().measure(of)
    found = figures(of, [Pedants(), TokenF1()])
    assert found[0].value is None
    assert "qa-metrics" in found[0].note
    assert headline(found).metric == "token_f1"


def test_pedants_takes_recorded_scores():
    of = [Answer("a", "x", score=0.25), Answer("b", "y", score=0.75), Answer("c", None)]
    assert value(Pedants(), of) == 0.5


def test_bootstrap_of_a_share_agrees_with_the_normal_approximation():
    rows = np.repeat([1.0, 0.0], [300, 100]).reshape(-1, 1)
    low, high = bootstrap(Measure(rows, mean))
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (low, high) == (pytest.approx(0.75 - half, abs=0.01), pytest.approx(0.75 + half, abs=0.01))
    assert bootstrap(Measure(rows, mean)) == (low, high)
    assert bootstrap(Measure(rows[:1], mean)) is None
    fine = Measure(np.random.default_rng(3).standard_normal((60, 1)), mean)
    assert bootstrap(fine) == bootstrap(fine) != bootstrap(fine, seed=1)


def test_failed_answers_are_no_part_of_what_is_drawn():
    of = answers(*[("a b", "b c"), ("b", "b"), ("x", "b")] * 5, *[(None, "b")] * 15)
    (figure,) = figures(of, [TokenF1()])
    assert figure.interval == figures(of[:15], [TokenF1()])[0].interval


def test_paired_difference_knows_that_the_samples_are_the_same():
    chance = np.random.default_rng(0)
    hard = chance.integers(0, 2, size=(200, 1)).astype(float)
    better = hard.copy()
    better[:20] = 1.0
    alike = paired_difference(Measure(hard, mean), Measure(hard, mean))
    assert (alike.value, alike.interval, alike.n) == (0.0, (0.0, 0.0), 200)
    ahead = paired_difference(Measure(better, mean), Measure(hard, mean))
    assert ahead.value == pytest.approx(better.mean() - hard.mean())
    assert ahead.interval[0] > 0


def test_a_sample_that_one_side_failed_on_counts_for_neither():
    """Ours is right on what both answered and theirs wrong on half of it; where it failed would have flattered it."""
    nan = float("nan")
    ours = Measure(np.array([[1.0], [1.0], [0.0], [0.0], [nan]]), mean)
    theirs = Measure(np.array([[1.0], [0.0], [nan], [nan], [1.0]]), mean)
    found = paired_difference(ours, theirs)
    assert (found.value, found.n) == (0.5, 2)
    alike = paired_difference(Measure(np.array([[1.0], [1.0], [nan]]), mean), Measure(np.ones((3, 1)), mean))
    assert (alike.value, alike.interval, alike.n) == (0.0, (0.0, 0.0), 2)
    nothing = paired_difference(
        Measure(np.array([[nan], [1.0]]), mean), Measure(np.array([[1.0], [nan]]), mean)
    )
    assert (np.isnan(nothing.value), nothing.interval, nothing.n) == (True, None, 0)


def votes(wins: int, losses: int, neither: int = 0) -> list[Answer]:
    said = ["DiVA"] * wins + ["Qwen2-Audio"] * losses + [None] * neither
    return [Answer(str(i), vote) for i, vote in enumerate(said)]


def test_win_rate_of_the_papers_user_study():
    (figure,) = figures(votes(374, 148, neither=3), [WinRate("DiVA")])
    assert (figure.value, figure.n, figure.errors) == (pytest.approx(374 / 522), 522, 3)
    assert figure.wilson == (pytest.approx(0.6763385110325068), pytest.approx(0.753448825403089))
    assert figure.interval == (pytest.approx(0.678, abs=0.01), pytest.approx(0.755, abs=0.01))
    assert figure.note.startswith("374 of 522 votes against Qwen2-Audio; sign test p = ")
    assert float(figure.note.rsplit(" ", 1)[1]) < 1e-20
    assert figures(votes(0, 4), [WinRate("DiVA")])[0].value == 0.0


def test_votes_that_are_no_study_of_two():
    with pytest.raises(UserError, match=r"votes are for DiVA, Qwen2-Audio: .* name=diva"):
        WinRate("diva").measure(votes(1, 1))
    with pytest.raises(Unavailable, match="nobody"):
        WinRate("DiVA").measure(votes(0, 0, neither=2))


def test_sign_test():
    assert sign_test(5, 5) == pytest.approx(1.0)
    assert sign_test(6, 0) == pytest.approx(2 / 2**6)
    with pytest.raises(ValueError, match="no votes"):
        sign_test(0, 0)


# ---- what a failed answer counts as


def test_a_failed_line_of_a_file_need_not_say_what_is_right():
    """references=file: what was right where an answer failed is not known. It is wrong in accuracy, out of F1."""
    of = [
        Answer("a", "Yes", ("true",)),
        Answer("b", "Yes", ("false",)),
        Answer("c", None),
        Answer("d", "No", ("false",)),
    ]
    f1, accuracy = figures(of, [F1(YES_NO, "Yes"), Accuracy(YES_NO)])
    assert (f1.value, f1.n, f1.errors) == (pytest.approx(2 / 3), 3, 1)
    assert (accuracy.value, accuracy.n, accuracy.errors) == (2 / 4, 4, 1)
    assert f1.note == "what is right is not known of 1 failed answers, which are not scored"
    (weighted,) = figures(of, [WeightedF1(YES_NO, "false")])
    assert (weighted.value, weighted.n) == (pytest.approx((1 * 2 / 3 + 2 * 2 / 3) / 3), 3)


def test_a_failed_answer_among_recorded_scores_is_wrong_in_accuracy_and_out_of_means():
    of = [Answer("a", "Yes", score=1.0), Answer("b", "No", score=0.0), Answer("c", None), Answer("d", None)]
    (accuracy,) = figures(of, [Accuracy({"A": "a", "B": "b", "C": "c"}, "c")])
    assert (accuracy.value, accuracy.n, accuracy.errors) == (1 / 4, 4, 2)
    assert accuracy.wilson is not None
    for metric in (Pedants(), SentenceBleu("de")):
        (figure,) = figures(of, [metric])
        assert (figure.value, figure.n, figure.errors) == (1 / 2, 2, 2)


def test_a_mean_that_happens_to_be_zero_is_no_share():
    """BLEU goes to 100: zero everywhere says nothing of how many sentences are right."""
    of = answers(*[("nichts", "ein guter Tag im Mai")] * 8)
    bleu, exact = figures(of, [SentenceBleu("de"), ExactMatch()])
    assert (bleu.value, bleu.wilson) == (0.0, None)
    assert exact.wilson is not None
    assert figures([Answer(str(i), "x", score=0.0) for i in range(8)], [Pedants()])[0].wilson is None


def test_groups_are_scored_by_themselves():
    of = [
        Answer("a", "Paris", ("Paris",), group="awb"), Answer("b", "Rome", ("Paris",), group="awb"),
        Answer("c", "Bern", ("Bern",), group="slt"),
    ]  # fmt: skip
    groups = by_group(of, [ContainsAnswer()])
    assert {name: figure["value"] for name, figure in groups.items()} == {"awb": 0.5, "slt": 1.0}
