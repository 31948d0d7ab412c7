"""A trained model as the command lines use it: on the best device there is, in a precision that suits it."""

import torch

from diva.errors import UserError
from diva.models.modeling import DivaForConditionalGeneration


def load_model(
    name: str, dtype: str | None = None, llm: str | None = None, encoder: str | None = None
) -> DivaForConditionalGeneration:
    """`from_pretrained` onto a GPU in the model's own precision, or onto the CPU in float32.

    In float32 a question gets the same answer alone and in any batch, token for token.
    """
    if dtype not in (None, "float32", "float16", "bfloat16"):
        raise UserError(f"--dtype {dtype} is unknown; it is float32, float16 or bfloat16")
    cuda = torch.cuda.is_available()
    model = DivaForConditionalGeneration.from_pretrained(
        name, dtype=dtype or (None if cuda else "float32"), llm=llm, encoder=encoder
    )
    return model.to("cuda") if cuda else model
