"""The page of `diva.demo`: the model answers speech, and the text teacher answers the transcript beside it."""

import html
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from diva.audio.decoding import to_waveform
from diva.errors import AudioFault, UserError
from diva.models.load import load_model
from diva.models.modeling import DivaForConditionalGeneration
from diva.plots.curves import finished_runs
from diva.serving.held_out import about, held_out_clips

MAY_NOT_HAVE_UNDERSTOOD = "⚠ may not have understood"
GREEDY = {"do_sample": False, "max_new_tokens": 128}
# How often old files of clips are deleted, and at what age. All are deleted when the demo ends.
_CLIP_FILES_SECONDS = (3600, 86_400)
# Hides Gradio's buttons that send a clip to the hub. White space of answers is preserved; the player inherits that
# and would be ten lines high.
CSS = """
button[aria-label="Share"] { display: none; }
.minimal-audio-player { white-space: normal; }
"""


@dataclass
class Turn:
    """One question and its answers."""

    clip: str  # file, for the page's player
    waveform: np.ndarray  # [S], 16 kHz
    instruction: str = ""
    transcript: str = ""  # empty if the user gave none
    spoken: str = ""  # the model's answer to the clip
    read: str = ""  # the text teacher's answer to the transcript
    doubt: str = ""  # why the model may not have understood the clip


class Demo:
    """The event handlers of the page, and the one model that is in memory.

    `parts` are the arguments `llm`, `encoder` and `encoder_dtype` for loading the model `named` (`load_model`).
    """

    def __init__(self, named: str | None = None, **parts: str | None) -> None:
        self.named = named
        self.parts = parts
        self.name: str | None = None
        self.model: DivaForConditionalGeneration | None = None
        self._clips = tempfile.TemporaryDirectory(prefix="diva-demo-")

    def load(self, name: str) -> DivaForConditionalGeneration:
        """The model of this run, export or hub id. Raises UserError if there is none."""
        if self.model is None or name != self.name:
            self.model = None  # frees memory for the next model
            self.name, self.model = name, load_model(name, **(self.parts if name == self.named else {}))
        return self.model

    def switch(self, name: str) -> tuple:
        """Load another model and start a new conversation, because the answers so far are not the new model's.

        Returns the conversation, its two views, and what the page shows of the model's training.
        """
        return [], [], [], *self.training(name)

    def training(self, name: str) -> tuple[str, gr.Dataset]:
        """What the page shows of the training of a model: one line, and held-out clips to click on."""
        try:
            model = self.load(name)
        except UserError as error:
            warn(error)
            return "", gr.Dataset(samples=[], sample_labels=[], visible=False)
        folder = Path(tempfile.mkdtemp(dir=self._clips.name))
        clips = held_out_clips(name, folder)
        labels = [transcript for _, transcript in clips]
        return about(model.config.trained_on), gr.Dataset(
            samples=clips, sample_labels=labels, visible=bool(clips)
        )

    def ask(
        self, name: str, clip: str | None, instruction: str, transcript: str, turns: list[Turn]
    ) -> Iterator[tuple]:
        """Answer the clip as the next turn. Without a clip, the teacher reads the transcript of the last turn.

        Yields the conversation, its two views on the page, and new values of the fields for clip and transcript.
        """
        try:
            yield from self._ask(self.load(name), clip, instruction.strip(), transcript.strip(), turns)
        except UserError as error:
            warn(error)
            yield (gr.skip(),) * 5  # without it, all five would be emptied

    def _ask(
        self,
        model: DivaForConditionalGeneration,
        clip: str | None,
        instruction: str,
        transcript: str,
        turns: list[Turn],
    ) -> Iterator[tuple]:
        if clip:
            turns = [*turns, hear(model, clip, instruction, transcript)]
            yield turns, spoken(turns), read(turns), None, ""
            for piece in stream(model, messages(turns)):
                turns[-1].spoken += piece
                yield turns, spoken(turns), gr.skip(), gr.skip(), gr.skip()
        elif turns and transcript:
            turns[-1].transcript, turns[-1].read = transcript, ""
            yield turns, gr.skip(), read(turns), gr.skip(), ""
        else:
            raise UserError("there is no question yet: record one, or choose an audio file")
        if turns[-1].transcript:
            for piece in stream(model, messages(turns, reading=True)):
                turns[-1].read += piece
                yield turns, gr.skip(), read(turns), gr.skip(), gr.skip()


def hear(model: DivaForConditionalGeneration, clip: str, instruction: str, transcript: str) -> Turn:
    """The next turn. Raises AudioFault, with the user's name of the file, if the clip cannot be used."""
    try:
        waveform = to_waveform(clip, max_seconds=model.processor.max_audio_seconds)
    except AudioFault as fault:
        raise AudioFault(fault.reason, fault.detail.replace(clip, Path(clip).name)) from fault
    return Turn(clip, waveform, instruction, transcript, doubt=doubt(model, waveform))


def doubt(model: DivaForConditionalGeneration, waveform: np.ndarray) -> str:
    """A note if the virtual tokens of a clip are far from token embeddings; empty if not, or without a threshold."""
    threshold = model.config.hearing_threshold
    if threshold is None:
        return ""
    distance = model.hearing_distance(waveform)
    if distance <= threshold:
        return ""
    return f"{MAY_NOT_HAVE_UNDERSTOOD} (distance {distance:.2f}, above {threshold:.2f})"


def stream(model: DivaForConditionalGeneration, chat: list[dict]) -> Iterator[str]:
    """The pieces of the answer to a chat, as they come."""
    return model.stream(model.processor.apply_chat_template(chat), **GREEDY)


def messages(turns: Sequence[Turn], reading: bool = False) -> list[dict]:
    """The conversation up to the last turn's question, for `DivaProcessor.apply_chat_template`.

    With `reading`, clips are replaced by their transcripts if they have one. That is the text teacher's input.
    """
    chat: list[dict] = []
    for turn in turns:
        question: dict[str, Any] = {"type": "audio", "audio": turn.waveform}
        if reading and turn.transcript:
            question = {"type": "text", "text": turn.transcript}
        instruction = [{"type": "text", "text": f"\n{turn.instruction}"}] if turn.instruction else []
        chat.append({"role": "user", "content": [question, *instruction]})
        chat.append({"role": "assistant", "content": turn.spoken})
    return chat[:-1]


def spoken(turns: Sequence[Turn]) -> list[dict]:
    """The conversation as the page shows it: players for the questions, the model's answers as text."""
    return [
        message
        for turn in turns
        for message in shown({"path": turn.clip}, turn.instruction, turn.spoken, turn.doubt)
    ]


def read(turns: Sequence[Turn]) -> list[dict]:
    """The text teacher's conversation as the page shows it: known transcripts, and its answers to them."""
    return [
        message
        for turn in turns
        if turn.transcript
        for message in shown(html.escape(turn.transcript), turn.instruction, turn.read)
    ]


def shown(question: Any, instruction: str, answer: str, doubt: str = "") -> list[dict]:
    """A question and its answer as messages of gr.Chatbot, which would read text as HTML. A doubt comes before."""
    content = [question, html.escape(instruction)] if instruction else [question]
    return [
        {"role": "user", "content": content},
        *([{"role": "assistant", "content": doubt}] if doubt else []),
        {"role": "assistant", "content": html.escape(answer)},
    ]


def warn(error: UserError) -> None:
    """Show the error on the page, instead of a traceback."""
    gr.Warning(html.escape(str(error)), duration=30)


def page(demo: Demo, choices: Sequence[tuple[str, str]]) -> gr.Blocks:
    """The app for a choice of (label, model); the first is selected."""
    with gr.Blocks(title="DiVA", analytics_enabled=False, delete_cache=_CLIP_FILES_SECONDS) as blocks:
        gr.Markdown(
            "# DiVA\nAsk aloud: a frozen text LLM answers, and hears through a small trained adapter."
        )
        run = gr.Dropdown(choices, value=choices[0][1], label="Run", elem_id="run")
        training = gr.Markdown(elem_id="training")
        turns = gr.State([])
        with gr.Row():
            # As plain text, so that an answer is shown exactly as the model wrote it.
            hearing, reading = (
                gr.Chatbot(label=label, elem_id=name, render_markdown=False, buttons=[], height=420)
                for label, name in (("DiVA, hearing", "spoken"), ("Text teacher, reading", "read"))
            )
        with gr.Row():
            clip = gr.Audio(
                sources=["microphone", "upload"], type="filepath", label="Question", elem_id="clip"
            )
            with gr.Column():
                instruction = gr.Textbox(label="Instruction (optional)", placeholder="Reply briefly")
                transcript = gr.Textbox(
                    label="Transcript (optional): what is said, for the text teacher",
                    placeholder="With the question, or afterwards for the last one",
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary")
                    clear = gr.Button("Clear")
        examples = gr.Dataset(
            label="Held-out clips: choose one, then ask",
            components=[gr.Audio(type="filepath", visible=False), gr.Textbox(visible=False)],
            samples=[],
            elem_id="examples",
        )
        examples.click(tuple, examples, [clip, transcript], show_progress="hidden", api_visibility="private")
        # One at a time: they share the model.
        shared: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        asked = gr.on(
            [ask.click, instruction.submit, transcript.submit],
            demo.ask,
            inputs=[run, clip, instruction, transcript, turns],
            outputs=[turns, hearing, reading, clip, transcript],
            show_progress="minimal",
            api_visibility="private",
            **shared,
        )
        conversation = [turns, hearing, reading]
        shown_of_training = [training, examples]
        blocks.load(demo.training, run, shown_of_training, api_visibility="private", **shared)
        run.change(
            demo.switch,
            run,
            [*conversation, *shown_of_training],
            cancels=[asked],
            api_visibility="private",
            **shared,
        )
        gr.on(
            [clear.click, hearing.clear, reading.clear],
            lambda: ([], [], [], None, "", ""),
            outputs=[*conversation, clip, instruction, transcript],
            cancels=[asked],
            api_visibility="private",
        )
    return blocks


def models(named: str | None, runs: Path) -> list[tuple[str, str]]:
    """(label, model) of `--model` and of the finished runs below `runs`, the newest first.

    Raises UserError if there is neither.
    """
    found = [(str(run.relative_to(runs)), str(run)) for run in finished_runs(runs)]
    if not found and named is None:
        raise UserError(f"there is no finished run below {runs}/; train one with: make train")
    return [(named, named), *(choice for choice in found if choice[1] != named)] if named else found
