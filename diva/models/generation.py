"""Generation: token ids as in transformers, text as in the published code, text as a stream."""

import copy
from collections.abc import Iterator
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, LogitsProcessorList, TextIteratorStreamer

from ..errors import UserError
from .llm import Embeddings, has_keys_only, nearest
from .lora import reads_with_lora

# Most tokens of an answer in the calls of the published code.
_GREEDY = {"do_sample": False, "max_new_tokens": 128}
# The hearing distance of a clip is that of its last virtual tokens, this many (docs/serving.md has the measurements).
HEARING_TOKENS = 8


class SpokenGenerationMixin(GenerationMixin):
    """transformers' `generate` for DivaForConditionalGeneration. It also accepts the calls of the published class."""

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
        """Token ids [B, L + new], as from transformers' `generate`, for the output of DivaProcessor.

        It also accepts the call of the published code (`modeling_diva.py`). Then `inputs` or `audio` are clips: a list
        of arrays at 16 kHz or paths, or one array [S]. `generate([speech], ["Reply briefly"])` returns the answers as
        text, greedy and of at most 128 tokens. The first five arguments have the order of the published code.
        """
        kwargs |= _limits(do_sample, logits_processor, max_new_tokens)
        clips = _clips(audio if inputs is None and audio_samples is None else inputs)
        if clips is not None:
            return self._answer(clips, text_prompt, **kwargs)
        input_ids = inputs if input_ids is None else input_ids
        if audio is None:
            return super().generate(input_ids, **kwargs)
        _refuse_drafts(kwargs)
        ids, embeddings = self._heard(input_ids, audio, audio_samples)
        if self._starts_with_prefix(ids, kwargs):
            kwargs["past_key_values"] = self._prefix(len(ids))
        return super().generate(ids, inputs_embeds=embeddings, **kwargs)

    @torch.no_grad()
    def hearing_distances(self, virtual_tokens: Tensor) -> Tensor:
        """v [A, Q, D] -> how far the last virtual tokens of each clip are from the nearest token embedding, [A].

        It is the mean L2 distance of the last HEARING_TOKENS: most of these face transcript tokens, and most of those
        before them are free.
        """
        embeddings = Embeddings(self.llm)
        last = virtual_tokens[:, -HEARING_TOKENS:].to(embeddings.weight.device)
        distances, _ = nearest(last.flatten(0, 1), embeddings)
        return distances.view(last.shape[:2]).mean(dim=1)

    @torch.no_grad()
    def hearing_distance(self, clip: Any) -> float:
        """The hearing distance of a clip (a path, a file's bytes, or samples [S] at 16 kHz): its worst window's."""
        clips = self.processor.spoken_turns([clip], [None]).to(self.encoder.device)
        v = self.virtual_tokens(clips["audio"], clips["audio_samples"])
        return float(self.hearing_distances(v).max())

    @property
    def end_tokens(self) -> set[int]:
        """The tokens that end an answer; none, if the generation config names none."""
        ids = self.generation_config.eos_token_id
        return set(ids) if isinstance(ids, list) else {ids} - {None}

    def _heard(self, input_ids: Tensor, audio: Tensor, audio_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, L] with placeholders and their clips -> ids [B, L] and embeddings [B, L, D] for transformers.

        Clips are encoded once, here; all beams of a chat share them. Placeholders are not tokens of the LLM. So they
        are replaced by padding for everything that reads the ids of the prompt, such as a repetition penalty.
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
        virtual_tokens: Tensor | None = None,
    ) -> Any:
        """The output of DivaProcessor -> logits after the last token [B, 1, V], and the key-value cache.

        It is the first step of `generate`, for a caller that chooses the tokens itself. `virtual_tokens` [A, Q, D] are
        those of the clips, if the caller has them already.
        """
        given: dict[str, Any] = {"attention_mask": attention_mask}
        cache = self._prefix(len(input_ids)) if self._starts_with_prefix(input_ids, given) else DynamicCache()
        start = cache.get_seq_length()
        return self(
            inputs_embeds=self.input_embeddings(input_ids, audio, audio_samples, virtual_tokens)[:, start:],
            position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, start:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **given,
        )

    def _starts_with_prefix(self, ids: Tensor, kwargs: dict) -> bool:
        """Whether every row starts with the prefix, so that its cached keys and values can be used."""
        mask, length = kwargs.get("attention_mask"), len(self.prefix_ids)
        config = kwargs.get("generation_config") or self.generation_config
        # These copy rows, and the cache would need the same copies.
        copies = "num_beams", "num_return_sequences"
        if any((kwargs.get(name) or getattr(config, name, None) or 1) > 1 for name in copies):
            return False
        if (
            length == 0
            or ids.shape[1] <= length
            or not has_keys_only(self.llm)
            or reads_with_lora(self.llm)  # its keys and values are not cached; a pass of its own takes longer
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
        """Stream the answer to one clip. By default it is greedy and of at most 128 tokens.

        With `return_outputs` each item is the answer so far and its outputs, as in the published code.
        `init_outputs` are such outputs of an earlier turn. Their keys and values precede the new turn.
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

        Nothing is computed ahead: the keys and values of each item end at the same token as its text.
        """
        ids, embeddings = self._heard(batch["input_ids"], batch["audio"], batch["audio_samples"])
        cache = DynamicCache()
        if before is not None:
            known = before.sequences[:, :-1]  # the last token was generated but is not in the cache
            cache = copy.deepcopy(before.past_key_values)  # a copy: the caller may use the outputs again
            if since := cache.get_seq_length() - known.shape[1]:
                cache.crop(-since)
            ids = torch.cat([known, ids], dim=1)
            embeddings = torch.cat([self.embed(known), embeddings], dim=1)
        inputs, start = {"inputs_embeds": embeddings}, ids.shape[1]
        for _ in range(max_new_tokens):
            outputs = super().generate(
                ids,
                # Without a mask the placeholders of speech would be masked as padding.
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=1,
                return_dict_in_generate=True,
                **inputs,
                **kwargs,
            )
            ids, inputs = outputs.sequences, {}
            yield self.processor.decode(ids[0, start:], skip_special_tokens=True), outputs
            if int(ids[0, -1]) in self.end_tokens:
                return

    def stream(self, batch: Any, **kwargs: Any) -> Iterator[str]:
        """Stream the answer to one chat. `batch` is the output of DivaProcessor.

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
    """The given positional arguments of the published calls, as keyword arguments of transformers."""
    if logits_processor is not None and not isinstance(logits_processor, list):
        logits_processor = LogitsProcessorList([logits_processor])
    given = {"do_sample": do_sample, "logits_processor": logits_processor, "max_new_tokens": max_new_tokens}
    return {name: value for name, value in given.items() if value is not None}


def _refuse_drafts(kwargs: dict[str, Any]) -> None:
    """Raise UserError for assisted decoding.

    From embeddings, transformers' own takes logits of the prompt for those of drafted tokens, so its answers are wrong.
    """
    config = kwargs.get("generation_config")
    for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"):
        if kwargs.get(name, getattr(config, name, None)) is not None:
            raise UserError(
                f"{name}: transformers' assisted decoding does not work with speech; leave it out"
            )


def _clips(given: Any) -> list | None:
    """The clips of a published call; None if `given` is token ids or None."""
    if isinstance(given, np.ndarray) or (isinstance(given, Tensor) and given.is_floating_point()):
        return [given]
    return list(given) if isinstance(given, (list, tuple)) else None


class _Stream(TextIteratorStreamer):
    """transformers' streamer, extended: it passes errors on and can be stopped."""

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stopped = False
        self.error: BaseException | None = None

    def run(self, model: SpokenGenerationMixin, batch: Any, kwargs: dict) -> None:
        try:
            model.generate(**batch, streamer=self, **kwargs)
        except _Stopped:
            pass
        except Exception as error:  # `stream` raises it again
            self.error = error
        finally:
            self.end()

    def put(self, value: Tensor) -> None:
        if self.stopped:
            raise _Stopped
        super().put(value)


class _Stopped(Exception):
    """The reader has gone."""
