"""The running batch. Rows join and leave it between two tokens.

transformers' own manager of continuous batches cannot be used: it takes token ids and no embeddings (5.23:
`ContinuousBatchingManager.add_request`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessorList

from diva.models.modeling import DivaForConditionalGeneration
from diva.serving.rows import Choice, Job, Row


class RunningBatch:
    """Rows that each get a token in every step.

    The keys and values [B, H, L, D] of all rows end in the same column. Columns to the left of a row's first token are
    masked, and positions count a row's own tokens only. So a row's answer does not depend on the other rows. When two
    batches join, the shorter one is padded on the left. Left columns that no row uses any more are removed.
    """

    def __init__(self, model: DivaForConditionalGeneration):
        self._model = model
        self.rows: list[Row] = []
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0)  # [B, L]

    @torch.no_grad()
    def admit(self, newcomers: Sequence[Row]) -> None:
        """Run the new rows' chats through the LLM, give each row its first token, and add unfinished ones to the batch.

        If that fails, the rows of the batch are not changed.
        """
        model = self._model
        inputs = model.processor.apply_chat_template([row.job.chat for row in newcomers]).to(
            model.prefix_ids.device
        )
        mask = inputs["attention_mask"]
        output = model.read(**inputs, virtual_tokens=self._hear(newcomers, inputs))
        heard = inputs["input_ids"] == model.processor.audio_token_id
        ids = inputs["input_ids"].masked_fill(heard, model.processor.pad_token_id)
        for row, row_ids, row_mask in zip(newcomers, ids, mask, strict=True):
            prompt = row_ids[row_mask.bool()]
            processors = _processors(model, prompt, row.job)
            row.begin(prompt.tolist(), Choice(row.job.sampling, processors, mask.device))
        _take(newcomers, output.logits)
        rows, cache, mask = _going_on(newcomers, output.past_key_values, mask)
        if self.rows and rows:
            width = max(mask.shape[1], self._mask.shape[1])
            cache = _map(lambda *pair: _stack(pair, width), self._cache, cache)
            mask = torch.cat([_pad_left(part, width, 1) for part in (self._mask, mask)])
        if rows:
            self.rows, self._cache, self._mask = [*self.rows, *rows], cache, mask

    def _hear(self, newcomers: Sequence[Row], inputs: Any) -> Tensor | None:
        """The virtual tokens of all clips [A, Q, D], None without a clip. Each row gets its last clip's distance."""
        if "audio" not in inputs:
            return None
        device = self._model.encoder.device
        v = self._model.virtual_tokens(inputs["audio"].to(device), inputs["audio_samples"].to(device))
        distances = iter(self._model.hearing_distances(v).tolist())
        for row in newcomers:
            of_windows = [next(distances) for _ in range(row.job.windows)]
            row.hearing = max(of_windows[-row.job.last_windows :], default=None)
        return v

    @torch.no_grad()
    def step(self) -> None:
        """Give each row its next token. Rows that have ended or are cancelled leave."""
        self._leave()
        if not self.rows:
            return
        tokens = torch.tensor([[row.last_token] for row in self.rows], device=self._mask.device)
        self._mask = nn.functional.pad(self._mask, (0, 1), value=1)
        output = self._model(
            input_ids=tokens,
            attention_mask=self._mask,
            position_ids=self._mask.sum(dim=1, keepdim=True) - 1,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        _take(self.rows, output.logits)
        self._leave()

    def _leave(self) -> None:
        self.rows, self._cache, self._mask = _going_on(self.rows, self._cache, self._mask)


def _take(rows: Sequence[Row], logits: Tensor) -> None:
    """Logits [B, 1, V] -> each row's next token."""
    logits = logits[:, -1].float()
    for row, greedy, row_logits in zip(rows, logits.argmax(dim=-1).tolist(), logits, strict=True):
        if not row.done:
            row.take(greedy, row_logits)


def _processors(model: DivaForConditionalGeneration, ids: Tensor, job: Job) -> LogitsProcessorList:
    """The logits processors that `generate` would use for this row alone, prompt ids [N]. Nothing is generated."""
    penalty: dict[str, Any] = {}
    if job.repetition_penalty is not None:
        penalty["repetition_penalty"] = job.repetition_penalty

    def hand_over(model: Any, input_ids: Tensor, logits_processor: Any, **_: Any) -> LogitsProcessorList:
        return logits_processor

    ids = ids.unsqueeze(0)
    mask = torch.ones_like(ids)
    return model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=job.max_tokens,
        custom_generate=hand_over,
        **penalty,
    )


def _going_on(
    rows: Sequence[Row], cache: DynamicCache, mask: Tensor
) -> tuple[list[Row], DynamicCache, Tensor]:
    """The batch without the finished rows."""
    left = [number for number, row in enumerate(rows) if not row.done]
    if len(left) == len(rows):
        return list(rows), cache, mask
    if not left:
        return [], DynamicCache(), mask[:0]
    keep = torch.tensor(left, device=mask.device)
    mask = mask[keep]
    first = int(mask.any(dim=0).int().argmax())
    cache = _map(lambda part: part[keep.to(part.device)][:, :, first:], cache)
    return [rows[number] for number in left], cache, mask[:, first:]


def _map(function: Callable[..., Tensor], *caches: DynamicCache) -> DynamicCache:
    """A cache with `function` applied to the keys and to the values [B, H, L, D] of each layer."""
    made = DynamicCache()
    for index, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        keys, values = (function(*(getattr(layer, name) for layer in layers)) for name in ("keys", "values"))
        made.update(keys, values, index)
    return made


def _stack(parts: Sequence[Tensor], width: int) -> Tensor:
    return torch.cat([_pad_left(part, width, 2) for part in parts])


def _pad_left(part: Tensor, width: int, dim: int) -> Tensor:
    """`part`, padded with zeros on the left of dimension `dim` to size `width`."""
    behind = part.dim() - 1 - dim
    return nn.functional.pad(part, (0, 0) * behind + (width - part.shape[dim], 0))
