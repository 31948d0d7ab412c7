"""Chat templates: messages -> token ids with gaps for speech. All code about templates is here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..errors import UserError

Message = Mapping[str, Any]
Variables = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the user's content; the suffix ends with the generation prompt."""

    prefix_ids: list[int]
    suffix_ids: list[int]


def user_turn(
    tokenizer: PreTrainedTokenizerBase,
    system: str | None = None,
    text: str = "",
    template_kwargs: Variables | None = None,
) -> Prompt:
    """The chat template, with its variables, around speech in a single user turn. `text` follows the speech.

    The transcript (teacher) or the virtual tokens (student) go between the two halves. They have no BOS or EOS: the
    template already contains those that its model expects.
    """
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": text}]}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return Prompt(*chat_pieces(tokenizer, messages, template_kwargs=template_kwargs))


def released_user_turn(
    tokenizer: PreTrainedTokenizerBase, system: str | None = None, template_kwargs: Variables | None = None
) -> Prompt:
    """As `user_turn`, with the token ids that the published code (modeling_diva.py) sends.

    Its instruction stands between the first and the last line of what comes before the user's content.
    """
    prompt = user_turn(tokenizer, template_kwargs=template_kwargs)
    if not system:
        return prompt
    turn = [{"role": "user", "content": [{"type": "audio"}]}]
    rendered, gap, _ = _render(tokenizer, turn, True, template_kwargs)
    lines = [line for line in rendered.split(gap)[0].split("\n") if line.strip()]
    prefix = [lines[0] + "\n", system, "\n" + lines[-1] + "\n"]
    return Prompt([token for part in prefix for token in encode(tokenizer, part)], prompt.suffix_ids)


def chat_pieces(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    template_kwargs: Variables | None = None,
) -> list[list[int]]:
    """Token ids of the text before, between and after the audios of a chat: one piece more than it has audios.

    `messages` are as transformers' chat models take them: `content` is a string or a list of
    `{"type": "text", "text": ...}` and `{"type": "audio", ...}`. Each piece is tokenized separately, as in training. So
    no text at the border to speech merges with the template's tokens. If a message contains the text of a control token
    of the LLM, it stays text and does not end the turn.
    """
    rendered, gap, cut = _render(tokenizer, messages, add_generation_prompt, template_kwargs)
    return [
        [token for part in piece.split(cut) for token in encode(tokenizer, part)]
        for piece in rendered.split(gap)
    ]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text by itself, without BOS or EOS."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    template_kwargs: Variables | None,
) -> tuple[str, str, str]:
    """The rendered chat, the string in it that marks every audio, and the string that splits control tokens."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template; DiVA needs an instruction-tuned"
            " LLM, whose tokenizer brings one"
        )
    variables = {"add_generation_prompt": add_generation_prompt, **(template_kwargs or {})}
    for name in template_kwargs or {}:
        if name not in str(tokenizer.chat_template):
            raise UserError(
                f"model.llm.template_kwargs.{name}: the chat template of {tokenizer.name_or_path} has no such variable"
            )
    parts = [(_role(message), _parts(message)) for message in messages]
    said = "".join(part["text"] for _, content in parts for part in content if part["type"] == "text")
    gap, cut = _unsaid("THESPEECHGOESHERE", said), _unsaid("NOCONTROLTOKEN", said)
    control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    flat = []
    for role, content in parts:
        text = "".join(gap if p["type"] == "audio" else p["text"] for p in content)
        for token in control:
            text = text.replace(token, token[:1] + cut + token[1:])
        flat.append({"role": role, "content": text})
    rendered = _apply(tokenizer, flat, variables)
    audios = sum(part["type"] == "audio" for _, content in parts for part in content)
    if rendered.count(gap) != audios:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} renders {rendered.count(gap)} of {audios} audios, so"
            " the text before and after them cannot be found"
        )
    return rendered, gap, cut


def _unsaid(mark: str, said: str) -> str:
    """A string that does not occur in the messages. It has only letters, so that no template trims or escapes it."""
    while mark in said:
        mark += "X"
    return mark


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[dict], variables: Variables) -> str:
    """The text of the template. If it refuses or drops a system message, the message is put in front of the first user
    turn.
    """

    def apply(chat: list[dict]) -> str:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, **variables))

    has_system = [message["role"] for message in messages[:2]] == ["system", "user"]
    try:
        text = apply(messages)
    except TemplateError as error:
        if not has_system:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} refuses these messages: {error}"
            ) from error
    else:
        if not has_system or not messages[0]["content"] or text != apply(messages[1:]):
            return text
    merged = messages[0]["content"] + "\n\n" + messages[1]["content"]
    return _apply(tokenizer, [{"role": "user", "content": merged}, *messages[2:]], variables)


def _role(message: Message) -> str:
    role = message.get("role")
    if not isinstance(role, str):
        raise UserError(f"a message needs a role (system, user or assistant); this one has {role!r}")
    return role


def _parts(message: Message) -> list[dict]:
    """A message's content as typed parts."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise UserError("a message's content is a string or a list of parts, each with a type")
    for part in content:
        if part.get("type") not in ("text", "audio"):
            raise UserError(
                f"a part of type {part.get('type')!r} cannot be understood; DiVA takes text and audio"
            )
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise UserError("a part of type 'text' needs its text as a string")
    return [dict(part) for part in content]


def audio_parts(messages: Sequence[Message]) -> list[dict]:
    """The audios of a chat, in order."""
    return [part for message in messages for part in _parts(message) if part["type"] == "audio"]
