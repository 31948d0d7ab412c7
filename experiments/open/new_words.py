"""Alignment accuracy of new words alone: `python experiments/open/new_words.py RUN [--limit 320]`.

Takes the split `new_words` of the run's corpus. A token belongs to a new word if one of its characters does. The other
tokens are those of the words around it, which training has.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import OmegaConf

from diva.audio.frames import pad_clips
from diva.command import exit_codes
from diva.config import make
from diva.data.corpora.spoken.open_vocabulary import WORDS_FILE, SpokenOpen
from diva.errors import UserError
from diva.models.llm import Embeddings
from diva.models.load import load_model
from diva.models.modeling import DivaForConditionalGeneration
from diva.training.metrics import aligned_tokens


def tokens_of_words(text: str, offsets: list[tuple[int, int]], words: set[str]) -> list[bool]:
    """Whether each token, the characters `offsets` of the text, belongs to one of the words (in lower case)."""
    places = [found.span() for found in re.finditer("[a-z'-]+", text.lower()) if found[0] in words]
    return [any(start < last and first < end for first, last in places) for start, end in offsets]


@torch.no_grad()
def heard(
    model: DivaForConditionalGeneration, clips: Iterator[tuple[str, torch.Tensor]], words: set[str]
) -> dict[bool, list[bool]]:
    """Whether each token was heard, for tokens of new words (True) and of the others (False)."""
    found: dict[bool, list[bool]] = {True: [], False: []}
    for text, waveform in clips:
        read = model.processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor([read["input_ids"]], device=model.device)
        waveforms, samples = (tensor.to(model.device) for tensor in pad_clips([waveform]))
        v = model.virtual_tokens(waveforms, samples)
        tokens = torch.tensor([ids.shape[1]], device=model.device)
        aligned = aligned_tokens(v, ids, tokens, Embeddings(model.llm))
        for new, right in zip(
            tokens_of_words(text, read["offset_mapping"], words), aligned.tolist(), strict=True
        ):
            found[new].append(right)
    return found


@exit_codes
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--limit", type=int, default=320, help="clips (default: 320)")
    options = parser.parse_args()
    corpus = make(OmegaConf.load(options.run / "config.yaml").data.corpus)
    if not isinstance(corpus, SpokenOpen):
        raise UserError(f"{options.run} was not trained on data=spoken_open")
    manifest = corpus.manifest("new_words")
    words = {*(corpus.release / WORDS_FILE).read_text(encoding="utf-8").split()}
    clips = ((manifest.text(i), manifest.waveform(i)) for i in range(min(options.limit, len(manifest))))
    for new, right in heard(load_model(str(options.run)), clips, words).items():
        print(
            f"{'new words' if new else 'other words'}: {sum(right) / len(right):.3f} of {len(right):,} tokens"
        )


if __name__ == "__main__":
    main()
