"""One row of a batch: its tokens become text, its sampling stays its own, it ends when its client says so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from diva.serving.protocol import Completion, Sampling

_INCOMPLETE = "�"  # what a decoder puts for the first bytes of a character


@dataclass
class Job:
    """A request that waits for its place in a batch."""

    chat: list[dict]  # messages for DivaProcessor, each clip a waveform [S] at 16 kHz
    prompt_tokens: int  # virtual tokens included
    windows: int  # of up to 30 s, over all clips
    window_samples: int  # the longest window's
    max_tokens: int
    stop: Sequence[str]
    sampling: Sampling | None  # None: greedy
    stream: bool
    # Called in the worker's thread with pieces of the text (only of a stream), then once with the end.
    deliver: Callable[[str | Completion | Exception], Any] = field(repr=False)
    cancelled: bool = False  # set by whoever waits for the answer, read by the worker


class RowText:
    """Token ids in, text out, in pieces that end neither inside a character nor inside a stop string.

    The pieces together are what the tokenizer makes of all ids, up to the first stop string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        self._start = self._read = 0  # ids[start:read] is text already; it gives what follows its context
        self.text = ""
        self._released = 0  # characters
        self.stopped = False

    def push(self, token: int, last: bool = False) -> str:
        """The piece that can be shown now that `token` is here; everything that is left if it is the last."""
        self._ids.append(token)
        context = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        if last or not text.endswith(_INCOMPLETE):
            self._start, self._read = self._read, len(self._ids)
            self.text += text[len(context) :]
        found = [at for stop in self._stop if (at := self.text.find(stop, self._released)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        held = 0 if last or self.stopped else self._may_become_stop()
        piece = self.text[self._released : len(self.text) - held]
        self._released += len(piece)
        return piece

    def _decode(self, ids: list[int]) -> str:
        # transformers' clean-up of spaces looks across pieces; the text is what the model wrote.
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _may_become_stop(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
        return max(lengths, default=0)


class Row:
    """What has become of a job so far."""

    def __init__(self, job: Job, tokenizer: PreTrainedTokenizerBase, end_tokens: set[int]):
        self.job = job
        self._text = RowText(tokenizer, job.stop)
        self._end_tokens = end_tokens
        self._tokens = 0
        self._ended = False

    @property
    def done(self) -> bool:
        return self._ended or self.job.cancelled

    def push(self, token: int) -> None:
        """Take the next token, and hand its text or the whole answer on."""
        self._tokens += 1
        at_end = token in self._end_tokens
        last = at_end or self._tokens >= self.job.max_tokens
        piece = self._text.push(token, last)
        if self.job.stream and piece:
            self.job.deliver(piece)
        if last or self._text.stopped:
            self._ended = True
            reason: Literal["stop", "length"] = "stop" if at_end or self._text.stopped else "length"
            self.job.deliver(Completion(self._text.text, reason, self.job.prompt_tokens, self._tokens))


class RowEnds(StoppingCriteria):
    """Hands each row its new token, and ends the generation when no row wants another.

    A criterion rather than a streamer: it sees the tokens of the whole batch before transformers decides
    whether to go on, so a row's end counts in the step in which it happens.
    """

    def __init__(self, rows: Sequence[Row]):
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Ids so far [B, L] -> which rows are done, [B] of bool."""
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if not row.done:
                row.push(token)
        return torch.tensor([row.done for row in self._rows], device=input_ids.device)


class RowSampling(LogitsProcessor):
    """Each row's own temperature, top_p and seed inside a greedy generation.

    argmax(logits + Gumbel noise) is a draw from softmax(logits) (Maddison et al. 2014, arXiv:1411.0030), so
    greedy rows and sampled ones share a batch, and a seed gives the same answer in any company.
    """

    def __init__(self, jobs: Sequence[Job], device: torch.device):
        self._sampled: list[tuple[int, Sampling, torch.Generator]] = []
        for number, job in enumerate(jobs):
            if job.sampling is None:
                continue
            generator = torch.Generator(device)
            if job.sampling.seed is None:
                generator.seed()
            else:
                generator.manual_seed(job.sampling.seed)
            self._sampled.append((number, job.sampling, generator))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V] -> logits whose largest is each row's token, [B, V]."""
        drawn = scores.clone()
        for number, sampling, generator in self._sampled:
            row = TemperatureLogitsWarper(sampling.temperature)(input_ids, scores[number : number + 1])
            if sampling.top_p < 1:
                row = TopPLogitsWarper(sampling.top_p)(input_ids, row)
            # float64: in float32 the largest noise is cut off where a likely token still matters.
            uniform = torch.rand(row.shape, generator=generator, device=row.device, dtype=torch.float64)
            drawn[number] = (row.double() - (-uniform.log()).log())[0].to(drawn.dtype)
        return drawn
