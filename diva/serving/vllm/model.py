"""The model in vLLM: encoder and adapter are diva's modules, the LLM is vLLM's."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from vllm.config import VllmConfig
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from diva.audio.frames import pad_clips, windows
from diva.models.encoder import SpeechEncoder
from diva.models.folders import read
from diva.models.parts import load_encoder, make_adapter
from diva.models.pretrained import adapter_files, resolve
from diva.models.processing import AUDIO
from diva.models.released import check_fit

from .processing import DivaDummyInputs, DivaInfo, DivaMultiModalProcessor

_LLM = "language_model."


@MULTIMODAL_REGISTRY.register_processor(DivaMultiModalProcessor, info=DivaInfo, dummy_inputs=DivaDummyInputs)
class ServedDiva(nn.Module, SupportsMultiModal, SupportsPP):
    """DivaForConditionalGeneration for vLLM.

    The encoder computes in vLLM's dtype unless `encoder.dtype` is set, the adapter in float32, as in diva. With tensor
    parallelism every rank has both; the LLM is sharded.
    """

    encoder: SpeechEncoder
    adapter: Any
    language_model: Any

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return AUDIO

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.dtype = vllm_config.model_config.dtype
        text = self.config.get_text_config()
        llm = str(resolve(self.config.llm.name))
        self.llm_is_multimodal = AutoConfig.from_pretrained(llm).model_type != text.model_type
        self.secondary_weights = [DefaultModelLoader.Source(model_or_path=llm, revision=None, prefix=_LLM)]
        # One of the export's files: vLLM wants weights of the model itself, and diva reads them (`load_weights`). The
        # other shards of a published DiVA hold its frozen parts again.
        self.allow_patterns_overrides = adapter_files(Path(self.config.name_or_path))
        with self._mark_tower_model(vllm_config, "audio"):
            self.encoder, self.adapter = self._tower(vllm_config, text.hidden_size)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config, hf_config=text, prefix=maybe_prefix(prefix, "language_model")
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def _tower(self, vllm_config: VllmConfig, llm_width: int) -> tuple[SpeechEncoder, nn.Module]:
        device = vllm_config.device_config.device
        encoder, decoder, _ = load_encoder(self.config, None if self.config.encoder.dtype else self.dtype)
        adapter = make_adapter(self.config.adapter, decoder, encoder.width, llm_width).float()
        return encoder.to(device).eval(), adapter.to(device).eval()

    def embed_multimodal(self, audio: Any = None, **kwargs: object) -> list[Tensor]:
        """Waveforms [S] of clips -> the virtual tokens of each that the LLM reads, [V', D]."""
        if audio is None:
            return []
        parts = [windows(clip.numpy()) for clip in audio]
        waveforms, samples = pad_clips([window for clip in parts for window in clip])
        read_each = self.config.adapter.tokens_read(samples).tolist()
        device = self.adapter.projection.weight.device
        frames, mask = self.encoder(waveforms.to(device), samples.to(device))
        v = self.adapter(frames.to(self.adapter.projection.weight.dtype), mask)
        rows = iter(tokens[len(tokens) - read_of :] for tokens, read_of in zip(v, read_each, strict=True))
        return [torch.cat([next(rows) for _ in clip]).to(self.dtype) for clip in parts]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """`weights` are those of the LLM, and those of the export's files, which diva reads itself."""
        loaded = AutoWeightsLoader(self).load_weights(_of_text(weights, self.llm_is_multimodal))
        folder = Path(self.config.name_or_path)
        checkpoint = read(folder)
        check_fit(self.adapter.state_dict(), checkpoint.adapter, folder, self.config)
        self.adapter.load_state_dict(checkpoint.adapter)
        if checkpoint.encoder is not None:
            check_fit(self.encoder.body.state_dict(), checkpoint.encoder, folder, self.config)
            self.encoder.body.load_state_dict(checkpoint.encoder)
        tower = {"encoder": self.encoder, "adapter": self.adapter}
        return loaded | {
            f"{part}.{name}" for part, module in tower.items() for name, _ in module.named_parameters()
        }


def _of_text(weights: Iterable[tuple[str, Tensor]], nested: bool) -> Iterator[tuple[str, Tensor]]:
    """The LLM's weights, named as its text model names them.

    In the files of a multi-modal LLM (`nested`) the names of the text part have `language_model` in them.
    """
    for name, weight in weights:
        if not name.startswith(_LLM):
            continue
        if not nested:
            yield name, weight
        elif name.startswith((f"{_LLM}language_model.", f"{_LLM}model.language_model.", f"{_LLM}lm_head.")):
            yield _LLM + name.removeprefix(_LLM).replace("language_model.", "", 1), weight
