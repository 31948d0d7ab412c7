"""The page of `python -m diva.demo` in a real browser, and what it gives the model."""

import html
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from browser import launched
from command_line import command, environment, run
from omegaconf import OmegaConf
from playwright.sync_api import Browser, Locator, Page, expect
from safetensors.torch import load_file, save_file
from tiny import noise

from diva.audio.decoding import to_waveform
from diva.data.corpora.common_voice import CommonVoice
from diva.errors import UserError
from diva.generate import Question, chat
from diva.models.load import load_model
from diva.serving.demo import GREEDY, MAY_NOT_HAVE_UNDERSTOOD, Demo, Turn, messages, models, shown, spoken
from diva.training.hearing import add_to_config

SECONDS = 120  # for a page on a machine that has other work


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Clips: sound, other sound, damaged, silent; and what the fake microphone hears."""
    folder = tmp_path_factory.mktemp("demo")
    soundfile.write(folder / "clip.wav", noise(1.3, 7), 16_000)
    soundfile.write(folder / "other.wav", noise(0.9, 8), 44_100)
    soundfile.write(folder / "silent.wav", 0 * noise(1.0, 0), 16_000)
    soundfile.write(folder / "microphone.wav", noise(12.0, 9), 48_000)
    (folder / "damaged.wav").write_text("no audio")
    return folder


@pytest.fixture(scope="module")
def runs(export, folder, tiny_release) -> Path:
    """Two finished runs, of which `new` ended last, and one that has not ended. The corpus of `new` is there."""
    for age, name in ((60, "old"), (0, "new")):
        shutil.copytree(export, folder / "runs" / "mini" / name / "export")
        summary = folder / "runs" / "mini" / name / "summary.json"
        summary.write_text("{}")
        os.utime(summary, (time.time() - age,) * 2)
    weights = folder / "runs/mini/old/export/model.safetensors"
    state = load_file(weights)
    torch.manual_seed(11)
    torch.nn.init.normal_(state["projection.weight"])
    save_file(state, weights, metadata={"format": "pt"})
    (folder / "runs" / "mini" / "unfinished").mkdir()
    corpus = {"_target_": "diva.data.corpora.common_voice.CommonVoice", "root": str(tiny_release)}
    config = {"data": {"root": str(tiny_release), "corpus": corpus, "val_splits": {"val": "dev"}}}
    OmegaConf.save(OmegaConf.create(config), folder / "runs/mini/new/config.yaml")
    add_to_config(
        folder / "runs/mini/new/export", trained_on={"corpus": "common_voice", "clips": 22, "words": 43}
    )
    return folder / "runs"


# ---- what the model is given


def test_choices_are_the_finished_runs_newest_first(runs, tmp_path):
    new, old = str(runs / "mini/new"), str(runs / "mini/old")
    assert models(None, runs) == [("mini/new", new), ("mini/old", old)]
    assert models(old, runs) == [(old, old), ("mini/new", new)]
    assert models("org/name", tmp_path) == [("org/name", "org/name")]
    with pytest.raises(UserError, match="make train"):
        models(None, tmp_path)


def test_an_instruction_means_what_it_means_to_generate():
    clip = noise(0.5, 1)
    arguments = SimpleNamespace(prompt="Be brief.", system=None)
    (turn,) = messages([Turn("clip.wav", clip, "Be brief.")])
    (asked,) = chat(Question("clip.wav", clip), arguments)
    assert turn["content"][1] == asked["content"][1]
    assert turn["content"][0]["audio"] is asked["content"][0]["audio"]


def test_the_teacher_reads_where_the_model_hears():
    first = Turn("a.wav", noise(0.5, 1), "", "what is it", "a clip", "words")
    turns = [first, Turn("b.wav", noise(0.5, 2), "Be brief."), Turn("c.wav", noise(0.5, 3), "", "stop")]
    for reading, kinds in ((False, ["audio", "audio", "audio"]), (True, ["text", "audio", "text"])):
        given = messages(turns, reading)
        assert [message["role"] for message in given] == ["user", "assistant"] * 2 + ["user"]
        assert [message["content"][0]["type"] for message in given[::2]] == kinds
        assert given[1]["content"] == "a clip"
    assert given[0]["content"] == [{"type": "text", "text": "what is it"}]


def test_what_is_written_is_shown_as_it_is():
    question, answer = shown("?", "<i>", "1 < 2 & <script>")
    assert question["content"] == ["?", "&lt;i&gt;"]
    assert answer["content"] == "1 &lt; 2 &amp; &lt;script&gt;"


def test_every_turn_is_given_to_the_model(runs, folder):
    demo, name = Demo(), str(runs / "mini/new")
    clips = [str(folder / "clip.wav"), str(folder / "other.wav")]
    *_, (turns, *_) = demo.ask(name, clips[0], "", "", [])
    model = load_model(name)
    assert turns[0].spoken == model.generate([clips[0]])[0]
    assert turns[0].read == ""
    *_, (turns, *_) = demo.ask(name, clips[1], " Be brief. ", " stop\n", turns)

    def answer(second: list[dict]) -> str:
        first = {"role": "user", "content": [{"type": "audio", "path": clips[0]}]}
        said = {"role": "assistant", "content": turns[0].spoken}
        content = [*second, {"type": "text", "text": "\nBe brief."}]
        inputs = model.processor.apply_chat_template([first, said, {"role": "user", "content": content}])
        ids = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
        return model.processor.decode(ids, skip_special_tokens=True)

    assert turns[1].spoken == answer([{"type": "audio", "path": clips[1]}])
    assert turns[1].read == answer([{"type": "text", "text": "stop"}])
    # A transcript that comes later is the last turn's, which is not heard again.
    *_, (later, *_) = demo.ask(name, None, "", "good morning", turns)
    assert [turn.spoken for turn in later] == [turn.spoken for turn in turns]
    assert later[1].read == answer([{"type": "text", "text": "good morning"}])


def test_an_answer_is_marked_only_above_the_threshold(runs, folder):
    demo, name, clip = Demo(), str(runs / "mini/new"), str(folder / "clip.wav")
    distance = demo.load(name).hearing_distance(to_waveform(clip))
    for threshold, marked in ((None, False), (1.01 * distance, False), (0.99 * distance, True)):
        demo.model.config.hearing_threshold = threshold
        *_, (turns, *_) = demo.ask(name, clip, "", "", [])
        _, *answers = spoken(turns)
        assert len(answers) == 1 + marked
        assert answers[-1]["content"] == html.escape(turns[0].spoken)
        if marked:
            assert answers[0]["content"].startswith(f"{MAY_NOT_HAVE_UNDERSTOOD} (distance {distance:.2f}")


# ---- the page


@pytest.fixture(scope="module")
def url(runs, folder, shared_cache) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = command("diva.demo", "--runs", str(runs), "--port", str(port))
    variables = environment(shared_cache) | {"GRADIO_TEMP_DIR": str(folder / "uploads")}
    variables |= {
        "http_proxy": "http://127.0.0.1:9",
        "no_proxy": "",
        "NO_PROXY": "",
    }  # which no one answers at
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(arguments, env=variables, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + SECONDS
        while not re.search("http://.*\n", written := (folder / "log").read_text()):
            assert process.poll() is None, written
            assert time.monotonic() < deadline, f"nothing after {SECONDS} s: {written}"
            time.sleep(0.2)
        assert written == f"diva: mini/new at http://127.0.0.1:{port}\n"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def browser(folder) -> Iterator[Browser]:
    with launched(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}",
    ) as browser:
        yield browser


@pytest.fixture
def page(browser, url, folder) -> Iterator[Page]:
    """The page, which asks nothing of other machines, and whose server has no traceback to show."""
    context = browser.new_context(permissions=["microphone"])
    context.set_default_timeout(1000 * SECONDS)
    page, elsewhere = context.new_page(), []
    page.on("request", lambda request: None if url in request.url else elsewhere.append(request.url))
    page.goto(url)
    yield page
    context.close()
    assert [address for address in elsewhere if not address.startswith(("blob:", "data:"))] == []
    assert "Traceback" not in (folder / "log").read_text()


def upload(page: Page, file: Path) -> None:
    if page.locator("#clip input[type=file]").count() == 0:
        page.get_by_label("Upload file").click()
    page.locator("#clip input[type=file]").set_input_files(file)
    expect(page.locator("#clip input[type=file]")).to_have_count(0, timeout=1000 * SECONDS)


def ask(page: Page) -> None:
    page.get_by_role("button", name="Ask").click()


def answers(page: Page, pane: str) -> Locator:
    return page.locator(f"#{pane} [data-testid=bot]")


def says(bubble: Locator, text: str) -> None:
    """Wait until the bubble holds the text; white space is the page's to choose."""
    deadline = time.monotonic() + SECONDS
    while (found := "".join(bubble.text_content().split())) != "".join(text.split()):
        assert time.monotonic() < deadline, f"{found!r} instead of {text!r}"
        time.sleep(0.1)


@pytest.mark.integration
def test_a_recorded_question_is_answered(page, runs, folder):
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1200)
    page.locator("#clip .stop-button").click()
    page.get_by_test_id("audio-player-Question").wait_for(state="attached")
    ask(page)
    answers(page, "spoken").wait_for(state="attached")
    (recorded,) = (folder / "uploads").glob("**/audio.wav")
    assert 0.5 < len(to_waveform(recorded)) / 16_000 < 10
    says(answers(page, "spoken"), load_model(str(runs / "mini/new")).generate([recorded])[0])


@pytest.mark.integration
def test_a_conversation_with_another_run(page, runs, folder):
    upload(page, folder / "clip.wav")
    ask(page)
    says(answers(page, "spoken"), load_model(str(runs / "mini/new")).generate([folder / "clip.wav"])[0])
    page.get_by_label("Run").click()
    page.get_by_role("option", name="mini/old").click()
    expect(answers(page, "spoken")).to_have_count(0, timeout=1000 * SECONDS)
    demo, old = Demo(), str(runs / "mini/old")
    clip, other = str(folder / "clip.wav"), str(folder / "other.wav")
    *_, (turns, *_) = demo.ask(old, clip, "", "", [])
    *_, (turns, *_) = demo.ask(old, other, "Be brief.", "stop", turns)
    upload(page, folder / "clip.wav")
    ask(page)
    says(answers(page, "spoken"), turns[0].spoken)
    upload(page, folder / "other.wav")
    page.get_by_label("Instruction").fill("Be brief.")
    page.get_by_label("Transcript").fill("stop")
    ask(page)
    expect(answers(page, "read")).to_have_count(1, timeout=1000 * SECONDS)
    says(answers(page, "read"), turns[1].read)
    says(answers(page, "spoken").nth(1), turns[1].spoken)
    page.get_by_role("button", name="Clear", exact=True).last.click()
    expect(answers(page, "spoken")).to_have_count(0, timeout=1000 * SECONDS)
    # Nothing of the old conversation is left: the same clip gets the first answer again.
    upload(page, folder / "clip.wav")
    ask(page)
    says(answers(page, "spoken"), turns[0].spoken)


@pytest.mark.integration
def test_a_held_out_clip_is_asked_by_clicking_on_it(page, runs, folder, tiny_release):
    expect(page.locator("#training")).to_contain_text(
        "22 clips with 43 distinct words", timeout=1000 * SECONDS
    )
    manifest = CommonVoice(tiny_release).manifest("dev")
    page.locator("#examples").get_by_text(manifest.text(2)).click()
    expect(page.get_by_label("Transcript")).to_have_value(manifest.text(2), timeout=1000 * SECONDS)
    page.get_by_test_id("audio-player-Question").wait_for(state="attached")
    ask(page)
    soundfile.write(
        folder / "held_out.wav", manifest.waveform(2), 16_000
    )  # rounded to 16 bits, as the page's clip
    says(answers(page, "spoken"), load_model(str(runs / "mini/new")).generate([folder / "held_out.wav"])[0])
    expect(answers(page, "read")).to_have_count(1)
    page.get_by_label("Run").click()
    page.get_by_role("option", name="mini/old").click()
    expect(page.locator("#training")).to_contain_text("does not say", timeout=1000 * SECONDS)
    expect(page.locator("#examples")).to_be_hidden()


@pytest.mark.integration
def test_an_unreadable_clip_shows_an_error_on_the_page(page, runs, folder):
    ask(page)
    expect(page.get_by_text("there is no question yet")).to_be_visible(timeout=1000 * SECONDS)
    upload(page, folder / "clip.wav")
    ask(page)
    says(answers(page, "spoken"), load_model(str(runs / "mini/new")).generate([folder / "clip.wav"])[0])
    for file, message in (
        ("damaged.wav", "damaged audio: damaged.wav"),
        ("silent.wav", "silence: silent.wav"),
    ):
        upload(page, folder / file)
        ask(page)
        expect(page.get_by_text(message)).to_be_visible(timeout=1000 * SECONDS)
        page.locator("#clip").get_by_label("Clear").click()
    # The conversation is still there, and nothing in the page offers to send a clip elsewhere.
    expect(answers(page, "spoken")).to_have_count(1)
    assert not [button for button in page.get_by_label("Share").all() if button.is_visible()]
    assert page.locator(".minimal-audio-player").bounding_box()["height"] < 60


@pytest.mark.integration
def test_without_a_run_it_names_the_command_that_makes_one(tmp_path, shared_cache):
    done = run("diva.demo", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"diva: there is no finished run below runs/;.* make train\n", done.stderr)
