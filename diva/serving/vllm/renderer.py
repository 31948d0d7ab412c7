"""Chats and texts -> token ids with one placeholder for each clip, exactly as DivaProcessor makes them."""

from typing import Any

from vllm.inputs import TextPrompt, TokensPrompt
from vllm.renderers.chat_utils import parse_chat_messages, parse_chat_messages_async
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams, TokenizeParams

from diva.errors import UserError
from diva.models.processing import AUDIO, DivaProcessor
from diva.models.prompts import encode

# Arguments of `ChatParams.chat_template_kwargs` that are no variables of a template.
_NO_VARIABLES = {"add_generation_prompt", "continue_final_message", "tools", "documents", "tokenize"}
# vLLM sends a variable for every request, whether or not the template has it.
_ALWAYS_SENT = {"reasoning_effort"}


class DivaRenderer(HfRenderer):
    """Replaces the chat templates of vLLM by `DivaProcessor.pieces`.

    Each text between two clips is tokenized by itself, as in training. No text of a message becomes a control token.
    Chats without a system message get the one of the training. The parts of a message are joined by line breaks, as by
    vLLM and by diva's own server.
    """

    def render_messages(self, messages: list, params: ChatParams) -> tuple[list, Any]:
        chat, clips, ids = parse_chat_messages(messages, self.model_config, "openai", params.media_io_kwargs)
        return chat, self._prompt(chat, clips, ids, params)

    async def render_messages_async(self, messages: list, params: ChatParams) -> tuple[list, Any]:
        chat, clips, ids = await parse_chat_messages_async(
            messages, self.model_config, "openai", params.media_io_kwargs
        )
        return chat, self._prompt(chat, clips, ids, params)

    def _prompt(self, chat: list, clips: Any, ids: Any, params: ChatParams) -> TokensPrompt:
        given = params.chat_template_kwargs
        if params.chat_template is not None:
            raise UserError("a DiVA needs the chat template that it was trained with; give no other")
        if given.get("tools") or given.get("continue_final_message"):
            raise UserError("DiVA supports neither tools nor continue_final_message")
        processor = self._processor()
        pieces = processor.pieces(
            [_joined(message) for message in chat],
            given.get("add_generation_prompt", True),
            {name: value for name, value in given.items() if name not in _NO_VARIABLES | _ALWAYS_SENT},
        )
        prompt = TokensPrompt(prompt_token_ids=_with_places(pieces, processor))
        if clips is not None:
            prompt["multi_modal_data"] = clips
        if ids is not None:
            prompt["multi_modal_uuids"] = ids
        return prompt

    def _tokenize_prompt(self, prompt: TextPrompt, params: TokenizeParams) -> TokensPrompt:
        pieces = [encode(self.get_tokenizer(), text) for text in prompt["prompt"].split(AUDIO)]
        return self._build_tokens_prompt(_with_places(pieces, self._processor()), prompt)

    def _processor(self) -> DivaProcessor:
        return self.get_mm_processor().info.get_hf_processor()


def _joined(message: dict) -> dict:
    """A message as vLLM parses it -> as DivaProcessor takes it."""
    content = message.get("content") or ""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    parts: list[dict] = []
    for part in content:
        if parts:
            parts.append({"type": "text", "text": "\n"})
        parts.append(part)
    role = "system" if message["role"] == "developer" else message["role"]
    return {"role": role, "content": parts}


def _with_places(pieces: list[list[int]], processor: DivaProcessor) -> list[int]:
    ids = list(pieces[0])
    for piece in pieces[1:]:
        ids += [processor.audio_token_id, *piece]
    return ids
