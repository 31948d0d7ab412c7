"""Tables of results: one metric in a column, differences on the same samples, skipped clips are listed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import METRICS, answers, in_process, write_result

from diva.errors import UserError
from diva.evaluation.reporting.html import page
from diva.evaluation.reporting.tables import Result, gap, tables
from diva.evaluation.rescore import rescore
from diva.evaluation.results import read_results
from diva.evaluation.runner import read_answers, write_answers
from diva.evaluation.samples import Answer
from diva.evaluation.task import Task
from tests.command_line import run

QA = [
    {"_target_": f"diva.evaluation.metrics.{name}"}
    for name in ("Pedants", "TokenF1", "ExactMatch", "ContainsAnswer")
]
PEDANTS = Path(__file__).parents[3] / "experiments/fig2_qa/pedants.py"
CEILING, CASCADE = "text LLM, true transcript (ceiling)", "Whisper, then the LLM (cascade)"


def rows(text: str) -> dict[str, list[str]]:
    """The first table's cells by the first of them."""
    lines = text.split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first: others for first, *others in cells}


# ---- differences


def test_differences_to_ceiling_and_cascade_are_measured_on_the_same_samples(tmp_path):
    write_result(tmp_path / "a", [True] * 8 + [False] * 2, "ceiling", "teacher of x")
    write_result(tmp_path / "b", [True] * 5 + [False] * 5)
    write_result(tmp_path / "c", [False] * 8 + [True] * 2, "cascade", "cascade of x")
    found = rows(tables([tmp_path]))
    assert list(found)[2:] == [CEILING, "diva", CASCADE]
    assert found["spoken_mini_by_voice"][-2:] == ["minus ceiling", "minus cascade"]
    assert found["diva"][0] == "0.500"
    to_ceiling, to_cascade = found["diva"][-2:]
    assert to_ceiling.startswith("-0.300 [-0.600, ")
    assert to_cascade.startswith("+0.300 [-0.")
    assert found[CASCADE][-2].startswith("-0.600 [")
    assert (found[CASCADE][-1], found[CEILING][-2:]) == ("", ["", ""])


def test_the_gap_is_on_the_samples_that_both_have_answered(tmp_path):
    write_result(tmp_path / "a", [True, True, False, None])
    write_result(tmp_path / "b", [True, False, False, True, True])
    found = gap(Result.read(tmp_path / "b"), Result.read(tmp_path / "a"), "contains_answer")
    assert (found.value, found.n) == (pytest.approx(-1 / 3), 3)


def test_every_system_stands_under_the_ceiling_of_its_own_llm(tmp_path):
    """Of those with the same LLM the one named after it; a name alone does not make it that LLM's."""
    for name, right, best in (("small", 2, 4), ("large", 6, 9)):
        reader = {"reader": {"llm": name}}
        write_result(tmp_path / name, [i < right for i in range(10)], system=name, **reader)
        ceiling = [i < best for i in range(10)]
        write_result(tmp_path / f"t {name}", ceiling, "ceiling", f"teacher of {name}", **reader)
    write_result(tmp_path / "namesake", [True] * 10, "ceiling", "teacher of small", reader={"llm": "other"})
    write_result(tmp_path / "tuned", [True] * 3 + [False] * 7, system="tuned", reader={"llm": "large"})
    write_result(tmp_path / "theirs", [True] * 5 + [False] * 5, system="theirs")
    found = rows(tables([tmp_path]))
    assert found[f"{CEILING}, large"][0] == "0.900"
    for system, difference in {"large": "-0.300 [", "small": "-0.200 [", "tuned": "-0.600 ["}.items():
        assert found[system][-2].startswith(difference)
    assert found["theirs"][-2] == ""


def test_the_only_ceiling_is_not_that_of_another_llm(tmp_path):
    write_result(tmp_path / "t", [True] * 4, "ceiling", "teacher of x", reader={"llm": "a"})
    write_result(tmp_path / "x", [True] * 2 + [False] * 2, system="x", reader={"llm": "b"})
    write_result(tmp_path / "y", [True] * 2 + [False] * 2, system="theirs")
    found = rows(tables([tmp_path]))
    assert found["x"][-2] == ""
    assert found["theirs"][-2].startswith("-0.500")


# ---- one metric a column


def scored_answers(scores: list[float] | None, groups: bool = False) -> list[Answer]:
    return [
        Answer(
            str(i), "Paris" if i % 2 else "Rome", ("Paris",), None, f"question {i}",
            "ab"[i // 2 % 2] if groups else None, None if scores is None else scores[i],
        )
        for i in range(8)
    ]  # fmt: skip


def test_different_metrics_never_share_a_column(tmp_path):
    """The system has PEDANTS scores and its ceiling has none: all rows are by what both have."""
    of = scored_answers([0.25] * 8, groups=True)
    write_result(tmp_path / "diva", [], of=of, metrics=QA)
    write_result(tmp_path / "t", [], "ceiling", "teacher of x", of=scored_answers(None, True), metrics=QA)
    results = [Result.read(tmp_path / name) for name in ("diva", "t")]
    assert [result.values["metric"] for result in results] == ["pedants", "token_f1"]
    text = tables([tmp_path])
    found = rows(text)
    assert found["spoken_mini_by_voice"][0] == "token_f1"
    assert [found["diva"][0], found[CEILING][0]] == ["0.500", "0.500"]
    assert found["diva"][-2] == "+0.000 [0.000, 0.000]"
    assert "| diva | 0.500 | 0.500 |" in text.split("| by group")[1]
    assert "token_f1: every row has it; pedants is there for diva alone." in text
    task = Task("t", 1, None, None, "answer", results[0].metrics)
    html = page(results, task, {})
    assert "Right or wrong by token_f1." in html
    assert 'alt="token_f1 of each system"' in html
    write_result(tmp_path / "t", [], "ceiling", "teacher of x", of=of, metrics=QA)
    assert rows(tables([tmp_path]))["spoken_mini_by_voice"][0] == "pedants"


def test_results_without_a_metric_in_common_are_refused(tmp_path):
    unreferenced = [Answer(str(i), "x", score=0.5) for i in range(8)]
    write_result(tmp_path / "a", [], of=unreferenced, metrics=QA)
    write_result(tmp_path / "b", [], system="b", of=scored_answers(None), metrics=QA)
    with pytest.raises(UserError, match=r"no metric is there for all \(diva has pedants, b has token_f1\)"):
        tables([tmp_path])


def test_a_system_that_failed_throughout_has_an_empty_row(tmp_path):
    write_result(tmp_path / "a", [None] * 4, system="broken")
    write_result(tmp_path / "b", [True] * 4)
    found = rows(tables([tmp_path]))
    assert found["broken"] == ["", "", "0", "4", "", ""]
    assert found["diva"][:4] == ["1.000", "[0.510, 1.000]", "4", "0"]


# ---- notes below the tables


def test_clips_that_the_corpus_skipped_are_named(tmp_path):
    write_result(tmp_path, [True, False], skipped={"missing file": 12, "empty text": 1})
    said = "Skipped by the corpus, for every system: 13 clips (12 missing file, 1 empty text)."
    assert said in tables([tmp_path])


def test_bars_are_escaped(tmp_path):
    write_result(tmp_path, [True] * 4, system="a|b")
    assert "| a\\|b | 1.000 | [0.510, 1.000] | 4 |" in tables([tmp_path])


def test_results_of_other_data_or_tasks_do_not_share_a_table(tmp_path):
    write_result(tmp_path / "a", [True, False], "ceiling")
    write_result(tmp_path / "b", [True, False], data_hash="3")
    with pytest.raises(UserError, match="data_hash differs"):
        tables([tmp_path])


def test_no_results_are_no_table(tmp_path):
    with pytest.raises(UserError, match=r"no results"):
        tables([tmp_path])


# ---- PEDANTS, in an environment of its own


JUDGE = """
class PEDANT:
    def get_scores(self, references, said, question):
        assert question.startswith("question ")
        return {r: {said: 0.9 if r in said else 0.2} for r in references}
"""


@pytest.fixture
def judged(tmp_path) -> Path:
    """Results of a system and of its ceiling without PEDANTS scores, and a judge in place of qa-metrics."""
    of = [
        *scored_answers(None)[:6],
        Answer("6", "", ("Paris",), None, "question 6"),
        Answer("7", None, ("Paris",), "x", "q"),
    ]
    write_result(tmp_path / "results/diva", [], of=of, metrics=QA)
    write_result(tmp_path / "results/t", [], "ceiling", "teacher of x", of=scored_answers(None), metrics=QA)
    write_result(tmp_path / "results/mini", [True], task="mini", metrics=METRICS)
    (tmp_path / "site/qa_metrics").mkdir(parents=True)
    (tmp_path / "site/qa_metrics/__init__.py").touch()
    (tmp_path / "site/qa_metrics/pedant.py").write_text(JUDGE)
    return tmp_path


def give_scores(folder: Path) -> subprocess.CompletedProcess:
    """The script as a user runs it, with nothing of this environment but the interpreter."""
    return subprocess.run(
        [sys.executable, "-S", str(PEDANTS), str(folder / "results")], capture_output=True, text=True,
        env={"PYTHONPATH": str(folder / "site")}, check=False,
    )  # fmt: skip


@pytest.mark.integration
def test_pedants_scores_come_back_and_lead_the_table(judged, shared_cache):
    done = give_scores(judged)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2
    answers_ = {a.id: a.score for a in read_answers(judged / "results/diva/samples.jsonl")}
    assert answers_ == {"0": 0.2, "1": 0.9, "2": 0.2, "3": 0.9, "4": 0.2, "5": 0.9, "6": 0.0, "7": None}
    untouched = read_results(judged / "results/mini")
    again = run("diva.evaluation.rescore", str(judged / "results"), cache=shared_cache, cwd=judged)
    assert again.returncode == 0, again.stderr
    assert "diva on spoken_mini_by_voice: pedants 0.471, n 7, 1 failed" in again.stdout
    values = read_results(judged / "results/diva")
    assert (values["metric"], values["value"], values["data_hash"]) == (
        "pedants",
        pytest.approx(3.3 / 7),
        "data",
    )
    assert read_results(judged / "results/mini") == untouched | {"scored_by": values["scored_by"]}
    found = rows(tables([judged / "results/diva", judged / "results/t"]))
    assert found["spoken_mini_by_voice"][0] == "pedants"
    # On the seven that both have answered: 3.3 against 3 of 0.9 and 4 of 0.2.
    assert found["diva"][-2].startswith(f"{(3.3 - 3.5) / 7:+.3f} [")
    assert give_scores(judged).stdout == "no answer waits for a score\n"


def test_scores_that_are_there_are_kept_and_new_answers_get_theirs(judged):
    file = judged / "results/t/samples.jsonl"
    of = read_answers(file)
    write_answers(file, [Answer("0", "Rome", ("Paris",), None, "question 0", score=0.5), *of[1:]])
    assert give_scores(judged).returncode == 0
    assert [a.score for a in read_answers(file)][:2] == [0.5, 0.9]


def test_without_the_package_it_is_one_line(judged):
    (judged / "site/qa_metrics/pedant.py").unlink()
    done = give_scores(judged)
    assert done.returncode == 2
    assert done.stderr.startswith("pedants: qa-metrics cannot be imported")
    (judged / "site/qa_metrics/pedant.py").write_text("class PEDANT:\n def __init__(self): open('gone')\n")
    assert "its first use fetches it from GitHub" in give_scores(judged).stderr


def test_there_is_nothing_to_rescore(tmp_path):
    with pytest.raises(UserError, match=r"no results\.json below"):
        rescore([tmp_path])


# ---- votes


def test_votes_of_people_are_a_task(tmp_path, capsys):
    """As configs/task/user_study.yaml and fig6 have it."""
    file = tmp_path / "votes.jsonl"
    votes = ["DiVA"] * 7 + ["Qwen2-Audio"] * 3 + [None]
    file.write_text("".join(json.dumps({"id": str(i), "prediction": v}) + "\n" for i, v in enumerate(votes)))
    asked = [
        "task=user_study",
        "system=predictions",
        f"predictions={file}",
        "name=DiVA",
        f"folder={tmp_path}",
    ]
    (folder,) = in_process([*asked, "references=file", "report=html"], "predictions")
    values = read_results(folder)
    assert (values["metric"], values["value"], values["n"], values["errors"]) == ("win_rate", 0.7, 10, 1)
    text = capsys.readouterr().out
    assert list(rows(text))[2:] == ["DiVA"]
    assert "win_rate: 7 of 10 votes against Qwen2-Audio; sign test p = 0.34" in text
    with pytest.raises(UserError, match=r"no clips to ask about: predictions=FILE references=file"):
        in_process(asked, "predictions")
    # Another study has other votes, and a table of its own.
    write_result(
        tmp_path / "b", [], task="user_study", system="other", of=answers([True]), config=values["config"]
    )
    assert tables([folder, tmp_path / "b"]).count("| user_study |") == 2
