"""Clips of a request -> waveforms for the model, and the places of their virtual tokens in the prompt."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
)

from diva.audio.decoding import to_waveform
from diva.audio.frames import SAMPLE_RATE, WHISPER_SECONDS, windows
from diva.models.parts import make_processor
from diva.models.processing import AUDIO, DivaProcessor

from .config import ServedConfig

_WINDOW = int(WHISPER_SECONDS * SAMPLE_RATE)


def served_processor(config: ServedConfig, tokenizer: Any) -> DivaProcessor:
    """The processor of a model that vLLM serves. vLLM makes as many embeddings as the LLM's config says."""
    return make_processor(config, tokenizer, config.get_text_config().vocab_size)


class DivaInfo(BaseProcessingInfo):
    """What vLLM asks about the inputs of a DiVA."""

    @cached_property
    def processor(self) -> DivaProcessor:
        return served_processor(self.get_hf_config(), self.get_tokenizer())

    def get_hf_processor(self, **kwargs: object) -> DivaProcessor:
        return self.processor

    def get_default_tok_params(self) -> Any:
        return super().get_default_tok_params().with_kwargs(add_special_tokens=False)

    def get_data_parser(self) -> MultiModalDataParser:
        # diva.audio.decoding resamples with torchaudio too, if it is there.
        method = "torchaudio" if find_spec("torchaudio") else "soxr"
        return MultiModalDataParser(target_sr=SAMPLE_RATE, target_channels=1, audio_resample_method=method)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"audio": None}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return {"audio_kwargs": set()}

    def longest_windows(self, tokens: int) -> int:
        """Windows of the longest clip whose virtual tokens are at most `tokens`, at least one."""
        longest = int(self.processor.max_audio_seconds / WHISPER_SECONDS)
        return max(1, min(longest, tokens // self.places_of_window()))

    def places_of_window(self) -> int:
        """Virtual tokens of 30 s."""
        return self.processor.places([np.zeros(_WINDOW)])

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"audio": self.places_of_window() * self.longest_windows(seq_len)}


class DivaDummyInputs(BaseDummyInputsBuilder[DivaInfo]):
    """The longest clips, which vLLM uses to measure how much memory encoder and adapter take."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return AUDIO * mm_counts.get("audio", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict:
        clips = mm_counts.get("audio", 0)
        each = self.info.longest_windows(seq_len // max(1, clips))
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, each * _WINDOW).astype(np.float32)
        return {"audio": [noise] * clips}


class DivaMultiModalProcessor(BaseMultiModalProcessor[DivaInfo]):
    """Replaces the placeholder of each clip, `DivaProcessor.audio_token_id`, by one for each virtual token.

    The new ones are padding tokens: vLLM refuses prompts with tokens outside the vocabulary.
    """

    def get_dummy_inputs(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any
    ) -> ProcessorInputs:
        """As vLLM's, without the tokenizer, which does not know the placeholder."""
        data = self.dummy_inputs.get_dummy_mm_data(seq_len, mm_counts, mm_options)
        ids = [self.info.processor.audio_token_id] * mm_counts.get("audio", 0)
        return ProcessorInputs(prompt=ids, mm_data_items=self.info.parse_mm_data(data, validate=False))

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        longest = self.info.processor.max_audio_seconds
        clips: Any = hf_data["audio"]
        waveforms = [to_waveform(np.asarray(clip), SAMPLE_RATE, longest) for clip in clips]
        return BatchFeature({"audio": [torch.from_numpy(waveform) for waveform in waveforms]})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        # The model cuts long clips on the host.
        return {"audio": MultiModalFieldConfig.batched("audio", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        processor = self.info.processor

        def replacement(index: int) -> list[int]:
            waveform = out_mm_kwargs["audio"][index]["audio"].data.numpy()
            return [processor.pad_token_id] * processor.places(windows(waveform))

        return [PromptReplacement("audio", [processor.audio_token_id], replacement)]
