"""Check that an LLM can be the teacher: the same output from token embeddings as from token ids."""

import torch
from torch import Tensor

from diva.errors import UserError
from diva.models.lora import without_lora
from diva.models.modeling import DivaForConditionalGeneration

# Largest allowed difference, as a fraction of the logits' spread. The order of summation changes the logits slightly.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}


@torch.no_grad()
def check_llm(model: DivaForConditionalGeneration, transcript: Tensor) -> None:
    """Check the next-token logits after a transcript's ids [N].

    The baseline is one pass of the LLM alone over the ids. The logits of the teacher's and of the student's way to
    read the same transcript must agree with it.
    Raises UserError where they differ. Then the LLM uses the ids themselves (Gemma 3n and Gemma 4 have embeddings in
    every layer), or its state after the prefix is not in the key-value cache that diva computes.
    """
    ids = torch.cat([model.prefix_ids, transcript, model.suffix_ids]).unsqueeze(0)
    with without_lora(model.llm):
        expected = model.llm(input_ids=ids, use_cache=False).logits[:, -1].float()
        readers = {
            "its embeddings": model.student_states(model.embed(transcript).unsqueeze(0)),
            "the ids behind the kept prefix": model.teacher_states(
                transcript.unsqueeze(0), torch.tensor([len(transcript)], device=ids.device)
            ),
        }
    spread = (expected - expected.mean()).norm()
    for what, states in readers.items():
        difference = float((model.logits(states) - expected).norm() / spread)
        if not difference <= _TOLERANCE[model.llm.dtype]:  # NaN is a difference too
            raise UserError(
                f"model.llm.name={model.config.llm.name} cannot teach: after a transcript of {len(transcript)} tokens"
                f" its next-token logits differ by {difference:.0%} between reading the ids and reading {what}. DiVA"
                " hands the LLM embeddings in place of ids; take an LLM that reads nothing else"
            )
