"""Whether an LLM can teach: DiVA hands it embeddings, so these must say to it what their ids say."""

import torch
from torch import Tensor

from diva.errors import UserError
from diva.models.modeling import DivaForConditionalGeneration

# Of the logits' spread: what the order of summation may change.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}


@torch.no_grad()
def check_llm(model: DivaForConditionalGeneration, transcript: Tensor) -> None:
    """Compare the next-token logits after a transcript's ids [N], read by the LLM alone in one pass, with those of
    the same transcript read as the teacher and as the student read.

    Raises UserError where they differ: such an LLM looks at the ids themselves (Gemma 3n and Gemma 4 have embeddings
    in every layer), or its past is not what diva keeps of the prefix.
    """
    ids = torch.cat([model.prefix_ids, transcript, model.suffix_ids]).unsqueeze(0)
    expected = model.llm(input_ids=ids, use_cache=False).logits[:, -1].float()
    spread = (expected - expected.mean()).norm()
    readers = {
        "its embeddings": model.student_states(model.embed(transcript).unsqueeze(0)),
        "the ids behind the kept prefix": model.teacher_states(
            transcript.unsqueeze(0), torch.tensor([len(transcript)], device=ids.device)
        ),
    }
    for what, states in readers.items():
        difference = float((model.logits(states) - expected).norm() / spread)
        if not difference <= _TOLERANCE[model.llm.dtype]:  # NaN is a difference too
            raise UserError(
                f"model.llm.name={model.config.llm.name} cannot teach: after a transcript of {len(transcript)} tokens"
                f" its next-token logits differ by {difference:.0%} between reading the ids and reading {what}. DiVA"
                " hands the LLM embeddings in place of ids; take an LLM that reads nothing else"
            )
