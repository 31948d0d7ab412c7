"""One batch of speech, and the dataset that makes it from rows of a manifest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from diva.audio.frames import SAMPLE_RATE, TAIL_SECONDS, longest_clip, shortest_clip, tokens_read
from diva.audio.masks import Masks
from diva.data.augment import Augmentation, Draw
from diva.data.manifest import Manifest, Skip
from diva.errors import AudioFault

EMPTY_ROW = -1


class BatchPlan(NamedTuple):
    """The request of a sampler to the dataset: one batch."""

    clips: list[int]  # indices into the manifest; EMPTY_ROW for a row that only completes the shape
    padded_samples: int  # samples of every row, the same for all batches of the bucket
    step: int = 0  # number of the global batch since the start of training; augmentation depends on it


@dataclass
class SpeechBatch:
    """B clips of one bucket. An empty row, or a row whose clip is faulty, has no samples and no tokens."""

    # [B, S] float32 at 16 kHz, zero-padded to the bucket's S; [B, 0] if waveforms are not loaded
    waveforms: Tensor
    samples: Tensor  # [B] int64, samples of each clip; 0 for an empty row
    token_ids: Tensor  # [B, N] int64 transcript tokens without special tokens, zero-padded to N = max_tokens
    tokens: Tensor  # [B] int64, transcript tokens of each clip; 0 for an empty row
    clips: Tensor  # [B] int64, index of each clip in its manifest; EMPTY_ROW for an empty row
    clip_ids: list[str]  # [B] the id of each clip in its corpus; "" for an empty row
    padded_samples: int  # S of the bucket, also if waveforms are not loaded
    faults: list[Skip] = field(default_factory=list)  # clips of this batch that could not be loaded
    masks: Masks | None = None  # what SpecAugment hides of the log-mel; None: nothing

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def valid(self) -> Tensor:
        """[B] bool: rows that hold a clip."""
        return self.tokens > 0

    @property
    def padding_fraction(self) -> float:
        """Fraction of the samples that is padding. The silent tail that every clip has by design is not padding."""
        room = len(self) * (self.padded_samples - int(TAIL_SECONDS * SAMPLE_RATE))
        return max(0.0, 1.0 - float(self.samples.sum()) / room)

    def micro_batches(self, size: int) -> list["SpeechBatch"]:
        """Contiguous slices of at most `size` rows. The slices do not carry the faults."""
        starts = range(0, len(self), size)
        parts = (slice(start, start + size) for start in starts)
        return [self._each(itemgetter(part), self.clip_ids[part], faults=[]) for part in parts]

    def to(self, device: torch.device | str) -> "SpeechBatch":
        """The batch on `device`; Lightning moves batches with this."""
        non_blocking = torch.device(device).type == "cuda"  # from pinned memory; a race on mps
        return self._each(
            lambda tensor: tensor.to(device, non_blocking=non_blocking), self.clip_ids, self.faults
        )

    def pin_memory(self) -> "SpeechBatch":
        """The batch in page-locked memory; DataLoader(pin_memory=True) calls this."""
        return self._each(Tensor.pin_memory, self.clip_ids, self.faults)

    def _each(
        self, change: Callable[[Tensor], Tensor], clip_ids: list[str], faults: list[Skip]
    ) -> "SpeechBatch":
        return SpeechBatch(
            waveforms=change(self.waveforms),
            samples=change(self.samples),
            token_ids=change(self.token_ids),
            tokens=change(self.tokens),
            clips=change(self.clips),
            clip_ids=clip_ids,
            padded_samples=self.padded_samples,
            faults=faults,
            masks=None if self.masks is None else self.masks.each(change),
        )


class SpeechDataset(Dataset[SpeechBatch]):
    """Loads whole batches: give it to a DataLoader with `batch_size=None` and a sampler of BatchPlans.

    One bad file never ends a run. A clip that cannot be decoded, or that is longer than its bucket (a wrong entry in
    clip_durations.tsv), gives an empty row and an entry in `faults`.
    `heard=False` does not load waveforms; the manifest must be decoded. It is for clips whose encoder frames are
    cached.
    A transcript has at most `max_tokens` tokens. With `tokens_per_second` the limit also depends on the length of the
    clip (`diva.audio.frames.tokens_read`).
    `augment` changes every waveform, by `seed` and the step. At another speed, a clip still fits into its bucket, and
    still has a virtual token for each token of its transcript.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        heard: bool = True,
        tokens_per_second: float | None = None,
        augment: Augmentation | None = None,
        seed: int = 0,
    ):
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.tokens_per_second = tokens_per_second
        self.heard = heard
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, plan: BatchPlan) -> SpeechBatch:
        rows = len(plan.clips)
        waveforms = torch.zeros(rows, plan.padded_samples if self.heard else 0)
        token_ids = np.zeros((rows, self.max_tokens), dtype=np.int64)
        # Lists of numbers, made into tensors at the end: setting one tensor element is slower than loading its clip.
        samples, tokens, clips, clip_ids = [0] * rows, [0] * rows, [EMPTY_ROW] * rows, [""] * rows
        faults: list[Skip] = []
        masks = None if self.augment is None else self.augment.no_masks(rows)
        for row, clip in enumerate(plan.clips):
            if clip == EMPTY_ROW:
                continue
            clip_id = self.manifest.clips["clip_id"][clip].as_py()
            try:
                waveform = self._waveform(clip, plan.padded_samples)
                length = len(waveform) if self.heard else self._listed_samples(clip)
                ids = self._tokens(clip, length)
            except AudioFault as fault:
                faults.append(Skip(clip_id, fault.reason, fault.detail))
                continue
            if self.augment is not None:
                draw = Draw(self.seed, plan.step, clip_id)
                limits = self._limits(length, len(ids), plan.padded_samples)
                waveform = self.augment.waveform(waveform, draw, *limits)
                length = len(waveform)
                if masks is not None:
                    masks.times[row], masks.bands[row] = self.augment.spans(length, draw)
            waveforms[row, : len(waveform)] = torch.from_numpy(waveform)
            token_ids[row, : len(ids)] = ids
            samples[row], tokens[row], clips[row], clip_ids[row] = length, len(ids), clip, clip_id
        return SpeechBatch(
            waveforms=waveforms,
            samples=torch.tensor(samples),
            token_ids=torch.from_numpy(token_ids),
            tokens=torch.tensor(tokens),
            clips=torch.tensor(clips),
            clip_ids=clip_ids,
            padded_samples=plan.padded_samples,
            faults=faults,
            masks=masks,
        )

    def _limits(self, samples: int, tokens: int, padded: int) -> tuple[int, int]:
        """The least and the most samples that a clip may have at another speed. Its own number is always allowed."""
        shortest = shortest_clip(tokens, self.tokens_per_second)
        return min(samples, shortest), max(samples, longest_clip(padded))

    def _waveform(self, clip: int, limit: int) -> np.ndarray:
        """The waveform [S] of a clip, S <= limit. A listed duration may be too short by at most the silent tail."""
        if not self.heard:
            return np.empty(0, dtype=np.float32)
        waveform = self.manifest.waveform(clip)
        if len(waveform) > limit:
            listed = self.manifest.durations[clip]
            raise AudioFault(
                "too long for its bucket",
                f"it lasts {len(waveform) / SAMPLE_RATE:.2f} s, its listed duration is {listed:.2f} s",
            )
        return waveform

    def _listed_samples(self, clip: int) -> int:
        return round(float(self.manifest.durations[clip]) * SAMPLE_RATE)

    def _tokens(self, clip: int, samples: int) -> list[int]:
        """The token ids of a clip's transcript: at least one, at most the number of the clip's virtual tokens."""
        ids = transcript_tokens(self.tokenizer, [self.manifest.text(clip)])[0]
        most = self.max_tokens
        if self.tokens_per_second is not None:
            most = int(tokens_read(torch.tensor(samples), most, self.tokens_per_second))
        if fault := transcript_fault(len(ids), most):
            raise fault
        return ids


def transcript_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, without BOS, EOS or any other special token."""
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def transcript_fault(tokens: int, max_tokens: int) -> AudioFault | None:
    """The fault of a transcript with this number of tokens, if training cannot use it; otherwise None."""
    if tokens == 0:
        return AudioFault("empty text", "the tokenizer finds no token in the transcript")
    if tokens > max_tokens:
        return AudioFault(
            "too many tokens", f"{tokens} transcript tokens, the model has {max_tokens} virtual tokens for it"
        )
    return None
