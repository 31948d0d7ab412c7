"""The HTML page: complete in one file, in a real browser, with any text of the models."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import launched
from fakes import VOICES, write_result
from playwright.sync_api import Browser, Page, expect
from tiny import noise

from diva.config import check_overrides
from diva.errors import AudioFault, UserError
from diva.evaluation.evaluate import evaluate
from diva.evaluation.metrics import F1, Accuracy, ContainsAnswer, CorpusBleu, Pedants, SentenceBleu, TokenF1
from diva.evaluation.reporting.html import SAMPLES_SHOWN, mp3, page
from diva.evaluation.reporting.tables import Result
from diva.evaluation.samples import Answer
from diva.evaluation.task import Task
from tests.command_line import run

EVIL = "</td><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> & \"so\""
YES_NO = {"Yes": "true", "No": "false"}


def task(**fields) -> Task:
    given = {
        "name": "t", "version": 1, "corpus": lambda: None, "split": "test", "reference": "answer",
        "metrics": [ContainsAnswer()],
    }  # fmt: skip
    return Task(**given | fields)


def results(folder: Path, count: int = 30) -> list[Result]:
    """A system that says terrible things and the ceiling, on `count` samples."""
    rows = [
        Answer(f"clip{i}", EVIL if i == 0 else "Paris" if i % 2 else "Rome", ("Paris", "Lutetia <1>"), None,
               f"question {i} & <b>bold</b>", VOICES[i % 4])
        for i in range(count)
    ]  # fmt: skip
    failed = [Answer(a.id, None, a.references, "OutOfMemory: <none>", a.transcript, a.group) for a in rows]
    write_result(folder / "diva", [], system="my <i>system</i>", of=rows, revision="abc")
    write_result(folder / "teacher", [], role="ceiling", system="x", of=[*rows[:1], *failed[1:2], *rows[2:]])
    return [Result.read(folder / name) for name in ("diva", "teacher")]


def damaged() -> np.ndarray:
    raise AudioFault("damaged audio", "<clip> 2")


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def opened(browser, tmp_path) -> Iterator[Page]:
    """The page of `results`, offline; whatever it asks of a network or complains about is an error."""
    listen = {f"clip{i}": lambda i=i: noise(0.5 + i / 20, i) for i in range(30)} | {"clip3": damaged}
    told = task(system_prompt="Be <brief>.", question="Is it?\n& why")
    file = tmp_path / "report.html"
    file.write_text(page(results(tmp_path), told, listen), encoding="utf-8")
    context = browser.new_context(offline=True)
    page_, asked, complaints = context.new_page(), [], []
    page_.on("request", lambda request: asked.append(request.url))
    page_.on("console", lambda message: complaints.append(message.text))
    page_.on("pageerror", lambda error: complaints.append(str(error)))
    page_.goto(file.as_uri())
    yield page_
    context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert complaints == []


@pytest.mark.integration
def test_what_models_say_is_text(opened):
    first = opened.locator("#sample-1")
    assert first.locator("td").nth(1).text_content() == EVIL
    assert first.locator("h3").text_content() == "question 0 & <b>bold</b>"
    assert first.locator(".reference").text_content() == "Paris / Lutetia <1>"
    assert opened.locator("h1").text_content() == "my <i>system</i> on t"
    assert opened.evaluate("window.hacked") is None
    assert opened.locator("script").count() == 0
    expect(opened.get_by_text("System message: Be <brief>.")).to_be_visible()
    expect(opened.get_by_text("Asked after the speech: Is it? & why")).to_be_visible()


@pytest.mark.integration
def test_right_wrong_and_failed_answers_have_different_verdicts(opened):
    assert opened.locator("article").count() == SAMPLES_SHOWN
    first, second = opened.locator("#sample-1 tr"), opened.locator("#sample-2 tr")
    assert [first.nth(i).locator("td").last.text_content() for i in (0, 1)] == ["wrong", "wrong"]
    assert [second.nth(i).locator("td").last.text_content() for i in (0, 1)] == ["right", "failed"]
    assert second.nth(1).locator("td").nth(1).text_content() == "OutOfMemory: <none>"
    assert second.nth(0).locator("td").last.get_attribute("class") == "right"
    expect(opened.get_by_text("Right or wrong by contains_answer.")).to_be_visible()


@pytest.mark.integration
def test_clips_play_and_the_picture_is_there(opened):
    clips = opened.locator("audio")
    assert clips.count() == SAMPLES_SHOWN - 1
    duration = "e => new Promise(done => { const ok = () => done(e.duration); e.onloadedmetadata = ok;"
    duration += " e.onerror = () => done(-1); if (e.readyState) ok(); e.load(); })"
    assert clips.first.evaluate(duration) == pytest.approx(0.5, abs=0.15)
    expect(opened.get_by_text("No clip: damaged audio: <clip> 2")).to_be_visible()
    assert opened.locator("img").evaluate("e => e.complete && e.naturalWidth") > 500
    # The table of systems, and that of voices.
    head = opened.locator("thead")
    assert head.nth(0).locator("th").all_text_contents()[:2] == ["spoken_mini_by_voice", "contains_answer"]
    named, *voices = head.nth(1).locator("th").all_text_contents()
    assert named == "by group"
    assert sorted(voices) == sorted(VOICES)


# ---- what is in it


def test_nothing_in_it_comes_from_elsewhere(tmp_path):
    text = page(results(tmp_path), task(), {"clip0": lambda: noise(0.5, 0)})
    assert "default-src 'none'" in text
    assert "http:" not in text
    assert "https:" not in text
    assert text.count("<audio") == 1
    assert text.count("No clip: the clips are not on this machine") == SAMPLES_SHOWN - 1


def test_samples_are_spread_over_all_of_them(tmp_path):
    text = page(results(tmp_path / "many", 100), task(), {})
    numbers = [int(part.split(" ")[0]) for part in text.split("<h3>question ")[1:]]
    assert len(numbers) == SAMPLES_SHOWN
    assert (numbers[0], numbers[-1]) == (0, 99)
    assert set(np.diff(numbers)) == {4, 5}
    assert page(results(tmp_path / "few", 3), task(), {}).count("<article") == 3


@pytest.mark.parametrize(
    ("metrics", "said", "verdict"),
    [
        ([F1(YES_NO, "Yes"), Accuracy(YES_NO)], "No", "right"),
        ([Pedants(), ContainsAnswer()], "it is false", "right"),
        ([TokenF1()], "false or not", "0.50"),
        ([CorpusBleu("de"), SentenceBleu("de")], "nothing", "wrong"),
        ([CorpusBleu("de")], "false", ""),
    ],
)
def test_the_first_metric_that_judges_each_answer_does(tmp_path, metrics, said, verdict):
    write_result(tmp_path, [], of=[Answer("a", said, ("false",), None, "q")])
    text = page([Result.read(tmp_path)], task(metrics=metrics), {})
    cell = text.split(f"<td>{said}</td>\n<td class=")[1].split("</td>")[0]
    assert cell.split(">")[1] == verdict


def test_long_clips_are_cut():
    short, minute, hour = (len(mp3(noise(seconds, 1))) for seconds in (2.0, 60.0, 63.0))
    assert short < minute / 20
    assert hour == minute


# ---- by the command


def test_the_command_writes_it_beside_the_results(export, tiny_release, tmp_path, capsys):
    overrides = [
        f"system.model={export}", "task.corpus._target_=diva.data.corpora.common_voice.CommonVoice", "name=tiny",
        f"task.corpus.root={tiny_release}", "task.split=dev", "task.reference=text", "task.max_new_tokens=4",
        f"folder={tmp_path}", "beside=[teacher]",
    ]  # fmt: skip
    config = check_overrides("evaluate", [*overrides, "report=html"])
    folder = evaluate(config, "diva")[0]
    said = capsys.readouterr().err
    assert f"report: {folder / 'report.html'}" in said
    text = (folder / "report.html").read_text()
    assert (text.count("<article"), text.count("<audio")) == (6, 6)
    for answer in Result.read(folder).answers.values():
        assert answer.transcript in text
    (folder / "report.html").unlink()
    evaluate(check_overrides("evaluate", overrides), "diva")
    assert not (folder / "report.html").exists()


def test_predictions_without_the_data_have_a_page_without_clips(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"id": "a", "prediction": "Yes", "reference": "true"}\n')
    overrides = [
        "task=mustard",
        "system=predictions",
        f"predictions={file}",
        "name=theirs",
        f"folder={tmp_path}",
    ]
    (folder,) = evaluate(
        check_overrides("evaluate", [*overrides, "references=file", "report=html"]), "predictions"
    )
    assert "No clip: the clips are not on this machine" in (folder / "report.html").read_text()


def test_a_report_of_another_kind_is_an_error_before_anything_is_asked(tmp_path):
    overrides = ["report=pdf", "system.model=x", "name=x", f"folder={tmp_path}"]
    with pytest.raises(UserError, match="report=pdf is unknown; it is html or null"):
        evaluate(check_overrides("evaluate", overrides), "diva")


# ---- a task of one's own, as experiments/README.md has it


@pytest.mark.integration
def test_a_task_of_ones_own_as_the_documentation_has_it(export, tmp_path, shared_cache, monkeypatch):
    import soundfile

    documentation = (Path(__file__).parents[3] / "experiments/README.md").read_text()
    section = documentation.split("## A task of your own")[1]
    for name in ("my_benchmark/test.jsonl", "my_configs/task/three_questions.yaml"):
        block = section.split(f"`{name}`:\n\n```")[1].split("\n", 1)[1].split("```")[0]
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(block)
    for seed, name in enumerate(("france", "spider", "times")):
        soundfile.write(tmp_path / "my_benchmark" / f"{name}.wav", noise(0.8, seed), 16_000)
    command = section.split("```bash\n")[1].split("```")[0].replace("$DIVA_RUN", str(export))
    python, m, module, *arguments = shlex.split(command)
    assert (python, m, module) == ("python", "-m", "diva.evaluate")
    done = run(module, *arguments, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for row in ("| three_questions | contains_answer |", "| diva |", "ceiling", "cascade"):
        assert row in done.stdout
    (page_,) = tmp_path.glob("runs/evaluate/three_questions/diva-*/report.html")
    assert page_.read_text().count("<audio") == 3
    (samples,) = tmp_path.glob("runs/evaluate/three_questions/diva-*/samples.jsonl")
    assert '"references": ["eight", "8"]' in samples.read_text()
