"""Answers: token ids as transformers generates them, text as the published code gives it, text in pieces."""

import copy
from collections.abc import Iterator
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, LogitsProcessorList, TextIteratorStreamer

from .llm import has_keys_only

# Of answers as text, as the published code gives them.
_GREEDY = {"do_sample": False, "max_new_tokens": 128}


class SpokenGenerationMixin(GenerationMixin):
    """transformers' `generate` for DivaForConditionalGeneration, with the calls of the published class."""

    @torch.no_grad()
    def generate(
        self,
        inputs: Any = None,
        text_prompt: str | list[str] | None = None,
        do_sample: bool | None = None,
        logits_processor: Any = None,
        max_new_tokens: int | None = None,
        *,
        input_ids: Tensor | None = None,
        audio: Any = None,
        audio_samples: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Token ids as transformers' `generate` gives them, [B, L + new], for what DivaProcessor returns.

        With clips as `inputs` or `audio` (a list of arrays at 16 kHz or paths, or one array [S]) it is the call of the
        published code, `modeling_diva.py`: `generate([speech], ["Reply briefly"])` gives the answers as text, greedy
        and of up to 128 tokens. The first five arguments stand in its order.
        """
        kwargs |= _limits(do_sample, logits_processor, max_new_tokens)
        clips = _clips(audio if inputs is None and audio_samples is None else inputs)
        if clips is not None:
            return self._answer(clips, text_prompt, **kwargs)
        input_ids = inputs if input_ids is None else input_ids
        if audio is None:
            return super().generate(input_ids, **kwargs)
        ids, embeddings = self._heard(input_ids, audio, audio_samples)
        if self._starts_with_prefix(ids, kwargs):
            kwargs["past_key_values"] = self._prefix(len(ids))
        return super().generate(ids, inputs_embeds=embeddings, **kwargs)

    def _heard(self, input_ids: Tensor, audio: Tensor, audio_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, L] with placeholders and their clips -> ids [B, L] and embeddings [B, L, D] for transformers.

        Heard once, here: the beams of one chat share its clips. The placeholders are no token of the LLM, so what looks
        at the prompt's ids (a repetition penalty, say) sees padding in their place.
        """
        heard = input_ids == self.processor.audio_token_id
        ids = input_ids.masked_fill(heard, self.processor.pad_token_id)
        return ids, self.input_embeddings(input_ids, audio, audio_samples)

    @torch.no_grad()
    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        audio: Tensor | None = None,
        audio_samples: Tensor | None = None,
    ) -> Any:
        """What DivaProcessor returns -> logits after the last token [B, 1, V], and the cache to go on with.

        It is what `generate` begins with, for a caller that chooses the tokens.
        """
        given: dict[str, Any] = {"attention_mask": attention_mask}
        longer = input_ids.shape[1] > len(self.prefix_ids)
        same = longer and self._starts_with_prefix(input_ids, given)
        cache = self._prefix(len(input_ids)) if same else DynamicCache()
        start = cache.get_seq_length()
        return self(
            inputs_embeds=self.input_embeddings(input_ids, audio, audio_samples)[:, start:],
            position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, start:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **given,
        )

    def _starts_with_prefix(self, ids: Tensor, kwargs: dict) -> bool:
        """Whether the keys and values of the prefix, computed once, are those of the first tokens of every row."""
        mask, length = kwargs.get("attention_mask"), len(self.prefix_ids)
        config = kwargs.get("generation_config") or self.generation_config
        copies = ("num_beams", "num_return_sequences")  # of a row, which the cache would have to follow
        if any((kwargs.get(name) or getattr(config, name, None) or 1) > 1 for name in copies):
            return False
        if (
            length == 0
            or not has_keys_only(self.llm)
            or kwargs.keys() & {"past_key_values", "cache_implementation"}
            or kwargs.get("use_cache") is False
        ):
            return False
        same = bool((ids[:, :length] == self.prefix_ids).all())
        return same and (mask is None or bool(mask[:, :length].all()))

    def _answer(self, clips: list, text_prompt: str | list[str] | None, **kwargs: Any) -> list[str]:
        prompts = [text_prompt] * len(clips) if isinstance(text_prompt, str | None) else text_prompt
        batch = self.processor.spoken_turns(clips, prompts).to(self.prefix_ids.device)
        ids = self.generate(**batch, **_GREEDY | kwargs)
        return self.processor.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    def generate_stream(
        self,
        audio: Any,
        text_prompt: str | None = None,
        do_sample: bool | None = None,
        logits_processor: Any = None,
        max_new_tokens: int | None = None,
        return_outputs: bool = False,
        init_outputs: Any = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """The answer to one clip in pieces, as they come; greedy and of up to 128 tokens unless the arguments say else.

        With `return_outputs` each is, as in the published code, the answer so far and the outputs that it rests on; of
        `init_outputs`, such outputs, the keys and values stand before the new turn.
        """
        kwargs = _GREEDY | kwargs | _limits(do_sample, logits_processor, max_new_tokens)
        batch = self.processor.spoken_turns([audio], [text_prompt])
        if return_outputs or init_outputs is not None:
            steps = self._steps(batch.to(self.prefix_ids.device), init_outputs, **kwargs)
            yield from steps if return_outputs else (text for text, _ in steps)
        else:
            yield from self.stream(batch, **kwargs)

    @torch.no_grad()
    def _steps(
        self, batch: Any, before: Any, max_new_tokens: int, **kwargs: Any
    ) -> Iterator[tuple[str, Any]]:
        """The answer to one chat after each token, with transformers' outputs of that token.

        Nothing is computed ahead of the reader: the keys and values that it gets end where its text does.
        """
        ids, embeddings = self._heard(batch["input_ids"], batch["audio"], batch["audio_samples"])
        cache = DynamicCache()
        if before is not None:
            known = before.sequences[:, :-1]  # the last token has been said but not read
            cache = copy.deepcopy(before.past_key_values)  # which may have gone on since, or go on elsewhere
            if since := cache.get_seq_length() - known.shape[1]:
                cache.crop(-since)
            ids = torch.cat([known, ids], dim=1)
            embeddings = torch.cat([self.embed(known), embeddings], dim=1)
        inputs, start = {"inputs_embeds": embeddings}, ids.shape[1]
        ends = self.generation_config.eos_token_id
        for _ in range(max_new_tokens):
            outputs = super().generate(
                ids,
                # Without it what stands for speech would be masked, as padding.
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=1,
                return_dict_in_generate=True,
                **inputs,
                **kwargs,
            )
            ids, inputs = outputs.sequences, {}
            yield self.processor.decode(ids[0, start:], skip_special_tokens=True), outputs
            if int(ids[0, -1]) in (ends if isinstance(ends, list) else [ends]):
                return

    def stream(self, batch: Any, **kwargs: Any) -> Iterator[str]:
        """The answer to one chat of DivaProcessor in pieces, as they come.

        Leaving the loop early stops the generation. Errors of the generation are raised here.
        """
        streamer = _Stream(self.processor.tokenizer)
        thread = Thread(
            target=streamer.run, args=(self, batch.to(self.prefix_ids.device), kwargs), daemon=True
        )
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            streamer.stopped = True
            thread.join()
        if streamer.error is not None:
            raise streamer.error


def _limits(do_sample: bool | None, logits_processor: Any, max_new_tokens: int | None) -> dict[str, Any]:
    """The arguments that the published calls take by place, those that are given, as transformers takes them."""
    if logits_processor is not None and not isinstance(logits_processor, list):
        logits_processor = LogitsProcessorList([logits_processor])
    given = {"do_sample": do_sample, "logits_processor": logits_processor, "max_new_tokens": max_new_tokens}
    return {name: value for name, value in given.items() if value is not None}


def _clips(given: Any) -> list | None:
    """The clips of a published call, or None for token ids and for nothing."""
    if isinstance(given, np.ndarray) or (isinstance(given, Tensor) and given.is_floating_point()):
        return [given]
    return list(given) if isinstance(given, (list, tuple)) else None


class _Stream(TextIteratorStreamer):
    """transformers' streamer, which hands on errors and can be stopped."""

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stopped = False
        self.error: BaseException | None = None

    def run(self, model: SpokenGenerationMixin, batch: Any, kwargs: dict) -> None:
        try:
            model.generate(**batch, streamer=self, **kwargs)
        except _Stopped:
            pass
        except Exception as error:  # raised again by the reader
            self.error = error
        finally:
            self.end()

    def put(self, value: Tensor) -> None:
        if self.stopped:
            raise _Stopped
        super().put(value)


class _Stopped(Exception):
    """The reader has gone."""
