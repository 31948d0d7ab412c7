"""The end of a run: with any transcripts, with any terminal, and with errors in output that it does not depend on."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import command, environment, run
from safetensors.torch import load_file
from tiny import SENTENCES, write_release

pytestmark = [pytest.mark.integration, pytest.mark.faults]
SHORT = ["max_steps=2", "val_every=2", "sample_responses=3", "logger=csv", "objective.distill_from_step=0"]
ODD = ["close the tag [/] now", "[bold]ما هي عاصمة فرنسا", "smile :smile: | or \\[/b] not"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def odd_release(tmp_path_factory) -> Path:
    """Its held-out sentences have rich's markup, Arabic letters and an emoji's name."""
    root = write_release(tmp_path_factory.mktemp("odd"), {"train": 8, "dev": 3})
    dev = root / "en" / "dev.tsv"
    text = dev.read_text()
    for number, odd in enumerate(ODD, start=8):
        text = text.replace(SENTENCES[number], odd)
    dev.write_text(text, encoding="utf-8")
    return root


def responses(folder: Path) -> list[str]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return [row["question"] for row in summary["responses"]]


def test_markup_and_arabic_in_an_ascii_locale(odd_release, tiny_run, shared_cache, tmp_path):
    folder = tmp_path / "run"
    odd = [f"data.root={odd_release}", f"hydra.run.dir={folder}", "name='[/] it'"]
    done = subprocess.run(
        command("diva.train", *tiny_run, *SHORT, *odd),
        env=environment(shared_cache) | ASCII,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert responses(folder) == ODD
    lines = (folder / "responses.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == ["question", *ODD]
    assert ODD[0] in done.stderr
    assert ":smile:" in done.stderr
    assert "# [/] it: a Distilled" in (folder / "export" / "README.md").read_text(encoding="utf-8")
    assert "name: '[/] it'" in (folder / "config.yaml").read_text(encoding="utf-8")


def test_what_decorates_a_run_cannot_end_it(tiny_run, shared_cache, tmp_path):
    """First the process is killed while it answers, its terminal being a full disk; then no answer can be written."""
    folder = tmp_path / "run"
    given = [*tiny_run, *SHORT, f"hydra.run.dir={folder}"]
    killing = "import os, signal, diva.training.results as results\n"
    killing += "results.sample_responses = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    killing += "from diva.train import main; main()"
    with open("/dev/full", "w") as full:
        killed = subprocess.run(
            [sys.executable, "-c", killing, *given], env=environment(shared_cache), cwd=tmp_path, stderr=full
        )
    assert killed.returncode == -signal.SIGKILL
    before = json.loads((folder / "summary.json").read_text())
    assert before["responses"] == []
    assert load_file(folder / "export" / "model.safetensors")
    for file in ("responses.tsv", "export/README.md"):
        (folder / file).mkdir()
    done = run("diva.train", f"resume={folder}", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert [line.partition(" (")[0] for line in warnings] == [
        "warning: no sample responses",
        "warning: no model card",
    ]
    after = json.loads((folder / "summary.json").read_text())
    assert after["val/kl"] == before["val/kl"]
    assert len(after["responses"]) == 3
