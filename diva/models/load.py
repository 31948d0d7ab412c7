"""Load a trained model for the commands: on the best available device, in a suitable precision."""

from typing import get_args

import torch

from diva.errors import UserError
from diva.models.configuration import Dtype
from diva.models.modeling import DivaForConditionalGeneration


def load_model(
    name: str,
    dtype: str | None = None,
    llm: str | None = None,
    encoder: str | None = None,
    encoder_dtype: str | None = None,
) -> DivaForConditionalGeneration:
    """Load onto a GPU in the model's own precision, or onto the CPU in float32.

    In float32 the answer to a question is the same in any batch, token for token.
    """
    for option, value in (("--dtype", dtype), ("--encoder-dtype", encoder_dtype)):
        if value not in (None, *get_args(Dtype)):
            raise UserError(f"{option} {value} is unknown; it is float32, float16 or bfloat16")
    cuda = torch.cuda.is_available()
    model = DivaForConditionalGeneration.from_pretrained(
        name,
        dtype=dtype or (None if cuda else "float32"),
        llm=llm,
        encoder=encoder,
        encoder_dtype=encoder_dtype,
    )
    return model.to("cuda") if cuda else model
