"""The composed model: speech in, states and answers of the LLM out."""

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from diva.models.encoder import SpeechEncoder
from diva.prompts import Prompt


class Diva(nn.Module):
    """Frozen encoder and LLM with a trainable adapter between them.

    The student reads prefix | virtual tokens | suffix, the teacher prefix | transcript | suffix, both with
    the same frozen LLM (DiVA section 3). The prefix is the same for every clip: its keys and values are
    computed once per device and expanded over the batch.
    """

    prefix_ids: Tensor
    suffix_ids: Tensor

    def __init__(
        self,
        encoder: SpeechEncoder,
        adapter: nn.Module,
        llm: PreTrainedModel,
        prompt: Prompt,
        max_tokens: int,
    ):
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.llm = llm.requires_grad_(False)
        self.max_tokens = max_tokens
        self.register_buffer(
            "prefix_ids", torch.tensor(prompt.prefix_ids, dtype=torch.long), persistent=False
        )
        self.register_buffer(
            "suffix_ids", torch.tensor(prompt.suffix_ids, dtype=torch.long), persistent=False
        )
        self._prefix_cache: DynamicCache | None = None

    def train(self, mode: bool = True) -> "Diva":
        """Only the adapter ever leaves evaluation mode: a frozen part with dropout would not be frozen."""
        super().train(mode)
        self.encoder.eval()
        self.llm.eval()
        return self

    def virtual_tokens(self, waveforms: Tensor, samples: Tensor) -> Tensor:
        """Waveforms [B, S] of `samples` [B] -> virtual tokens v [B, Q, D]."""
        frames, mask = self.encoder(waveforms, samples)
        return self.adapter(frames, mask)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [...] -> the LLM's input embeddings [..., D]."""
        return self.llm.get_input_embeddings()(token_ids)

    def student_states(self, virtual_tokens: Tensor) -> Tensor:
        """v [B, Q, D] -> hidden state after the final norm at the last position of the suffix, [B, D]."""
        suffix = self.embed(self.suffix_ids).expand(len(virtual_tokens), -1, -1)
        return self._states(torch.cat([virtual_tokens.to(suffix.dtype), suffix], dim=1))[:, -1]

    @torch.no_grad()
    def teacher_states(self, token_ids: Tensor, tokens: Tensor) -> Tensor:
        """Transcripts [B, N] of `tokens` [B] -> the same state when the LLM reads them, [B, D].

        Each row's suffix follows its own last token; what is padded comes after the suffix, where causal
        attention cannot look, so no mask is needed.
        """
        suffix = self.suffix_ids.expand(len(token_ids), -1)
        position = torch.arange(suffix.shape[1], device=token_ids.device) + tokens.unsqueeze(1)
        ids = nn.functional.pad(token_ids, (0, suffix.shape[1])).scatter(1, position, suffix)
        states = self._states(self.embed(ids))
        return states[torch.arange(len(ids), device=ids.device), position[:, -1]]

    def logits(self, states: Tensor) -> Tensor:
        """Hidden states [..., D] -> next-token logits [..., V] in float32."""
        return self.llm.get_output_embeddings()(states).float()

    def _states(self, embeddings: Tensor) -> Tensor:
        """Embeddings [B, L, D] behind the prefix -> hidden states after the final norm [B, L, D]."""
        # The frozen LLM computes in the precision it is held in: autocast would only add casts.
        with torch.autocast(embeddings.device.type, enabled=False):
            output = self.llm.base_model(
                inputs_embeds=embeddings, past_key_values=self._prefix(len(embeddings)), use_cache=True
            )
        return output.last_hidden_state

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

    @torch.no_grad()
    def answer(
        self, waveforms: Tensor, samples: Tensor, max_new_tokens: int = 64, prompt: Prompt | None = None
    ) -> Tensor:
        """Speech [B, S] -> greedy answers, token ids [B, <= max_new_tokens], padded after the end token.

        `prompt` stands in for the one the model was trained under.
        """
        v = self.virtual_tokens(waveforms, samples)
        prefix, suffix = (self.embed(ids).expand(len(v), -1, -1) for ids in self._around(prompt, v.device))
        return self._generate(torch.cat([prefix, v.to(prefix.dtype), suffix], dim=1), max_new_tokens)

    @torch.no_grad()
    def answer_text(self, token_ids: Tensor, max_new_tokens: int = 64) -> Tensor:
        """The text teacher's greedy answer to one transcript [N], token ids [1, <= max_new_tokens]."""
        ids = torch.cat([self.prefix_ids, token_ids, self.suffix_ids])
        return self._generate(self.embed(ids).unsqueeze(0), max_new_tokens)

    def _around(self, prompt: Prompt | None, device: torch.device) -> tuple[Tensor, Tensor]:
        if prompt is None:
            return self.prefix_ids, self.suffix_ids
        ids = (
            torch.tensor(part, dtype=torch.long, device=device)
            for part in (prompt.prefix_ids, prompt.suffix_ids)
        )
        prefix, suffix = ids
        return prefix, suffix

    def _generate(self, embeddings: Tensor, max_new_tokens: int) -> Tensor:
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        return self.llm.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.llm.generation_config.pad_token_id,
        )
