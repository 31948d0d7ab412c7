"""The whole model: speech in, hidden states and answers of the LLM out."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..audio.frames import longest_tokens_read
from ..errors import UserError
from .adapter import GROUPED
from .configuration import DivaConfig
from .folders import export_folder, read, write
from .generation import SpokenGenerationMixin
from .llm import Embeddings, decoder, has_keys_only, logits, masks
from .lora import add_lora, frozen_weights, load_lora, lora_state, reads_with_lora, without_lora
from .parts import Parts, load_parts, load_whisper, make_adapter, random_parts, save_encoder
from .prompts import user_turn
from .released import check_fit, same_weights, to_released
from .remote_code import AUTO_MAP, write_code

# Arguments that AutoModel.from_pretrained passes to every model, and that have no effect here.
_IGNORED = {
    "_from_auto",
    "adapter_kwargs",
    "trust_remote_code",
    "_commit_hash",
    "local_files_only",
    "subfolder",
}
_HUB_ONLY = {"token", "revision", "cache_dir", "force_download", "code_revision"}
# Arguments that push_to_hub and Trainer pass to save_pretrained, without effect: the adapter is always one safetensors
# file.
_IGNORED_IN_SAVING = {"safe_serialization", "is_main_process", "max_shard_size"}


class PrefixCache(DynamicCache):
    """The keys and values of the prefix [1, P]. Activation checkpointing does not recompute the layers that fill it."""


class DivaForConditionalGeneration(SpokenGenerationMixin, PreTrainedModel):
    """Frozen encoder and LLM with a trainable adapter between them.

    The student reads prefix | virtual tokens | suffix. The teacher reads prefix | transcript | suffix. Both are the
    same frozen LLM (DiVA section 3). In training all clips have the same prefix: its keys and values are computed once
    per device and expanded over the batch. `generate` accepts any chat (DivaProcessor).
    With `LLMConfig.lora` the LLM also has trained matrices. The student reads with them, the teacher without them.
    """

    config_class = DivaConfig
    main_input_name: ClassVar[str] = "input_ids"
    _supports_sdpa: ClassVar[bool] = True
    _no_split_modules: ClassVar[list[str]] = []

    prefix_ids: Tensor
    suffix_ids: Tensor
    # True if the encoder is not the one that the config names, but one trained with the adapter, from its checkpoint.
    has_own_encoder = False
    # False: each row reads the prefix anew (diva.training.distributed.compilation).
    reuses_prefix = True

    def __init__(self, config: DivaConfig, parts: Parts | None = None):
        """Build the model that `config` describes. Without `parts` its weights are random."""
        parts = random_parts(config) if parts is None else parts
        llm = parts.llm.requires_grad_(False)
        if config.llm.lora is not None:
            add_lora(llm, config.llm.lora)
        config.know_llm(llm.config.get_text_config())
        super().__init__(config)
        if config.adapter.tokens_per_second is not None and not has_keys_only(llm):
            raise UserError(
                f"model.adapter.tokens_per_second={config.adapter.tokens_per_second:g}: {config.llm.name} has layers"
                " that read on from the position before, and cannot pass over those of a short clip; take null"
            )
        self.encoder = parts.encoder
        self.adapter = make_adapter(
            config.adapter, parts.decoder, self.encoder.width, Embeddings(llm).shape[1]
        )
        self.llm = llm
        if config.llm.attention == "eager":
            # The same matrix products, without a copy of the keys for each head.
            llm.set_attn_implementation(GROUPED)
        self.processor = parts.processor
        self.generation_config = llm.generation_config
        prompt = user_turn(
            parts.processor.tokenizer, config.llm.system_prompt, template_kwargs=config.llm.template_kwargs
        )
        for name, ids in (("prefix_ids", prompt.prefix_ids), ("suffix_ids", prompt.suffix_ids)):
            self.register_buffer(name, torch.tensor(ids, dtype=torch.long), persistent=False)
        self._prefix_cache: PrefixCache | None = None

    def train(self, mode: bool = True) -> "DivaForConditionalGeneration":
        """Set the mode of the adapter only. Frozen parts stay in evaluation mode, because dropout would change them."""
        super().train(mode)
        self.encoder.eval()
        self.llm.eval()
        return self

    def trained_parameters(self) -> list[nn.Parameter]:
        """Those of the adapter, then the LLM's LoRA matrices."""
        return [*self.adapter.parameters(), *lora_state(self.llm).values()]

    # ---- speech to virtual tokens

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

    # ---- training: the hidden state that predicts the next token

    def student_states(
        self,
        virtual_tokens: Tensor,
        samples: Tensor | None = None,
        padded_samples: int = 0,
        after: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """v [B, Q, D] -> hidden state after the final norm at the last position of the suffix, [B, D].

        With ids `after` [B, C] in place of the suffix: the states [B, P, D] at their positions `at` [B, P].
        With `AdapterConfig.tokens_per_second` the LLM reads virtual tokens in proportion to the length of the clip.
        That needs `samples` [B] and `padded_samples`, the length of the padded waveforms. Otherwise it reads all.
        """
        rest = self.embed(self.suffix_ids.expand(len(virtual_tokens), -1) if after is None else after)
        v, unread = virtual_tokens.to(rest.dtype), None
        adapter = self.config.adapter
        if adapter.tokens_per_second is not None and samples is not None:
            # From the shape of the batch, which the host knows. Only the device knows the longest clip.
            v = v[:, -longest_tokens_read(padded_samples, v.shape[1], adapter.tokens_per_second) :]
            # A clip may be slightly longer than its bucket (SpeechDataset). Then its first virtual tokens are missing.
            unread = (v.shape[1] - adapter.tokens_read(samples)).clamp(min=0)
        states = self._states(torch.cat([v, rest], dim=1), unread)
        return states[:, -1] if at is None else _at(states, v.shape[1] + at)

    @torch.no_grad()
    def teacher_states(
        self, token_ids: Tensor, tokens: Tensor, after: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Transcripts [B, N] of `tokens` [B] -> the same hidden state when the LLM reads the transcript, [B, D].

        With `after` [B, C] and `at` [B, P] the result is [B, P, D]. The suffix of a row follows its own last token.
        Padding comes after the suffix. Causal attention does not see it, so no mask is needed.
        """
        if token_ids.device.type != "xla":  # XLA would compile every new width
            token_ids = token_ids[:, : int(tokens.max())]
        rest = self.suffix_ids.expand(len(token_ids), -1) if after is None else after
        position = torch.arange(rest.shape[1], device=token_ids.device) + tokens.unsqueeze(1)
        ids = nn.functional.pad(token_ids, (0, rest.shape[1])).scatter(1, position, rest)
        with without_lora(self.llm):
            states = self._states(self.embed(ids))
        if at is None:
            return states[torch.arange(len(ids), device=ids.device), position[:, -1]]
        return _at(states, tokens.unsqueeze(1) + at)

    def logits(self, states: Tensor) -> Tensor:
        """Hidden states [..., D] -> next-token logits [..., V] in float32."""
        return logits(self.llm, states)

    def _states(self, embeddings: Tensor, unread: Tensor | None = None) -> Tensor:
        """Embeddings [B, L, D] after the prefix -> hidden states after the final norm [B, L, D].

        The first `unread` [B] positions of each row are masked and do not count in the position ids.
        """
        start = 0
        # The frozen LLM computes in the precision of its weights. Autocast would only add casts.
        with torch.autocast(embeddings.device.type, enabled=False):
            cache = self._prefix(len(embeddings))
            options = {} if unread is None else self._skip_first(unread, embeddings.shape[1], cache is None)
            if cache is None and len(self.prefix_ids) > 0:
                start = len(self.prefix_ids)
                prefix = self.embed(self.prefix_ids).expand(len(embeddings), -1, -1)
                embeddings = torch.cat([prefix, embeddings], dim=1)
            output = decoder(self.llm)(
                inputs_embeds=embeddings, past_key_values=cache, use_cache=cache is not None, **options
            )
        return output.last_hidden_state[:, start:]

    def _skip_first(self, unread: Tensor, length: int, reads_prefix: bool) -> dict[str, Tensor]:
        """Mask and position ids that make the LLM skip the first `unread` [B] of `length` positions L after the prefix.

        The mask is [B, 1, L, P + L], True: visible, with P the length of the prefix. Position ids are [B, L]. If the
        LLM reads the prefix, too, both have P + L in place of L.
        transformers would read a mask of two dimensions on the host. Skipped positions see themselves: attention over
        no position would be NaN.
        """
        start = len(self.prefix_ids)
        place = torch.arange(start + length, device=unread.device)
        first = 0 if reads_prefix else start
        new = place[first:].unsqueeze(1)
        read = (place < start) | (place >= start + unread.unsqueeze(1))
        mask = ((place <= new) & read.unsqueeze(1)) | (place == new)
        positions = torch.where(place < start, place, (place - unread.unsqueeze(1)).clamp(min=0))
        options = {"attention_mask": masks(self.llm, mask.unsqueeze(1), positions)}
        return options | {"position_ids": positions[:, first:]}

    def _prefix(self, batch: int) -> DynamicCache | None:
        """The prefix's keys and values, expanded to `batch` rows.

        None for a template without a prefix, for an LLM with other state than keys and values, and if it is not reused.
        With LoRA they change with each step, and have a gradient. So they are computed anew in each call.
        """
        if len(self.prefix_ids) == 0 or not self.reuses_prefix or not has_keys_only(self.llm):
            return None
        known = self._read_prefix() if reads_with_lora(self.llm) else self._cached_prefix()
        cache = DynamicCache()
        for index, layer in enumerate(known.layers):
            shape = (batch, -1, -1, -1)
            cache.update(layer.keys.expand(shape), layer.values.expand(shape), index)
        return cache

    @torch.no_grad()
    def _cached_prefix(self) -> PrefixCache:
        known = self._prefix_cache
        if known is None or known.layers[0].keys.device != self.prefix_ids.device:
            known = self._prefix_cache = self._read_prefix()
        return known

    def _read_prefix(self) -> PrefixCache:
        # All keys, also for layers with a sliding window: how many are visible depends on the later tokens.
        cache = PrefixCache()
        decoder(self.llm)(input_ids=self.prefix_ids.unsqueeze(0), past_key_values=cache, use_cache=True)
        return cache

    # ---- generation

    def input_embeddings(
        self,
        input_ids: Tensor,
        audio: Tensor | None = None,
        audio_samples: Tensor | None = None,
        virtual_tokens: Tensor | None = None,
    ) -> Tensor:
        """Ids [B, L] with placeholders for each clip -> embeddings [B, L, D], its virtual tokens in their place.

        `audio` [A, S] and `audio_samples` [A] are the clips of the whole batch in reading order. `virtual_tokens`
        [A, Q, D] are theirs, if the caller has them already.
        """
        placeholders = input_ids == self.processor.audio_token_id
        embeddings = self.embed(input_ids.masked_fill(placeholders, 0))
        if audio is None:
            return embeddings
        read = self.config.adapter.tokens_read(audio_samples)
        if int(placeholders.sum()) != int(read.sum()):
            raise ValueError(
                f"input_ids has {int(placeholders.sum())} places for virtual tokens, while {len(audio)} clips give"
                f" {int(read.sum())}; let DivaProcessor make both"
            )
        device = self.encoder.device
        if virtual_tokens is None:
            virtual_tokens = self.virtual_tokens(audio.to(device), audio_samples.to(device))
        v = virtual_tokens.to(embeddings.device)
        number = torch.arange(v.shape[1], device=read.device)
        v = v[number >= v.shape[1] - read.unsqueeze(1)]
        return embeddings.masked_scatter(placeholders.unsqueeze(-1), v.to(embeddings.dtype))

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
        """The LLM's output for a chat with speech. Further arguments are those of the LLM's own `forward`.

        `logits_to_keep` must be in the signature: transformers checks it, and `generate` then asks for the last logits
        only.
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

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: all parts (`Parts`) and the adapter are already initialized."""

    # ---- files

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        config: DivaConfig | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        speech_encoder_device: str | torch.device | None = None,
        llm: str | None = None,
        encoder: str | None = None,
        encoder_dtype: str | torch.dtype | None = None,
        **kwargs: Any,
    ) -> "DivaForConditionalGeneration":
        """The model of a run directory, an export, or a hub id in our layout or a published one.

        `dtype` is the precision of the frozen parts, `encoder_dtype` that of the encoder alone. `device_map` is for the
        LLM. `speech_encoder_device` is for encoder and adapter; by default it is the device of the LLM's input
        embeddings. `llm` and `encoder` (folders, or names as on the hub) replace the names in the files. They are
        needed if the files name none.
        Raises UserError for files that cannot be read, and for weights that do not fit their LLM or encoder.
        """
        for key in kwargs.keys() - _IGNORED:
            if key not in _HUB_ONLY:
                raise TypeError(
                    f"from_pretrained of a DiVA takes no {key!r}; it takes dtype, device_map,"
                    " speech_encoder_device, llm, encoder, encoder_dtype"
                )
            if kwargs[key] not in (None, False, "main"):
                raise TypeError(
                    f"from_pretrained of a DiVA takes no {key!r}: download that revision, give its folder"
                )
        folder = export_folder(name)
        checkpoint = read(folder, llm, encoder)
        config = checkpoint.config.in_precision(dtype or torch_dtype, encoder_dtype)
        model = cls(config, load_parts(config, device_map=device_map))
        check_fit(model.adapter.state_dict(), checkpoint.adapter, folder, config)
        model.adapter.load_state_dict(checkpoint.adapter)
        load_lora(model.llm, checkpoint.lora, str(folder))
        if checkpoint.encoder is not None:
            check_fit(model.encoder.body.state_dict(), checkpoint.encoder, folder, config)
            if not same_weights(model.encoder.body.state_dict(), checkpoint.encoder):
                model.encoder.body.load_state_dict(checkpoint.encoder)
                model.has_own_encoder = True
        device = Embeddings(model.llm).weight.device
        for part in (model.encoder, model.adapter):
            part.to(speech_encoder_device or device)
        model.prefix_ids, model.suffix_ids = model.prefix_ids.to(device), model.suffix_ids.to(device)
        model.name_or_path = str(name)
        return model.eval()

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        full: bool = False,
        layout: Literal["diva", "released"] = "diva",
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write an export: the adapter and LoRA matrices, the names of the frozen parts, the code to load it.

        `full` also writes the frozen parts. `layout="released"` writes the layout that the published code reads; that
        code then uses its own prompt and 30 s windows. `state_dict` is the adapter's gathered state; it is needed if
        the model is sharded over devices.
        """
        if unknown := kwargs.keys() - _IGNORED_IN_SAVING:
            raise TypeError(
                f"save_pretrained of a DiVA takes full and layout, not {', '.join(sorted(unknown))}"
            )
        if self.has_own_encoder and not full:
            raise UserError(
                f"the encoder of this model is not {self.config.encoder.name} but was trained with its adapter: write"
                " it out too, with save_pretrained(FOLDER, full=True)"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        adapter = self.adapter.state_dict() if state_dict is None else state_dict
        if layout == "released":
            if self.config.llm.lora is not None:
                raise UserError(
                    "the released layout has no place for LoRA matrices of the LLM (model.llm.lora); write the other"
                    " layout, save_pretrained(FOLDER)"
                )
            write(folder, self.config.to_released(), self._released(adapter))
            return
        config = self.config.to_dict() | {"architectures": [type(self).__name__], "auto_map": AUTO_MAP}
        if full:
            self._save_frozen(folder)
            config |= {part: config[part] | {"name": part} for part in ("encoder", "llm")}
            if self.config.adapter.decoder is not None:
                config["adapter"] |= {"decoder": "decoder"}
        write_code(folder)
        self.processor.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
        self.processor.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)
        write(folder, config, adapter | lora_state(self.llm))

    def _save_frozen(self, folder: Path) -> None:
        self.llm.save_pretrained(folder / "llm", state_dict=frozen_weights(self.llm.state_dict().items()))
        self.processor.tokenizer.save_pretrained(folder / "llm")
        save_encoder(self.encoder, folder / "encoder", self.config.encoder.name, self.has_own_encoder)
        if (decoder := self.config.adapter.decoder) is not None:
            load_whisper(decoder).save_pretrained(folder / "decoder")

    def _released(self, adapter: dict[str, Tensor]) -> dict[str, Tensor]:
        """The adapter's weights in the published layout."""
        if self.encoder.body.config.model_type != "whisper" or self.config.adapter.decoder is not None:
            raise UserError(
                "the published code has a Whisper and a Q-Former from its decoder; this model has model.encoder.name="
                f"{self.config.encoder.name} and model.adapter.decoder={self.config.adapter.decoder}"
            )
        decoder = load_whisper(self.config.encoder.name).decoder.state_dict()
        return to_released(self.config.adapter, adapter, decoder)


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """States [B, L, D] at positions [B, P] -> [B, P, D]."""
    return states.gather(1, positions.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
