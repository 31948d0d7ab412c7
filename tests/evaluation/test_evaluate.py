"""The command, in real subprocesses: a tiny export end to end, killed and continued, and files of answers."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import soundfile
from fakes import in_process
from tiny import noise

from diva.config import check_overrides, make
from diva.errors import UserError
from diva.evaluation.evaluate import _asked, evaluate
from diva.evaluation.reporting.tables import tables
from diva.evaluation.results import read_results
from diva.evaluation.runner import SAMPLES, read_answers
from diva.evaluation.systems.local import Diva
from diva.evaluation.systems.others import OpenAIEndpoint
from tests.command_line import command, environment, run


def asking(release: Path, **changes) -> list[str]:
    """Overrides: say what is said, in the tiny release."""
    given = {
        "task.corpus._target_": "diva.data.corpora.common_voice.CommonVoice",
        "task.corpus.root": release,
        "task.split": "train",
        "task.reference": "text",
        "task.max_new_tokens": 16,
        "batch_size": 2,
    } | changes
    return [f"{key}={value}" for key, value in given.items()]


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
        assert values["reader"]["llm"] == values["identity"]["llm"]
        assert values["seconds"] > 0
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


def test_recorded_scores_of_question_answering_are_averaged(tmp_path, capsys):
    file = tmp_path / "usa_outs.txt"
    file.write_text(
        'a[SEP_DIAL]"""x"""[SEP_DIAL]0.25\nb[SEP_DIAL]"""y"""[SEP_DIAL]0.5\n'
        'c[SEP_DIAL]"""ERROR IN PROCESSING"""[SEP_DIAL]NA\nd[SEP_DIAL]"""cut'
    )
    overrides = ["task=sdqa", "system=predictions", f"predictions={file}", "references=file", "name=DiVA"]
    (folder,) = in_process([*overrides, f"folder={tmp_path / 'out'}"], "predictions")
    values = read_results(folder)
    assert (values["metric"], values["value"], values["n"], values["errors"]) == ("pedants", 0.375, 2, 1)
    assert values["skipped"] == {"malformed line": 1}
    assert f"{file}: 1 skipped as malformed: line 4" in capsys.readouterr().err
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
        "defaults: [base]\nname: jokes\nversion: 1\nsplit: test\nreference: funny\nquestion: Is it a joke?\n"
        f"corpus: {{_target_: diva.data.corpora.jsonl.JsonlCorpus, _partial_: true, manifests: '{tmp_path}'}}\n"
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


def test_clips_that_the_corpus_skipped_are_counted(jokes):
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
    before = score(jokes, [1, 0, 1], "task.layout=authors")
    assert before["task_hash"] != plain["task_hash"]
    # Results of before there was a choice stand beside those of the layout that there was.
    written_then = {key: value for key, value in plain["config"]["task"].items() if key != "layout"}
    assert _asked(written_then) == plain["task_hash"]
    moved = score(jokes, [1, 0, 1], f"task.corpus.manifests={{test: '{jokes / 'test.jsonl'}'}}")
    assert (moved["task_hash"], moved["data_hash"]) == (plain["task_hash"], plain["data_hash"])


def test_predictions_with_the_data_have_a_page_with_clips(jokes):
    score(jokes, [1, 0, 1], "report=html")
    (page,) = jokes.glob("out/jokes/*/report.html")
    assert page.read_text().count("<audio") == 3


# ---- who answers beside the system


def test_what_cannot_answer_beside_it_is_said_before_anyone_is_asked(tiny_release, tmp_path, monkeypatch):
    """A model that others serve names no speech recogniser: without whisper= there is no cascade."""
    asked = []
    monkeypatch.setattr(OpenAIEndpoint, "_say", lambda *args: asked.append(args) or "")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    given = [*asking(tiny_release), "system=openai", "system.model=m", "name=m", f"folder={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="whisper=openai/whisper-large-v3 for one beside the system"):
        in_process(given, "openai")
    with pytest.raises(UserError, match="beside=teachers, cascad is unknown; there are teacher and cascade"):
        in_process([*given, "beside=[teachers,cascad]"], "openai")
    assert asked == []
    assert not (tmp_path / "out").exists()
    in_process([*given, "beside=[teacher]"], "openai")
    assert len(asked) == 44  # each of 22, spoken and written, once


@pytest.mark.integration
def test_a_sweep_leaves_nothing_but_results_in_its_folder(predictions, tiny_release, tmp_path, shared_cache):
    out = tmp_path / "results"
    given = [*asking(tiny_release), f"predictions={predictions}", f"folder={out}", "name=a,b"]
    done = run("diva.evaluate", "-m", *given, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = sorted({path.name for path in out.rglob("*") if path.is_file()})
    assert files == ["results.json", "samples.jsonl"]
    assert len(list(out.rglob("results.json"))) == 2


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
