"""A trained model as the command lines use it: on the best device there is, in a precision that suits it."""

from argparse import ArgumentParser

import torch

from diva.errors import UserError
from diva.models.modeling import DivaForConditionalGeneration


def add_parts(parser: ArgumentParser) -> None:
    """The options of a command line that say of what a model was made."""
    parser.add_argument(
        "--llm", help="the LLM it was trained with, where its files do not say or it lies elsewhere"
    )
    parser.add_argument("--encoder", help="the same of the Whisper it was trained with")


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
