"""The command, in real subprocesses: a tiny export end to end, killed and continued, and files of answers."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import soundfile
from conftest import noise

from diva.cli import check_overrides, make
from diva.errors import UserError
from diva.evaluate import evaluate
from diva.evaluation.results import read_results, write_results
from diva.evaluation.runner import SAMPLES, read_answers, write_answers
from diva.evaluation.samples import Answer
from diva.evaluation.systems import Diva
from diva.evaluation.tables import Result, gap, tables
from tests.command_line import command, environment, run


def asking(release: Path, **changes) -> list[str]:
    """Overrides: say what is said, in the tiny release."""
    given = {
        "task.corpus._target_": "diva.data.common_voice.CommonVoice",
        "task.corpus.root": release,
        "task.split": "train",
        "task.reference": "text",
        "task.max_new_tokens": 16,
        "batch_size": 2,
    } | changes
    return [f"{key}={value}" for key, value in given.items()]


def in_process(overrides: list[str], choice: str) -> list[Path]:
    """As the command does it, without its start."""
    config = check_overrides("evaluate", overrides)
    return evaluate(config, choice)


@pytest.mark.integration
def test_killed_and_continued_it_gives_every_system_its_row(export, tiny_release, tmp_path, shared_cache):
    arguments = [f"system={export}", *asking(tiny_release)]
    process = subprocess.Popen(
        command("diva.evaluate", *arguments), cwd=tmp_path, env=environment(shared_cache),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    folder = tmp_path / "runs/evaluate/spoken_mini_qa"
    while process.poll() is None and not any(file.stat().st_size for file in folder.glob(f"*/{SAMPLES}")):
        time.sleep(0.01)
    process.kill()
    _, said = process.communicate()
    (samples,) = folder.glob(f"diva-*/{SAMPLES}")
    before = samples.read_bytes().split(b"\n")[0]
    assert before, said
    assert not (samples.parent / "results.json").exists()

    done = run("diva.evaluate", *arguments, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert samples.read_bytes().split(b"\n")[0] == before
    answers = read_answers(samples)
    assert len(answers) == 22
    assert len(samples.read_text().splitlines()) == 22

    # What the model says without any of this.
    of = make(check_overrides("evaluate", [*asking(tiny_release), "system.model=x"]).task)
    manifest = of.open()
    clips = {s.id: manifest.waveform(s.row) for s in of.samples(manifest)}
    generate = Diva(str(export)).model.generate
    for answer in answers[:4]:
        assert answer.prediction == generate([clips[answer.id]], max_new_tokens=16)[0].strip()

    found = [read_results(path.parent) for path in folder.glob("*/results.json")]
    assert {values["role"] for values in found} == {"system", "ceiling", "cascade"}
    for values in found:
        assert (values["metric"], values["n"], values["errors"]) == ("contains_answer", 22, 0)
        assert values["interval"][0] <= values["value"] <= values["interval"][1]
        assert values["revision"]
        assert len(values["task_hash"]) == len(values["data_hash"]) == 12
        assert values["config"]["task"]["name"] == "spoken_mini_qa"
    for row in ("ceiling", "diva", "cascade"):
        assert row in done.stdout
    assert tables([folder]).strip() == done.stdout.strip()


@pytest.mark.integration
def test_misspelt_and_missing_things_are_one_line(tmp_path, shared_cache):
    done = run("diva.evaluate", "task=spoken_mini_qaa", "system=teacher", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "diva: there is no task=spoken_mini_qaa; did you mean 'spoken_mini_qa'?"


# ---- files of answers


@pytest.fixture
def predictions(tiny_release, tmp_path) -> Path:
    of = make(check_overrides("evaluate", [*asking(tiny_release), "system.model=x"]).task)
    samples = of.samples(of.open())
    rows = [
        {"id": s.id, "prediction": s.references[0] if i % 2 else "no idea"} for i, s in enumerate(samples)
    ]
    rows[0]["prediction"] = None
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_file_is_scored_against_the_task(predictions, tiny_release, tmp_path, capsys):
    overrides = [*asking(tiny_release), "system=predictions", f"predictions={predictions}", "name=theirs"]
    (folder,) = in_process([*overrides, f"folder={tmp_path / 'out'}"], "predictions")
    values = read_results(folder)
    assert (values["system"], values["value"], values["n"], values["errors"]) == ("theirs", 11 / 21, 21, 1)
    assert values["failures_as_zero"] == pytest.approx(11 / 22)
    table = capsys.readouterr().out
    assert "| text LLM, true transcript (ceiling) | not run |" in table
    assert "| Whisper, then the LLM (cascade) | not run |" in table


def test_a_file_of_another_split_is_refused(predictions, tiny_release, tmp_path):
    overrides = [*asking(tiny_release, **{"task.split": "dev"}), "system=predictions", "name=theirs"]
    with pytest.raises(UserError, match="lacks samples of the task: 6 of them"):
        in_process([*overrides, f"predictions={predictions}", f"folder={tmp_path / 'out'}"], "predictions")


def test_the_authors_lines_are_scored_without_the_data(tmp_path):
    file = tmp_path / "default_outs.txt"
    said = [("Yes", 1)] * 243 + [("Yes", 0)] * 225 + [("No", 0)] * 102 + [("No", 1)] * 120
    file.write_text(
        "".join(f'{i}[SEP_DIAL]"""{s}"""[SEP_DIAL]{score}\n' for i, (s, score) in enumerate(said))
    )
    overrides = ["task=mustard", "system=predictions", f"predictions={file}", "references=file", "name=DiVA"]
    (folder,) = in_process([*overrides, f"folder={tmp_path / 'out'}"], "predictions")
    values = read_results(folder)
    assert (values["metric"], round(values["value"], 4), values["n"]) == ("f1_yes", 0.5978, 690)
    assert round(values["figures"][1]["value"], 4) == 0.5261
    assert values["references"] == "file"


def test_recorded_scores_of_question_answering_are_averaged(tmp_path):
    file = tmp_path / "usa_outs.txt"
    file.write_text(
        'a[SEP_DIAL]"""x"""[SEP_DIAL]0.25\nb[SEP_DIAL]"""y"""[SEP_DIAL]0.5\n'
        'c[SEP_DIAL]"""ERROR IN PROCESSING"""[SEP_DIAL]NA\n'
    )
    overrides = ["task=sdqa", "system=predictions", f"predictions={file}", "references=file", "name=DiVA"]
    (folder,) = in_process([*overrides, f"folder={tmp_path / 'out'}"], "predictions")
    values = read_results(folder)
    assert (values["metric"], values["value"], values["n"], values["errors"]) == ("pedants", 0.375, 2, 1)
    assert "recorded" in values["note"]


# ---- a task with labels, in a folder of its own


@pytest.fixture
def jokes(tmp_path) -> Path:
    """A folder of configs with the task `jokes`: three clips and one whose file is missing."""
    lines = []
    for row, label in enumerate(("true", "false", "true", "true")):
        if row < 3:
            soundfile.write(tmp_path / f"{row}.wav", noise(0.5, row), 16_000)
        lines.append(json.dumps({"audio": f"{row}.wav", "text": f"joke {row}", "funny": label}) + "\n")
    (tmp_path / "test.jsonl").write_text("".join(lines))
    (tmp_path / "configs" / "task").mkdir(parents=True)
    (tmp_path / "configs" / "task" / "jokes.yaml").write_text(
        "defaults: [base]\nname: jokes\nsplit: test\nreference: funny\nquestion: Is it a joke?\n"
        f"corpus: {{_target_: diva.data.jsonl.JsonlCorpus, _partial_: true, manifests: '{tmp_path}'}}\n"
        "labels: {'Yes': 'true', 'No': 'false'}\n"
        "metrics: [{_target_: diva.evaluation.metrics.Accuracy, labels: '${task.labels}'}]\n"
    )
    return tmp_path


def score(jokes: Path, scores: list[int], *overrides: str) -> dict:
    """results.json of a file that answers Yes to each of the three."""
    rows = [{"id": f"{i}.wav", "prediction": "Yes", "score": s} for i, s in enumerate(scores)]
    (jokes / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [
        "task=jokes",
        "system=predictions",
        f"predictions={jokes / 'p.jsonl'}",
        "name=theirs",
        *overrides,
    ]
    config = check_overrides("evaluate", [*given, f"folder={jokes / 'out'}"], str(jokes / "configs"))
    (folder,) = evaluate(config, "predictions")
    return read_results(folder)


def test_clips_that_the_corpus_left_out_are_counted(jokes):
    values = score(jokes, [1, 0, 1])
    assert (values["n"], values["skipped"]) == (3, {"missing file": 1})


def test_recorded_scores_are_checked_against_the_task(jokes):
    with pytest.raises(UserError, match="for 2 of 3 samples"):
        score(jokes, [0, 1, 1])


def test_another_question_is_another_task_and_another_place_is_not(jokes):
    plain = score(jokes, [1, 0, 1])
    other = score(jokes, [1, 0, 1], "task.question=Is it sad?")
    assert other["task_hash"] != plain["task_hash"]
    assert other["data_hash"] == plain["data_hash"]
    moved = score(jokes, [1, 0, 1], f"task.corpus.manifests={{test: '{jokes / 'test.jsonl'}'}}")
    assert (moved["task_hash"], moved["data_hash"]) == (plain["task_hash"], plain["data_hash"])


def test_predictions_with_the_data_have_a_page_with_clips(jokes):
    score(jokes, [1, 0, 1], "report=html")
    (page,) = jokes.glob("out/jokes/*/report.html")
    assert page.read_text().count("<audio") == 3


def test_without_transcripts_there_is_no_ceiling(export, jokes, capsys):
    given = [
        "task=jokes",
        "task.transcript=false",
        f"system.model={export}",
        "name=d",
        f"folder={jokes / 'out'}",
    ]
    config = check_overrides("evaluate", [*given, "beside=[teacher]"], str(jokes / "configs"))
    folders = evaluate(config, "diva")
    assert [read_results(folder)["role"] for folder in folders] == ["system"]
    assert "no ceiling: the data of jokes have no transcripts" in capsys.readouterr().err


# ---- tables


def result(folder: Path, role: str, right: list[bool], **changes) -> None:
    """A results.json with answers, as an evaluation leaves them."""
    task = {"metrics": [{"_target_": "diva.evaluation.metrics.ExactMatch"}]}
    values = {
        "task": "t", "metric": "exact_match", "value": sum(right) / len(right), "interval": None, "wilson": None,
        "n": len(right), "errors": 0, "role": role, "system": role, "groups": {}, "figures": [],
        "task_hash": "1", "data_hash": "2", "config": {"task": task},
    }  # fmt: skip
    write_results(folder, values | changes)
    write_answers(
        folder / SAMPLES, [Answer(str(i), "x" if good else "y", ("x",)) for i, good in enumerate(right)]
    )


def test_the_gap_is_measured_on_the_same_samples(tmp_path):
    result(tmp_path / "a", "ceiling", [True] * 8 + [False] * 2)
    result(tmp_path / "b", "system", [True] * 5 + [False] * 5)
    text = tables([tmp_path])
    assert "| system | 0.500 |  | 10 | 0 | -0.300 [-0.600, " in text
    rows = [line.split(" | ")[0] for line in text.splitlines()[2:]]
    assert rows == ["| text LLM, true transcript (ceiling)", "| system", "| Whisper, then the LLM (cascade)"]


def test_the_gap_is_on_the_samples_that_both_have(tmp_path):
    result(tmp_path / "a", "ceiling", [True, True, False])
    result(tmp_path / "b", "system", [True, False, False, True])
    found = gap(Result.read(tmp_path / "b"), Result.read(tmp_path / "a"))
    assert (found.value, found.n) == (pytest.approx(-1 / 3), 3)


def test_every_system_stands_under_the_ceiling_of_its_own_llm(tmp_path):
    for name, right, best in (("small", [True] * 2, [True] * 4), ("large", [True] * 6, [True] * 9)):
        result(tmp_path / name, "system", right + [False] * (10 - len(right)), system=name)
        ceiling = best + [False] * (10 - len(best))
        result(tmp_path / f"t {name}", "ceiling", ceiling, system=f"teacher of {name}")
    result(tmp_path / "other", "system", [True] * 5 + [False] * 5, system="other")
    text = tables([tmp_path])
    assert "| text LLM, true transcript (ceiling), large | 0.900 |" in text
    assert "| text LLM, true transcript (ceiling), small | 0.400 |" in text
    assert "| large | 0.600 |  | 10 | 0 | -0.300 [" in text
    assert "| small | 0.200 |  | 10 | 0 | -0.200 [" in text
    assert "| other | 0.500 |  | 10 | 0 |  |" in text


def test_a_share_is_shown_with_its_wilson_interval_and_bars_are_escaped(tmp_path):
    result(tmp_path, "system", [True] * 4, system="a|b", interval=(1.0, 1.0), wilson=(0.51, 1.0))
    assert "| a\\|b | 1.000 | [0.510, 1.000] | 4 |" in tables([tmp_path])


def test_results_of_other_data_or_tasks_do_not_share_a_table(tmp_path):
    result(tmp_path / "a", "ceiling", [True, False])
    result(tmp_path / "b", "system", [True, False], data_hash="3")
    with pytest.raises(UserError, match="data_hash differs"):
        tables([tmp_path])


def test_no_results_are_no_table(tmp_path):
    with pytest.raises(UserError, match="no results"):
        tables([tmp_path])
