"""The processor: a chat with speech -> token ids with placeholders, and the waveforms for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from ..audio.decoding import to_waveform
from ..audio.frames import SAMPLE_RATE, WHISPER_SECONDS, pad_clips, tokens_read, windows
from ..errors import AudioFault, UserError
from .prompts import Message, audio_parts, chat_pieces, encode, released_user_turn, user_turn

AUDIO = "<|audio|>"  # stands for a clip in a text
Clip = str | Path | bytes | np.ndarray | Tensor | Sequence[float]


class DivaProcessor(ProcessorMixin):
    """Makes the inputs of DivaForConditionalGeneration. The model itself computes the log-mel, on its own device.

    Every 30 s of a clip become `num_virtual_tokens` placeholders, or fewer with `tokens_per_second`.
    `audio_token_id` is outside the LLM's vocabulary, so no text contains it.
    Chats without a system message get `system_prompt`, the one of the training. All chats get `template_kwargs`.
    Clips above 30 s are cut at their quietest places (`long_audio="split"`) or refused ("error"). `max_audio_seconds`
    is the limit for a clip.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_virtual_tokens: int = 1,
        tokens_per_second: float | None = None,
        audio_token_id: int = -1,
        system_prompt: str | None = None,
        prompt_layout: Literal["template", "released"] = "template",
        long_audio: Literal["split", "error"] = "split",
        max_audio_seconds: float = 600.0,
        template_kwargs: dict[str, Any] | None = None,
        num_query_tokens: int | None = None,  # the name of num_virtual_tokens in exports of earlier revisions
        **kwargs: Any,
    ):
        super().__init__(tokenizer, **kwargs)
        if long_audio not in ("split", "error"):
            raise UserError(f"long_audio={long_audio!r} is unknown; it is split or error")
        self.num_virtual_tokens = num_query_tokens or num_virtual_tokens
        self.tokens_per_second = tokens_per_second
        self.audio_token_id = audio_token_id
        self.system_prompt = system_prompt
        self.prompt_layout = prompt_layout
        self.template_kwargs = template_kwargs or {}
        self.long_audio = long_audio
        self.max_audio_seconds = max_audio_seconds

    @property
    def pad_token_id(self) -> int:
        """The token that pads shorter rows on the left. It is masked, so any token is correct."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in ids if token is not None)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "audio", "audio_samples"]

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        tokenize: bool = True,
        return_dict: bool = True,
        add_generation_prompt: bool = True,
        return_tensors: str = "pt",
        sampling_rate: int = SAMPLE_RATE,
    ) -> Any:
        """One chat or several -> model inputs, as transformers' audio models take them.

        A clip is a part `{"type": "audio", "path": file}` or `{"type": "audio", "audio": clip}`, with a path,
        the bytes of a file, or samples [S] or [S, channels] at the part's or the call's `sampling_rate`.
        Raises AudioFault for a clip that cannot be decoded, UserError for messages that cannot be read.
        """
        if return_tensors != "pt":
            raise UserError(f"return_tensors={return_tensors!r}: DiVA's inputs are torch tensors, 'pt'")
        single = bool(conversation) and isinstance(conversation[0], dict)
        chats: list[list[Message]] = [list(conversation)] if single else [list(c) for c in conversation]  # type: ignore[arg-type]
        pieces = [self.pieces(chat, add_generation_prompt) for chat in chats]
        if not tokenize:
            texts = [self._text(parts) for parts in pieces]
            return texts[0] if single else texts
        clips = [[self._clip(part, sampling_rate) for part in audio_parts(chat)] for chat in chats]
        batch = self._batch(pieces, clips)
        return batch if return_dict else batch["input_ids"]

    def __call__(  # type: ignore[override]
        self,
        text: str | Sequence[str],
        audio: Clip | Sequence[Clip] | None = None,
        *,
        sampling_rate: int = SAMPLE_RATE,
        return_tensors: str = "pt",
        padding: bool = True,
    ) -> BatchFeature:
        """Texts with `<|audio|>` for each clip, and the clips of all texts in order -> model inputs."""
        if return_tensors != "pt" or not padding:
            raise UserError("DiVA's inputs are padded torch tensors: return_tensors='pt', padding=True")
        texts = [text] if isinstance(text, str) else list(text)
        clips = list(audio) if isinstance(audio, (list, tuple)) and not _is_samples(audio) else [audio]
        waveforms = [self._hear(clip, sampling_rate) for clip in clips if clip is not None]
        wanted = [part.count(AUDIO) for part in texts]
        if sum(wanted) != len(waveforms):
            raise UserError(f"the text holds {sum(wanted)} {AUDIO} for {len(waveforms)} clips")
        pieces = [[encode(self.tokenizer, piece) for piece in part.split(AUDIO)] for part in texts]
        queue = iter(waveforms)
        return self._batch(pieces, [[next(queue) for _ in range(count)] for count in wanted])

    def spoken_turns(self, clips: Sequence[Clip], instructions: Sequence[str | None]) -> BatchFeature:
        """One user turn for each clip, with an instruction or the prompt of the training -> model inputs."""
        if len(clips) != len(instructions):
            raise UserError(
                f"{len(clips)} clips and {len(instructions)} prompts; give one prompt for each, or none"
            )
        turn = released_user_turn if self.prompt_layout == "released" else user_turn
        prompts = [
            turn(self.tokenizer, instruction or self.system_prompt, template_kwargs=self.template_kwargs)
            for instruction in instructions
        ]
        pieces = [[prompt.prefix_ids, prompt.suffix_ids] for prompt in prompts]
        return self._batch(pieces, [[self._hear(clip, SAMPLE_RATE)] for clip in clips])

    def pieces(
        self,
        chat: Sequence[Message],
        add_generation_prompt: bool = True,
        template_kwargs: dict[str, Any] | None = None,
    ) -> list[list[int]]:
        """Token ids of the text before, between and after the audios of a chat (`chat_pieces`).

        A chat without a system message gets the one of the training. `template_kwargs` replace those of the training.
        """
        if self.system_prompt is not None and not any(message.get("role") == "system" for message in chat):
            chat = [{"role": "system", "content": self.system_prompt}, *chat]
        variables = self.template_kwargs | (template_kwargs or {})
        return chat_pieces(self.tokenizer, chat, add_generation_prompt, variables)

    def places(self, windows_of_clip: Sequence[np.ndarray]) -> int:
        """Number of placeholders for the windows of a clip."""
        samples = torch.tensor([len(window) for window in windows_of_clip])
        return int(tokens_read(samples, self.num_virtual_tokens, self.tokens_per_second).sum())

    def _text(self, pieces: list[list[int]]) -> str:
        return AUDIO.join(self.tokenizer.decode(piece, skip_special_tokens=False) for piece in pieces)

    def _clip(self, part: dict, sampling_rate: int) -> list[np.ndarray]:
        given = [part[key] for key in ("audio", "path", "url") if part.get(key) is not None]
        if len(given) != 1:
            raise UserError("a part of type 'audio' needs one of: audio (samples, bytes or a path), path")
        return self._hear(given[0], part.get("sampling_rate", sampling_rate))

    def _hear(self, clip: Clip, sampling_rate: int) -> list[np.ndarray]:
        """Decode a clip and cut it into windows of at most 30 s."""
        waveform = to_waveform(clip, sampling_rate, self.max_audio_seconds)
        if self.long_audio == "error" and len(waveform) > WHISPER_SECONDS * SAMPLE_RATE:
            seconds = len(waveform) / SAMPLE_RATE
            raise AudioFault("too long", f"the clip lasts {seconds:.1f} s, long_audio='error' allows 30 s")
        return windows(waveform)

    def _batch(self, pieces: list[list[list[int]]], clips: list[list[list[np.ndarray]]]) -> BatchFeature:
        """Text pieces and clip windows of each chat -> ids padded on the left, and the audio."""
        rows = []
        for texts, heard in zip(pieces, clips, strict=True):
            row = list(texts[0])
            for windows_of_clip, text in zip(heard, texts[1:], strict=True):
                row += [self.audio_token_id] * self.places(windows_of_clip) + text
            rows.append(row)
        ids, mask = pad_left(rows, self.pad_token_id)
        data = {"input_ids": ids, "attention_mask": mask}
        waveforms = [window for chat in clips for clip in chat for window in clip]
        if waveforms:
            data["audio"], data["audio_samples"] = pad_clips(waveforms)
        return BatchFeature(data)


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Token ids of each row -> ids [B, L] padded on the left, and the mask [B, L] of tokens that are not padding."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad_token_id)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, length - len(row) :] = torch.tensor(row)
        mask[number, length - len(row) :] = 1
    return ids, mask


def _is_samples(audio: Sequence) -> bool:
    """Whether a list is one clip's samples rather than several clips."""
    return len(audio) > 0 and isinstance(audio[0], (float, int))
