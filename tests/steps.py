"""Steps and answers of tiny models, to be compared with each other."""

import pytest
import torch
from tiny import noise
from torch import Tensor

from diva.audio.frames import pad_clips
from diva.data.batch import SpeechBatch
from diva.models.modeling import DivaForConditionalGeneration
from diva.training.answers import Continuation
from diva.training.frozen import FrozenParts
from diva.training.losses import Objective
from diva.training.step import loss_sums

Learnt = tuple[list[float], dict[str, Tensor]]


def batch_of(*seconds: float) -> SpeechBatch:
    """Up to three clips of so many seconds, with transcripts of 9, 4 and 6 tokens."""
    waveforms, samples = pad_clips([noise(each, seed) for seed, each in enumerate(seconds)])
    tokens = torch.tensor([9, 4, 6][: len(seconds)])
    ids = torch.randint(3, 300, (len(seconds), 9), generator=torch.Generator().manual_seed(0))
    ids *= torch.arange(9) < tokens.unsqueeze(1)
    names = [str(number) for number in range(len(seconds))]
    return SpeechBatch(waveforms, samples, ids, tokens, torch.arange(len(seconds)), names, waveforms.shape[1])


def both_losses(
    model: DivaForConditionalGeneration, batch: SpeechBatch, after: Continuation | None = None
) -> tuple[Tensor, Tensor]:
    """L_distill and L_align, each summed over the batch."""
    batch = batch.to(model.prefix_ids.device)
    sums = loss_sums(model, FrozenParts(model), batch, Objective(), distills=True, after=after)
    return sums.distill, sums.align


def learn(
    model: DivaForConditionalGeneration, batch: SpeechBatch, after: Continuation | None = None
) -> Learnt:
    """Both losses, and the gradients of all that is trained."""
    model.zero_grad()
    losses = both_losses(model, batch, after)
    sum(losses).backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.requires_grad}
    return [float(loss) for loss in losses], gradients


def assert_same(found: Learnt, expected: Learnt) -> None:
    """The same losses; each gradient within 1e-4 of its own largest value."""
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, gradient in expected[1].items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-4 * largest + 1e-7, msg=name)


def assert_served_alike(model: DivaForConditionalGeneration, chats: list[list[dict]]) -> None:
    """Each chat is answered with the same tokens in a batch, alone, and as a stream."""
    inputs = model.processor.apply_chat_template(chats)
    options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": -1}
    together = model.generate(**inputs, **options)[:, -6:]
    for chat, answer in zip(chats, together, strict=True):
        alone = model.processor.apply_chat_template([chat])
        torch.testing.assert_close(model.generate(**alone, **options)[0, -6:], answer)
        pieces = "".join(model.stream(alone, **options))
        assert pieces == model.processor.tokenizer.decode(answer, skip_special_tokens=True)
