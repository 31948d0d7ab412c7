"""The composed model: speech in, states and answers of the LLM out."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    TextIteratorStreamer,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from diva.audio.frames import longest_tokens_read
from diva.models.adapter import GROUPED
from diva.models.configuration import DivaConfig
from diva.models.encoder import SpeechEncoder
from diva.models.processing import DivaProcessor
from diva.models.prompts import user_turn

# Of answers as text, as the published code gives them.
_GREEDY = {"do_sample": False, "max_new_tokens": 128}


class DivaForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Frozen encoder and LLM with a trainable adapter between them.

    The student reads prefix | virtual tokens | suffix, the teacher prefix | transcript | suffix, both with
    the same frozen LLM (DiVA section 3). In training the prefix is the same for every clip: its keys and
    values are computed once per device and expanded over the batch. `generate` takes any chat (DivaProcessor).
    """

    config_class = DivaConfig
    main_input_name: ClassVar[str] = "input_ids"
    _supports_sdpa: ClassVar[bool] = True
    _no_split_modules: ClassVar[list[str]] = []

    prefix_ids: Tensor
    suffix_ids: Tensor
    # Whether the encoder is another than the config names: a checkpoint brought the one trained with its adapter.
    has_own_encoder = False

    def __init__(
        self,
        config: DivaConfig,
        encoder: SpeechEncoder,
        adapter: nn.Module,
        llm: PreTrainedModel,
        processor: DivaProcessor,
    ):
        config.know_llm(llm.config)
        super().__init__(config)
        self.encoder = encoder
        self.adapter = adapter
        self.llm = llm.requires_grad_(False)
        if config.llm.attention == "eager":
            # The same products, without a copy of the keys for each head.
            llm.set_attn_implementation(GROUPED)
        self.processor = processor
        self.generation_config = llm.generation_config
        prompt = user_turn(processor.tokenizer, config.llm.system_prompt)
        for name, ids in (("prefix_ids", prompt.prefix_ids), ("suffix_ids", prompt.suffix_ids)):
            self.register_buffer(name, torch.tensor(ids, dtype=torch.long), persistent=False)
        self._prefix_cache: DynamicCache | None = None

    def train(self, mode: bool = True) -> "DivaForConditionalGeneration":
        """Only the adapter ever leaves evaluation mode: a frozen part with dropout would not be frozen."""
        super().train(mode)
        self.encoder.eval()
        self.llm.eval()
        return self

    # ---- hearing

    def virtual_tokens(self, waveforms: Tensor, samples: Tensor) -> Tensor:
        """Waveforms [B, S] of `samples` [B] -> virtual tokens v [B, Q, D]."""
        return self.adapt(*self.encoder(waveforms, samples))

    def adapt(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Encoder frames [B, F, E] and the mask [B, F] of valid ones -> virtual tokens v [B, Q, D]."""
        if not torch.is_autocast_enabled(frames.device.type):
            frames = frames.to(self.adapter.projection.weight.dtype)
        return self.adapter(frames, mask)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [...] -> the LLM's input embeddings [..., D]."""
        return self.llm.get_input_embeddings()(token_ids)

    # ---- training: the state in which the next token is decided

    def student_states(
        self,
        virtual_tokens: Tensor,
        samples: Tensor | None = None,
        padded_samples: int = 0,
        after: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """v [B, Q, D] -> hidden state after the final norm at the last position of the suffix, [B, D].

        With ids `after` [B, C] in place of the suffix: the states at their positions `at` [B, P], [B, P, D]. Where the
        LLM reads virtual tokens in proportion to the clip's length (`AdapterConfig.tokens_per_second`) it has to be
        told of `samples` [B] in waveforms of `padded_samples`; else it reads all.
        """
        rest = self.embed(self.suffix_ids.expand(len(virtual_tokens), -1) if after is None else after)
        v, unread = virtual_tokens.to(rest.dtype), None
        adapter = self.config.adapter
        if adapter.tokens_per_second is not None and samples is not None:
            # By the shape of the batch, which the host knows, and not by its longest clip, which the device does.
            v = v[:, -longest_tokens_read(padded_samples, v.shape[1], adapter.tokens_per_second) :]
            # A clip may be a little longer than its bucket (SpeechDataset): of it the first are missing.
            unread = (v.shape[1] - adapter.tokens_read(samples)).clamp(min=0)
        states = self._states(torch.cat([v, rest], dim=1), unread)
        return states[:, -1] if at is None else _at(states, v.shape[1] + at)

    @torch.no_grad()
    def teacher_states(
        self, token_ids: Tensor, tokens: Tensor, after: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Transcripts [B, N] of `tokens` [B] -> the same state when the LLM reads them, [B, D]; with `after` [B, C] and
        `at` [B, P], [B, P, D].

        Each row's suffix follows its own last token; what is padded comes after it, where causal attention cannot
        look, so no mask is needed.
        """
        if token_ids.device.type != "xla":  # where another width would be compiled anew
            token_ids = token_ids[:, : int(tokens.max())]
        rest = self.suffix_ids.expand(len(token_ids), -1) if after is None else after
        position = torch.arange(rest.shape[1], device=token_ids.device) + tokens.unsqueeze(1)
        ids = nn.functional.pad(token_ids, (0, rest.shape[1])).scatter(1, position, rest)
        states = self._states(self.embed(ids))
        if at is None:
            return states[torch.arange(len(ids), device=ids.device), position[:, -1]]
        return _at(states, tokens.unsqueeze(1) + at)

    def logits(self, states: Tensor) -> Tensor:
        """Hidden states [..., D] -> next-token logits [..., V] in float32."""
        return self.llm.get_output_embeddings()(states).float()

    def _states(self, embeddings: Tensor, unread: Tensor | None = None) -> Tensor:
        """Embeddings [B, L, D] behind the prefix -> hidden states after the final norm [B, L, D].

        The first `unread` [B] positions of each row are as if they were not there.
        """
        told = {} if unread is None else self._leaving_out(unread, embeddings.shape[1])
        # The frozen LLM computes in the precision it is held in: autocast would only add casts.
        with torch.autocast(embeddings.device.type, enabled=False):
            output = self.llm.base_model(
                inputs_embeds=embeddings,
                past_key_values=self._prefix(len(embeddings)),
                use_cache=True,
                **told,
            )
        return output.last_hidden_state

    def _leaving_out(self, unread: Tensor, length: int) -> dict[str, Tensor]:
        """What tells the LLM to leave out the first `unread` [B] of `length` positions L behind the prefix of P.

        A mask [B, 1, L, P + L], True where to look, and positions [B, L]. A mask of two dimensions would be looked
        into on the host. Positions left out see themselves: attention over nothing would be NaN.
        """
        start = len(self.prefix_ids)
        place = torch.arange(start + length, device=unread.device)
        new = place[start:].unsqueeze(1)
        read = (place < start) | (place >= start + unread.unsqueeze(1))
        mask = ((place <= new) & read.unsqueeze(1)) | (place == new)
        positions = (place[start:] - unread.unsqueeze(1)).clamp(min=0)
        return {"attention_mask": mask.unsqueeze(1), "position_ids": positions}

    def _prefix(self, batch: int) -> DynamicCache | None:
        """The prefix's keys and values, expanded to `batch` rows; None for a template without a prefix."""
        if len(self.prefix_ids) == 0:
            return None
        if self._prefix_cache is None or self._prefix_cache.layers[0].keys.device != self.prefix_ids.device:
            with torch.no_grad():
                ids = self.prefix_ids.unsqueeze(0)
                self._prefix_cache = self.llm.base_model(input_ids=ids, use_cache=True).past_key_values
        cache = DynamicCache()
        for index, layer in enumerate(self._prefix_cache.layers):
            shape = (batch, -1, -1, -1)
            cache.update(layer.keys.expand(shape), layer.values.expand(shape), index)
        return cache

    # ---- answering

    def input_embeddings(
        self, input_ids: Tensor, audio: Tensor | None = None, audio_samples: Tensor | None = None
    ) -> Tensor:
        """Ids [B, L] with placeholders for each clip -> embeddings [B, L, D], its virtual tokens in their place.

        `audio` [A, S] and `audio_samples` [A] are the clips of the whole batch in reading order.
        """
        heard = input_ids == self.processor.audio_token_id
        embeddings = self.embed(input_ids.masked_fill(heard, 0))
        if audio is None:
            return embeddings
        read = self.config.adapter.tokens_read(audio_samples)
        if int(heard.sum()) != int(read.sum()):
            raise ValueError(
                f"input_ids has {int(heard.sum())} places for virtual tokens, while {len(audio)} clips give"
                f" {int(read.sum())}; let DivaProcessor make both"
            )
        v = self.virtual_tokens(audio, audio_samples)
        number = torch.arange(v.shape[1], device=read.device)
        v = v[number >= v.shape[1] - read.unsqueeze(1)]
        return embeddings.masked_scatter(heard.unsqueeze(-1), v.to(embeddings.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        audio: Tensor | None = None,
        audio_samples: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """What the LLM says to a chat that was heard, with the arguments of its own `forward` besides.

        `logits_to_keep` is named because transformers looks whether it is: `generate` then asks for the last only.
        """
        if inputs_embeds is None:
            inputs_embeds = self.input_embeddings(input_ids, audio, audio_samples)
        return self.llm(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

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
        if logits_processor is not None and not isinstance(logits_processor, list):
            logits_processor = LogitsProcessorList([logits_processor])
        limits = {
            "do_sample": do_sample,
            "logits_processor": logits_processor,
            "max_new_tokens": max_new_tokens,
        }
        kwargs |= {name: value for name, value in limits.items() if value is not None}
        clips = _clips(audio if inputs is None and audio_samples is None else inputs)
        if clips is not None:
            return self._answer(clips, text_prompt, **kwargs)
        input_ids = inputs if input_ids is None else input_ids
        if audio is None:
            return super().generate(input_ids, **kwargs)
        # Heard once, here: the beams of one chat share its clips. The placeholders are no token of the LLM,
        # so what looks at the prompt's ids (a repetition penalty, say) sees padding in their place.
        embeddings = self.input_embeddings(input_ids, audio, audio_samples)
        heard = input_ids == self.processor.audio_token_id
        ids = input_ids.masked_fill(heard, self.processor.pad_token_id)
        if self._starts_with_prefix(ids, kwargs):
            kwargs["past_key_values"] = self._prefix(len(ids))
        return super().generate(ids, inputs_embeds=embeddings, **kwargs)

    @torch.no_grad()
    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        audio: Tensor | None = None,
        audio_samples: Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """What DivaProcessor returns -> the logits after the last token [B, 1, V], and the cache to go on with.

        It is what `generate` begins with, for a caller that chooses the tokens.
        """
        given: dict[str, Any] = {"attention_mask": attention_mask}
        longer = input_ids.shape[1] > len(self.prefix_ids)
        known = (
            self._prefix(len(input_ids)) if longer and self._starts_with_prefix(input_ids, given) else None
        )
        cache = DynamicCache() if known is None else known
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
            or kwargs.keys() & {"past_key_values", "cache_implementation"}
            or kwargs.get("use_cache") is False
        ):
            return False
        same = bool((ids[:, :length] == self.prefix_ids).all())
        return same and (mask is None or bool(mask[:, :length].all()))

    def _answer(self, clips: list, text_prompt: str | list[str] | None, **kwargs: Any) -> list[str]:
        prompts = [text_prompt] * len(clips) if isinstance(text_prompt, str | None) else text_prompt
        batch = self.processor.spoken_turns(clips, prompts).to(self.device)
        ids = self.generate(**batch, **_GREEDY | kwargs)
        return self.processor.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    def generate_stream(self, clip: Any, text_prompt: str | None = None, **kwargs: Any) -> Iterator[str]:
        """The answer to one clip in pieces, as they come; greedy and of up to 128 tokens unless `kwargs` say else."""
        yield from self.stream(self.processor.spoken_turns([clip], [text_prompt]), **_GREEDY | kwargs)

    def stream(self, batch: Any, **kwargs: Any) -> Iterator[str]:
        """The answer to one chat of DivaProcessor in pieces, as they come.

        Leaving the loop early stops the generation. Errors of the generation are raised here.
        """
        streamer = _Stream(self.processor.tokenizer)
        thread = Thread(target=streamer.run, args=(self, batch.to(self.device), kwargs), daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            streamer.stopped = True
            thread.join()
        if streamer.error is not None:
            raise streamer.error

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every part comes with its weights (`diva.models.build`)."""

    # ---- files

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> "DivaForConditionalGeneration":
        """A run's export, one of ours on the hub, or a checkpoint in the published layout.

        `dtype` is the precision of the frozen parts; `device_map` is for the LLM, whose input embeddings'
        device gets the rest; `llm` and `encoder` name the frozen parts in place of the checkpoint. See
        `diva.models.files.load`.
        """
        from diva.models.files import load

        return load(cls, name, **kwargs)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write the adapter and the names of the frozen parts; see `diva.models.files.save`."""
        from diva.models.files import save

        save(self, folder, **kwargs)


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """States [B, L, D] at positions [B, P] -> [B, P, D]."""
    return states.gather(1, positions.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


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

    def run(self, model: DivaForConditionalGeneration, batch: Any, kwargs: dict) -> None:
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
