"""Answer spoken questions: `python -m diva.generate MODEL clip.wav [clip2.wav ...] [--prompt TEXT]`.

MODEL is a run directory, an export or a hub id. It prints one response per line, in the order of the clips. A damaged
clip is named and skipped. Then the exit code is 2.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diva.command import add_parts, count, exit_codes, quieten
from diva.errors import AudioFault
from diva.terminal import track

if TYPE_CHECKING:
    import numpy as np

    from diva.models.modeling import DivaForConditionalGeneration

_SAMPLE_RATE = 16_000


@dataclass
class Question:
    """A clip of the command line, and its result."""

    clip: str
    waveform: "np.ndarray | None" = None  # [S]
    answer: str | None = None
    error: str | None = None

    @property
    def seconds(self) -> float:
        return 0.0 if self.waveform is None else len(self.waveform) / _SAMPLE_RATE


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    from diva.models.load import load_model  # after --help: it imports torch

    quieten()
    model = load_model(
        arguments.model, arguments.dtype, arguments.llm, arguments.encoder, arguments.encoder_dtype
    )
    questions = [listen(model, clip) for clip in arguments.clips]
    limits = {"max_new_tokens": arguments.max_new_tokens, "do_sample": False}
    try:
        if arguments.stream:
            for question in questions:
                stream(model, question, arguments, limits)
        else:
            answer(model, questions, arguments, limits)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has closed it, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if any(question.error for question in questions):
        sys.exit(2)


def listen(model: "DivaForConditionalGeneration", clip: str) -> Question:
    from diva.audio.decoding import to_waveform

    try:
        return Question(clip, to_waveform(clip, max_seconds=model.processor.max_audio_seconds))
    except AudioFault as fault:
        print(f"diva: skipped {clip}: {fault}", file=sys.stderr)
        return Question(clip, error=str(fault))


def chat(question: Question, arguments: argparse.Namespace) -> list[dict]:
    """The messages: the system message, then a user turn with the clip and the prompt as text."""
    content = [{"type": "audio", "audio": question.waveform}]
    if arguments.prompt:
        content.append({"type": "text", "text": f"\n{arguments.prompt}"})
    system = [{"role": "system", "content": arguments.system}] if arguments.system else []
    return [*system, {"role": "user", "content": content}]


def answer(
    model: "DivaForConditionalGeneration",
    questions: Sequence[Question],
    arguments: argparse.Namespace,
    limits: dict,
) -> None:
    """Answer clips of similar length together, and print the answers in the order of the clips."""
    batches = list(by_length([q for q in questions if not q.error], arguments.batch_size))
    for batch in track(batches, "answering", transient=True):
        inputs = model.processor.apply_chat_template([chat(q, arguments) for q in batch]).to(model.device)
        ids = model.generate(**inputs, **limits)[:, inputs["input_ids"].shape[1] :]
        texts = model.processor.batch_decode(ids, skip_special_tokens=True)
        for question, text in zip(batch, texts, strict=True):
            question.answer = text
    for question in questions:
        if arguments.json:
            print(as_json(record(question)))
        elif question.answer is not None:
            print(" ".join(question.answer.split()))


def by_length(questions: Sequence[Question], batch_size: int) -> Iterator[list[Question]]:
    ordered = sorted(questions, key=lambda question: question.seconds)
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def stream(
    model: "DivaForConditionalGeneration", question: Question, arguments: argparse.Namespace, limits: dict
) -> None:
    """Print one answer while it is generated: its text, or with --json a line per piece and one for the whole."""
    if question.error is None:
        question.answer = ""
        inputs = model.processor.apply_chat_template([chat(question, arguments)])
        for piece in model.stream(inputs, **limits):
            question.answer += piece
            text = as_json({"clip": question.clip, "piece": piece}) + "\n"
            print(text if arguments.json else piece.replace("\n", " "), end="", flush=True)
    if arguments.json:
        print(as_json(record(question)), flush=True)
    elif question.error is None:
        print(flush=True)


def as_json(values: dict) -> str:
    """One line of JSON. Characters that the terminal lacks are written as JSON escapes."""
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    return json.dumps(values, ensure_ascii=encoding != "utf8")


def record(question: Question) -> dict:
    if question.error:
        return {"clip": question.clip, "error": question.error}
    return {"clip": question.clip, "seconds": round(question.seconds, 2), "answer": question.answer}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="diva.generate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a run directory, its export/ folder or a hub id")
    parser.add_argument("clips", nargs="+", help="audio files in any format that libsndfile reads")
    parser.add_argument("--prompt", help="text after the speech in the user's turn, such as 'Reply briefly'")
    parser.add_argument("--system", help="a system message, in place of the one of the training")
    parser.add_argument("--stream", action="store_true", help="print each answer while it is made")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--max-new-tokens", type=count, default=128)
    parser.add_argument("--batch-size", type=count, default=16, help="clips answered together")
    parser.add_argument("--dtype", help="precision of the frozen parts; float32 on a CPU unless given")
    add_parts(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
