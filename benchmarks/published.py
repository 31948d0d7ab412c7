"""The published inference of DiVA (modeling_diva.py of WillHeld/DiVA-llama-3-v0-8b), restated.

Log-mel of a 30 s window on the CPU, the encoder over all 1,500 frames, the whole Whisper decoder as the connector,
and a greedy loop of its own without an attention mask. Prompts of a batch are padded on the right, inside the
chat: kept as it is, so prompts of different lengths answer differently in a batch than alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    WhisperFeatureExtractor,
    WhisperModel,
)


@dataclass
class Published:
    """A checkpoint in the published layout, with what it names."""

    features: WhisperFeatureExtractor
    whisper: WhisperModel  # its decoder carries the checkpoint's weights
    queries: Tensor  # [Q, E]
    weight: Tensor  # [D, E]
    bias: Tensor  # [D]
    llm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_token: int  # of an answer; the published code has Llama 3's written into it

    @classmethod
    def load(
        cls, checkpoint: Path, encoder: Path, llm: Path, end_token: int, dtype: torch.dtype
    ) -> "Published":
        state = load_file(checkpoint / "model.safetensors")
        whisper = WhisperModel.from_pretrained(encoder, dtype=torch.float32)
        prefix = "connector."
        decoder = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        whisper.decoder.load_state_dict(decoder)
        return cls(
            features=WhisperFeatureExtractor.from_pretrained(encoder),
            whisper=whisper.eval(),
            queries=state["query_tokens"],
            weight=state["projection.weight"].T,
            bias=state["projection.bias"],
            llm=AutoModelForCausalLM.from_pretrained(llm, dtype=dtype).eval(),
            tokenizer=AutoTokenizer.from_pretrained(llm),
            end_token=end_token,
        )

    @torch.no_grad()
    def virtual_tokens(self, clips: Sequence[np.ndarray]) -> Tensor:
        """Clips [S] at 16 kHz -> [B, Q, D]."""
        mel = self.features(list(clips), sampling_rate=16_000, return_tensors="pt").input_features
        frames = self.whisper.encoder(mel).last_hidden_state
        queries = self.queries.expand(len(clips), -1, -1)
        hidden = self.whisper.decoder(inputs_embeds=queries, encoder_hidden_states=frames).last_hidden_state
        return torch.nn.functional.linear(hidden, self.weight, self.bias)

    def around(self, prompts: Sequence[str] | None, batch: int) -> tuple[Tensor, Tensor]:
        """Token ids before [B, P] and after [B, S] the virtual tokens."""
        mark = "PLACEHOLDER"
        turn = [{"role": "user", "content": mark}]
        text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        before, after = text.split(mark)
        suffix = self._ids(after).expand(batch, -1)
        if not prompts:
            return self._ids(before).expand(batch, -1), suffix
        lines = [line for line in before.split("\n") if line.strip()]
        head, tail = self._ids(lines[0] + "\n"), self._ids("\n" + lines[-1] + "\n")
        asked = self.tokenizer(list(prompts), add_special_tokens=False, padding=True, padding_side="right")
        parts = [head.expand(batch, -1), torch.tensor(asked["input_ids"]), tail.expand(batch, -1)]
        return torch.cat(parts, dim=1), suffix

    def _ids(self, text: str) -> Tensor:
        return torch.tensor([self.tokenizer.encode(text, add_special_tokens=False)], dtype=torch.long)

    @torch.no_grad()
    def generate(
        self, clips: Sequence[np.ndarray], prompts: Sequence[str] | None = None, max_new_tokens: int = 128
    ) -> list[list[int]]:
        """Greedy answers as token ids, the end token included."""
        prefix, suffix = self.around(prompts, len(clips))
        embed = self.llm.get_input_embeddings()
        v = self.virtual_tokens(clips)
        step = torch.cat([embed(prefix), v.to(self.llm.dtype), embed(suffix)], dim=1)
        answers: list[list[int]] = [[] for _ in clips]
        cache = None
        while any(not row or row[-1] != self.end_token for row in answers):
            if max(map(len, answers)) >= max_new_tokens:
                break
            output = self.llm(inputs_embeds=step, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            tokens = output.logits[:, -1].argmax(dim=-1)
            for row, token in zip(answers, tokens.tolist(), strict=True):
                if not row or row[-1] != self.end_token:
                    row.append(token)
            step = embed(tokens.unsqueeze(1))
        return answers
