"""One row of a batch, independent of the other rows: its text in pieces, and the choice of its tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from diva.serving.protocol import Completion, Piece, Sampling, TokenLogprob

_INCOMPLETE = "�"  # a decoder's text for the first bytes of an incomplete character


@dataclass
class Job:
    """One answer that waits for its row."""

    chat: list[dict]  # messages for DivaProcessor, each clip a waveform [S] at 16 kHz
    prompt_tokens: int  # virtual tokens included
    windows: int  # of up to 30 s, over all clips
    window_samples: int  # the longest window's
    max_tokens: int
    stop: Sequence[str]
    sampling: Sampling | None  # None: greedy
    stream: bool
    # Called in the worker's thread: for a stream with each piece of the text, then once with the end.
    deliver: Callable[[Piece | Completion | Exception], Any] = field(repr=False)
    repetition_penalty: float | None = None  # None: what the model's generation config says
    logprobs: int | None = None  # how many alternatives to each token; None: no log probabilities
    last_windows: int = 0  # of the last clip
    cancelled: bool = False  # set when nobody waits for the answer any more; read by the worker


class RowText:
    """Token ids in, pieces of text out. A piece does not end inside a character or inside a stop string.

    The pieces together are the tokenizer's text of all ids, up to the first stop string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        self._start = self._read = 0  # ids[start:read] is text already; it is the context for the next ids
        self.text = ""
        self.released = 0  # characters
        self.stopped = False

    def push(self, token: int, last: bool = False) -> str:
        """The text that can be shown after `token`; all the rest of the text if the token is the last."""
        self._ids.append(token)
        context = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        if last or not text.endswith(_INCOMPLETE):
            self._start, self._read = self._read, len(self._ids)
            self.text += text[len(context) :]
        found = [at for stop in self._stop if (at := self.text.find(stop, self.released)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        held = 0 if last or self.stopped else self._may_become_stop()
        piece = self.text[self.released : len(self.text) - held]
        self.released += len(piece)
        return piece

    def _decode(self, ids: list[int]) -> str:
        # Without transformers' clean-up of spaces, which would depend on the pieces and change the model's text.
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _may_become_stop(self) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
        return max(lengths, default=0)


class Choice:
    """How a row chooses its next token: its own processors of logits, temperature, top_k, top_p, min_p and seed.

    A draw is the argmax of logits + Gumbel noise, which is distributed as softmax(logits) (Maddison et al. 2014,
    arXiv:1411.0030). So a seed gives the same answer in any batch.
    """

    def __init__(self, sampling: Sampling | None, processors: LogitsProcessorList, device: torch.device):
        self._processors = LogitsProcessorList([*processors, *_warpers(sampling)])
        self._generator: torch.Generator | None = None
        if sampling is not None:
            self._generator = torch.Generator(device)
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    @property
    def is_plain(self) -> bool:
        """Whether the next token is the argmax of the unchanged logits."""
        return self._generator is None and not self._processors

    def __call__(self, ids: Sequence[int], logits: Tensor) -> int:
        """Ids so far and logits [V] -> the next token."""
        so_far: Any = torch.tensor([ids], device=logits.device)
        scores = self._processors(so_far, logits.unsqueeze(0).clone())[0]
        if self._generator is not None:
            # float64, because float32 limits the largest noise so much that it changes the distribution.
            shape, kind = scores.shape, torch.float64
            uniform = torch.rand(shape, generator=self._generator, device=scores.device, dtype=kind)
            scores = scores.double() - (-uniform.log()).log()
        return int(scores.argmax())


def _warpers(sampling: Sampling | None) -> list:
    """Temperature and filters, in the order of transformers' `generate`."""
    if sampling is None:
        return []
    warpers: list = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers


class Row:
    """The state of a running job."""

    def __init__(self, job: Job, tokenizer: PreTrainedTokenizerBase, end_tokens: set[int]):
        self.job = job
        self.last_token = -1
        self._tokenizer = tokenizer
        self._text = RowText(tokenizer, job.stop)
        self._end_tokens = end_tokens
        self._made = 0  # tokens
        self._ended = False
        self._logprobs: list[tuple[int, TokenLogprob]] = []  # with the place of the token's text
        self.hearing: float | None = None  # hearing distance of the last clip; None without a clip

    @property
    def done(self) -> bool:
        return self._ended or self.job.cancelled

    def begin(self, ids: list[int], choice: Choice) -> None:
        """`ids` are the prompt's token ids, for the repetition penalty."""
        self._ids, self._choice = ids, choice

    def take(self, greedy: int, logits: Tensor) -> None:
        """Choose the next token from the logits [V], whose argmax is `greedy`, and deliver its text or the end."""
        token = greedy if self._choice.is_plain else self._choice(self._ids, logits)
        self.last_token = token
        self._ids.append(token)
        self._made += 1
        at_end = token in self._end_tokens
        last = at_end or self._made >= self.job.max_tokens
        if self.job.logprobs is not None and not at_end:
            self._logprobs.append((len(self._text.text), self._logprob(token, logits)))
        released = self._text.released
        piece = self._text.push(token, last)
        if self.job.stream and piece:
            self.job.deliver(Piece(piece, self._shown(released, self._text.released)))
        if last or self._text.stopped:
            self._ended = True
            reason: Literal["stop", "length"] = "stop" if at_end or self._text.stopped else "length"
            text = self._text.text
            logprobs = self._shown(0, len(text))
            made = self._made
            self.job.deliver(Completion(text, reason, self.job.prompt_tokens, made, logprobs, self.hearing))

    def _logprob(self, token: int, logits: Tensor) -> TokenLogprob:
        """The log probability in the model's own distribution, before penalties and temperature."""
        logprobs = logits.log_softmax(dim=-1)
        top = logprobs.topk(self.job.logprobs or 0)
        others = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        alternatives = [TokenLogprob(self._said(other), value) for other, value in others]
        return TokenLogprob(self._said(token), float(logprobs[token]), alternatives)

    def _said(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))

    def _shown(self, start: int, end: int) -> list[TokenLogprob] | None:
        """The log probabilities of the tokens whose text begins in this part of the answer."""
        if self.job.logprobs is None:
            return None
        return [entry for at, entry in self._logprobs if start <= at < end]
