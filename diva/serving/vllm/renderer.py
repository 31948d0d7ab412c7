"""Chats and texts -> token ids with one placeholder for each clip, as DivaProcessor makes them."""

from typing import Any

from vllm.config import VllmConfig
from vllm.inputs import TextPrompt, TokensPrompt
from vllm.renderers.chat_utils import parse_chat_messages, parse_chat_messages_async
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams, TokenizeParams
from vllm.utils.async_utils import make_async

from diva.errors import UserError
from diva.models.processing import AUDIO
from diva.models.prompts import encode

from .processing import served_processor


class DivaRenderer(HfRenderer):
    """Takes the place of vLLM's chat templates.

    Each text between two clips is tokenized by itself, as in training. No text of a message becomes a control token.
    A chat without a system message gets the one of the training. The parts of a message are joined by line breaks, as
    in vLLM and in diva's own server.
    """

    def __init__(self, config: VllmConfig, tokenizer: Any):
        super().__init__(config, tokenizer)
        self._diva = served_processor(config.model_config.hf_config, self.tokenizer)
        self._prompt_async = make_async(self._prompt, executor=self._executor)

    def render_messages(self, messages: list, params: ChatParams) -> tuple[list, Any]:
        chat, clips, ids = parse_chat_messages(messages, self.model_config, "openai", params.media_io_kwargs)
        return chat, self._prompt(chat, clips, ids, params)

    async def render_messages_async(self, messages: list, params: ChatParams) -> tuple[list, Any]:
        chat, clips, ids = await parse_chat_messages_async(
            messages, self.model_config, "openai", params.media_io_kwargs
        )
        return chat, await self._render_with_timeout(self._prompt_async(chat, clips, ids, params))

    def _prompt(self, chat: list, clips: Any, ids: Any, params: ChatParams) -> TokensPrompt:
        given = params.chat_template_kwargs
        if params.chat_template is not None:
            raise UserError("a DiVA has the chat template that it was trained with; give no other")
        if given.get("tools") or any(message.get("tool_calls") for message in chat):
            raise UserError("DiVA takes no tools")
        if given.get("continue_final_message"):
            raise UserError("DiVA does not continue an assistant's message; end the chat with a user's")
        # vLLM sends its own arguments too. Like vLLM, ignore what the template does not have.
        template = str(self._diva.tokenizer.chat_template)
        variables = {name: value for name, value in given.items() if name in template}
        wants_answer = variables.pop("add_generation_prompt", True)
        pieces = self._diva.pieces([_joined(message) for message in chat], wants_answer, variables)
        prompt = TokensPrompt(prompt_token_ids=self._with_placeholders(pieces))
        if clips is not None:
            prompt["multi_modal_data"] = clips
        if ids is not None:
            prompt["multi_modal_uuids"] = ids
        return prompt

    def _tokenize_prompt(self, prompt: TextPrompt, params: TokenizeParams) -> TokensPrompt:
        pieces = [encode(self._diva.tokenizer, text) for text in prompt["prompt"].split(AUDIO)]
        return self._build_tokens_prompt(self._with_placeholders(pieces), prompt)

    def _with_placeholders(self, pieces: list[list[int]]) -> list[int]:
        ids = list(pieces[0])
        for piece in pieces[1:]:
            ids += [self._diva.audio_token_id, *piece]
        return ids


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
