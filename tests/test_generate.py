"""`python -m diva.generate` on an export, and what `python -m diva.curves` writes."""

import argparse
import json
import os
import subprocess
from pathlib import Path

import pytest
import soundfile
from command_line import command, environment, run
from tiny import noise

from diva.errors import UserError
from diva.generate import chat, listen
from diva.models.load import load_model
from diva.plots.curves import answers, newest_run, results, write_between_marks
from diva.training.metrics_file import MetricsFile


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / f"{number}.wav" for number in range(3)]
    for number, path in enumerate(paths):
        soundfile.write(path, noise(2.0 - 0.6 * number, number), 16_000)
    return paths


@pytest.fixture(scope="module")
def expected(export, clips) -> list[str]:
    model = load_model(str(export))
    answers = [model.generate([clip], max_new_tokens=6)[0] for clip in clips]
    return [" ".join(answer.split()) for answer in answers]


@pytest.mark.integration
def test_one_response_a_line_and_a_damaged_clip_named(export, clips, expected, tmp_path, shared_cache):
    (tmp_path / "damaged.wav").write_text("no audio")
    limit = ("--max-new-tokens", "6")
    arguments = [export, clips[0], tmp_path / "damaged.wav", *clips[1:], *limit]
    done = run("diva.generate", *arguments, cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 2
    assert "damaged.wav" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines() == expected
    done = run("diva.generate", *arguments, "--json", "--stream", cache=shared_cache, cwd=tmp_path)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    whole = [line for line in lines if "piece" not in line]
    assert [" ".join(line["answer"].split()) for line in whole if "answer" in line] == expected
    assert [line["clip"] for line in whole] == [str(clip) for clip in arguments[1:5]]
    assert "damaged audio" in whole[1]["error"]
    first = "".join(line["piece"] for line in lines if "piece" in line and line["clip"] == str(clips[0]))
    assert first == whole[0]["answer"]
    done = run("diva.generate", tmp_path / "nowhere", clips[0], cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("diva:")]) == 1


@pytest.mark.faults
@pytest.mark.integration
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_no_answer_is_lost_to_a_terminal_or_a_name(export, clips, expected, tmp_path, shared_cache, options):
    """A name that is not UTF-8, GSM in a wav, half a clip, a terminal that only has ASCII."""
    odd = tmp_path / os.fsdecode(b"\xe9.wav")
    odd.write_bytes(clips[0].read_bytes())
    soundfile.write(tmp_path / "gsm.wav", noise(1.0, 9), 8_000, subtype="GSM610")
    (tmp_path / "half.wav").write_bytes(clips[1].read_bytes()[:20_000])
    given = [odd, tmp_path / "gsm.wav", tmp_path / "half.wav", clips[2]]
    done = subprocess.run(
        command("diva.generate", export, *given, "--max-new-tokens", "6", *options),
        env=environment(shared_cache) | {"PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "ends early" in done.stderr
    lines = done.stdout.splitlines()
    if options:
        answers = [json.loads(line) for line in lines]
        assert [answer["clip"] for answer in answers] == [str(clip) for clip in given]
        assert [" ".join(answers[at]["answer"].split()) for at in (0, 3)] == [expected[0], expected[2]]
    else:
        escaped = [answer.encode("ascii", "backslashreplace").decode() for answer in expected]
        assert [len(lines), lines[0], lines[2]] == [3, escaped[0], escaped[2]]


@pytest.mark.faults
@pytest.mark.integration
def test_a_closed_pipe_ends_it_quietly(export, clips, shared_cache):
    process = subprocess.Popen(
        command("diva.generate", export, clips[0], "--max-new-tokens", "2"),
        env=environment(shared_cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(200) == 0
    assert "BrokenPipe" not in said


def test_generate_puts_the_prompt_behind_the_clip_and_the_system_before(export, clips):
    model = load_model(str(export))
    options = argparse.Namespace(prompt="Be brief.", system="You are a pirate.")
    messages = chat(listen(model, str(clips[0])), options)
    text = model.processor.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|im_start|>system\nYou are a pirate.<|im_end|>\n"
        "<|im_start|>user\n<|audio|>\nBe brief.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_metrics_file_continues_what_a_killed_run_wrote(tmp_path):
    first = MetricsFile(tmp_path / "metrics.csv")
    for step in range(5):
        first.log_metrics({"train/loss": float(step)}, step)
    resumed = MetricsFile(tmp_path / "metrics.csv")
    resumed.log_metrics({"train/loss": 30.0}, 3)  # its checkpoint was of step 2: steps 3 and 4 come again
    resumed.log_metrics({"val/kl": 0.5}, 3)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,epoch,train/loss,val/kl", "0,,0.0,", "1,,1.0,", "2,,2.0,", "3,,30.0,0.5"]


def test_results_are_those_of_the_summary(tmp_path):
    figures = {"alignment_accuracy": 0.5, "first_token_agreement": 0.25, "kl": 1.5}
    summary = {f"{name}/{key}": value for name in ("val", "val_x") for key, value in figures.items()} | {
        "seconds": 60,
        "clips_per_second": 2.0,
        "clips_in_corpus": {"train": 100, "val": 1200, "val_x": 7},
        "revision": "abc",
        "machine": {"cpu_threads": 2},
        "responses": [{"question": "a|b", "teacher": "yes", "student": "no"}],
    }
    assert "| alignment accuracy | 0.500 | 0.500 |" in results(summary)
    assert "| clips | 1,200 | 7 |" in results(summary)
    assert "| a\\|b | yes | no |" in answers(summary)
    page = tmp_path / "page.md"
    page.write_text("a <!-- answers -->old<!-- /answers --> b <!-- results --><!-- /results --> c")
    for _ in range(2):  # what it has written it finds again
        write_between_marks(page, summary)
        assert page.read_text() == (
            f"a <!-- answers -->\n{answers(summary)}\n<!-- /answers --> b"
            f" <!-- results -->\n{results(summary)}\n<!-- /results --> c"
        )
    page.write_text("<!-- results --> without an end")
    with pytest.raises(UserError, match="no '<!-- /results -->' after it"):
        write_between_marks(page, summary)
    page.write_text("no marks")
    with pytest.raises(UserError, match="no mark to write the results behind"):
        write_between_marks(page, summary)
    with pytest.raises(UserError, match="make train"):
        newest_run(tmp_path)


def test_an_unfinished_run_has_curves_and_no_results(tmp_path, shared_cache):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("step,epoch,train/align\n0,0,2.5\n1,0,2.25\n")
    done = run("diva.curves", "run", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
    done = run("diva.curves", "run", "--into", "docs", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 2
    assert "run has not ended" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("page", "block"), [("README.md", results), ("docs/results.md", answers)])
def test_a_page_shows_the_committed_results(page, block):
    root = Path(__file__).parent.parent
    summary = json.loads((root / "docs" / "mini" / "summary.json").read_text())
    assert block(summary) in (root / page).read_text()
