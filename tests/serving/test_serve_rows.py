"""A row of a batch: its text in pieces, and how its tokens are drawn."""

import numpy as np
import torch
from tiny import make_tokenizer
from transformers import LogitsProcessorList

from diva.serving.protocol import Sampling
from diva.serving.rows import Choice, RowText


def test_pieces_are_the_text_whatever_bytes_come():
    tokenizer = make_tokenizer()
    rng = np.random.default_rng(0)
    whole = tokenizer("größe 🙂 naïve 日本語")["input_ids"]
    for number in range(200):
        ids = [int(token) for token in rng.integers(0, len(tokenizer), 30)]
        ids = whole if number == 0 else ids
        text = tokenizer.decode(ids, skip_special_tokens=True)
        row = RowText(tokenizer)
        pieces = [row.push(token, last=at == len(ids) - 1) for at, token in enumerate(ids)]
        assert "".join(pieces) == row.text == text
        if number == 0:
            assert not any("�" in piece for piece in pieces)
        stop = [text[10:12], text[8:11]]
        row, pieces = RowText(tokenizer, stop), []
        while not row.stopped:
            pieces.append(row.push(ids[len(pieces)], last=len(pieces) == len(ids) - 1))
        first = min(at for at in map(text.find, stop) if at >= 0)
        assert "".join(pieces) == row.text == text[:first]


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])

    def shares(**sampling) -> torch.Tensor:
        device, none = torch.device("cpu"), LogitsProcessorList()
        drawn = [Choice(Sampling(seed=seed, **sampling), none, device)([0], logits) for seed in range(1000)]
        return torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)

    # 1000 draws: a share has a standard deviation of at most 0.016
    torch.testing.assert_close(shares(temperature=1.0), logits.softmax(0), atol=0.05, rtol=0)
    torch.testing.assert_close(shares(temperature=2.0), (logits / 2).softmax(0), atol=0.05, rtol=0)
    two = torch.cat([logits[:2].softmax(0), torch.zeros(2)])
    # The second is 0.37 times as likely as the first, the third 0.14 times.
    for limit in ({"top_p": 0.7}, {"top_k": 2}, {"min_p": 0.2}):
        torch.testing.assert_close(shares(temperature=1.0, **limit), two, atol=0.05, rtol=0)
    assert shares(temperature=1.0, top_p=0.0)[0] == 1
