"""What the teacher reads besides the words: only the teacher, and the same whether its states are cached or not."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from diva.data.batch import SpeechBatch, transcript_tokens
from diva.data.manifest import Manifest
from diva.data.teacher_text import check_template, with_teacher_text
from diva.errors import UserError
from diva.models.build import build
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig
from diva.models.parts import load_tokenizer
from diva.training.frozen import FrozenParts, Precompute

TEMPLATE = "(a {gender} speaker from {accents}) {text}"


@pytest.fixture
def manifest() -> Manifest:
    columns = {
        "clip_id": ["a", "b", "c"],
        "text": ["open the door", "a house", "open the door"],
        "duration": pa.array([1.0, 1.0, 1.0], pa.float32()),
        "speaker": ["x", "y", "z"],
        "gender": ["female", "", "male"],
        "accents": pa.array(["Wales", "Kenya", "Wales"]).dictionary_encode(),
    }
    return Manifest(pa.table(columns), audio=None, rows=np.arange(3), origin="train.tsv")


def test_the_text_has_the_values_of_the_columns_and_is_plain_where_one_is_empty(manifest):
    read = with_teacher_text(manifest, TEMPLATE)
    expected = [
        "(a female speaker from Wales) open the door",
        "a house",
        "(a male speaker from Wales) open the door",
    ]
    assert read.teacher_texts.to_pylist() == expected
    assert read.clips["text"] == manifest.clips["text"]
    assert manifest.teacher_texts == manifest.clips["text"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{mood} {text}", "train.tsv has no column 'mood', it has: clip_id, text, .*gender, accents"),
        ("a speaker", "needs {text}"),
        ("{text", "expected '}' before end of string; write {{ and }}"),
        ("{} {text}", "the name of a column"),
        ("{text.__class__}", "the name of a column"),
        ("{text!r}", "the name of a column"),
        ("{text:>9}", "the name of a column"),
    ],
)
def test_a_template_that_cannot_be_filled_is_one_line(manifest, template, said):
    with pytest.raises(UserError, match=said):
        with_teacher_text(manifest, template)


def test_braces_of_the_text_are_doubled():
    assert check_template("{{so}} {text}") == ["text"]


def test_the_teacher_alone_reads_it(manifest, tiny_whisper, tiny_llm, tmp_path, monkeypatch):
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path))
    tokenizer = load_tokenizer(str(tiny_llm))
    parts = EncoderConfig(str(tiny_whisper)), AdapterConfig(num_query_tokens=12), LLMConfig(str(tiny_llm))
    model = build(DivaConfig(*parts, frozen_dtype="float32"), tokenizer)
    read = with_teacher_text(manifest, TEMPLATE)
    words = transcript_tokens(tokenizer, manifest.clips["text"].to_pylist())
    tokens = torch.tensor([len(words[0]), 0, len(words[1])])
    ids = torch.zeros(3, 30, dtype=torch.long)
    ids[0, : tokens[0]], ids[2, : tokens[2]] = torch.tensor(words[0]), torch.tensor(words[1])
    batch = SpeechBatch(torch.zeros(3, 0), tokens * 0 + 16_000, ids, tokens, tokens, ["c", "", "b"], 0)

    def states(manifest: Manifest, caches: bool) -> torch.Tensor:
        frozen = FrozenParts.of_split(model, manifest, tokenizer, Precompute(teacher_states=caches))
        assert (frozen.cached_teacher is not None) == caches
        return frozen.teacher_states(batch)[[0, 2]]

    text = transcript_tokens(tokenizer, ["(a male speaker from Wales) open the door"])[0]
    expected = model.teacher_states(torch.tensor([text]), torch.tensor([len(text)]))[0]
    plain = states(manifest, caches=False)
    for caches in (False, True):
        found = states(read, caches)
        torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[1], plain[1], atol=1e-5, rtol=1e-5)
        assert (found[0] - plain[0]).abs().max() > 1e-2
