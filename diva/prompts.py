"""Chat template -> prefix and suffix around one user turn. The only place that knows a template."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from diva.errors import UserError

# Stands for the user's content while the template is rendered; plain letters, so no template trims or escapes it.
_CONTENT = "THECONTENTOFTHEUSERTURN"


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the user's content; the suffix ends with the generation prompt."""

    prefix_ids: list[int]
    suffix_ids: list[int]


def user_turn(tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> Prompt:
    """Split the tokenizer's chat template at the content of a single user turn.

    The transcript (teacher) or the virtual tokens (student) go between the two halves. They carry no BOS or
    EOS of their own: the template has whatever its model expects, once.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template; DiVA needs an instruction-tuned"
            " LLM, whose tokenizer brings one"
        )
    messages = [{"role": "user", "content": _CONTENT}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    if text.count(_CONTENT) != 1:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} renders the user's content {text.count(_CONTENT)}"
            " times instead of once, so it cannot be split around it"
        )
    prefix, suffix = text.split(_CONTENT)

    def encode(part: str) -> list[int]:
        return tokenizer(part, add_special_tokens=False)["input_ids"] if part else []

    return Prompt(encode(prefix), encode(suffix))
