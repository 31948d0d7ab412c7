"""The published training step of DiVA (Levanter, models/diva.py), reimplemented with the same computations.

Audio is padded to 30 s and its features are computed on the host; the encoder runs on all 1,500 frames; transcripts
are padded to 448 tokens and the teacher reads the padding too; prefix, virtual tokens and suffix pass through the
LLM together, in student and teacher; every step computes everything anew. Each pass has the attention that is fastest
for it, which is no part of the pattern: torch's fused kernel where the teacher reads its long rows without a gradient,
and what the LLM was given in the student. Of the published code's two errata only
the formula is taken (see diva.training.losses), so that both sides minimise the same loss.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from benchmarks.measure import Parts
from diva.audio.frames import SAMPLE_RATE

TEXT_TOKENS = 448


class PublishedTraining:
    """One training step on frozen parts and an adapter that are given, `[B, Q, D] = adapter(frames [B, F, E])`."""

    def __init__(
        self,
        whisper: WhisperEncoder,
        adapter: nn.Module,
        llm: PreTrainedModel,
        prefix: Sequence[int],
        suffix: Sequence[int],
        autocast: torch.dtype | None,
        text_tokens: int = TEXT_TOKENS,
    ):
        assert isinstance(whisper.config, WhisperConfig)
        self.features = WhisperFeatureExtractor(feature_size=whisper.config.num_mel_bins)
        self.whisper = whisper
        self.adapter = adapter
        self.llm = llm
        self.prefix, self.suffix = (torch.tensor(ids, device=llm.device) for ids in (prefix, suffix))
        self.autocast = autocast
        self.text_tokens = text_tokens

    def losses(
        self, clips: Sequence[np.ndarray], texts: Sequence[Sequence[int]], parts: Parts
    ) -> tuple[Tensor, Tensor]:
        """Clips [S] at 16 kHz and the token ids of their transcripts -> L_distill, L_align."""
        device = self.llm.device
        with parts("features"):
            mel = self.features(list(clips), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        with parts("encoder"), torch.no_grad():
            frames = self.whisper(mel.to(device, self.whisper.dtype)).last_hidden_state
        with parts("adapter"), self._precision():
            v = self.adapter(frames if self.autocast else frames.to(self.adapter.projection.weight.dtype))
        parts.ends_at(v, "student, backward")
        align = self._alignment(v, texts)
        with parts("student"):
            student = self._student(v)
        with parts("teacher"):
            teacher = self._teacher(texts)
        return (student.float() - teacher.float()).norm(dim=-1).mean(), align

    def _alignment(self, v: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """The last N of Q virtual tokens face the N tokens of the transcript."""
        embed = self.llm.get_input_embeddings()
        padded = torch.zeros(len(texts), v.shape[1], dtype=torch.long, device=v.device)
        mask = torch.zeros(padded.shape, dtype=torch.bool, device=v.device)
        for row, ids in enumerate(texts):
            padded[row, -len(ids) :] = torch.tensor(ids)
            mask[row, -len(ids) :] = True
        distances = (v.float() - embed(padded).float()).norm(dim=-1)
        return distances[mask].mean()

    def _student(self, v: Tensor) -> Tensor:
        """Virtual tokens [B, Q, D] -> the last hidden state of prefix | v | suffix, [B, D]."""
        embed = self.llm.get_input_embeddings()
        before, after = (embed(ids).expand(len(v), -1, -1) for ids in (self.prefix, self.suffix))
        inputs = torch.cat([before, v.to(before.dtype), after], dim=1)
        return self.llm.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1]

    @torch.no_grad()
    def _teacher(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The hidden states [B, D] at the last token of prefix | transcript | suffix | padding."""
        length = len(self.prefix) + self.text_tokens + len(self.suffix)
        ids = torch.zeros(len(texts), length, dtype=torch.long, device=self.prefix.device)
        last = []
        for row, text in enumerate(texts):
            chat = torch.cat([self.prefix, torch.tensor(text, device=self.prefix.device), self.suffix])
            ids[row, : len(chat)] = chat
            last.append(len(chat) - 1)
        given = self.llm.config._attn_implementation
        self.llm.set_attn_implementation("sdpa")
        states = self.llm.base_model(input_ids=ids, use_cache=False).last_hidden_state
        self.llm.set_attn_implementation(given)
        return states[torch.arange(len(texts)), last]

    def _precision(self):
        return torch.autocast(self.llm.device.type, self.autocast) if self.autocast else nullcontext()
