"""What the frozen parts say about a corpus, computed once instead of once per step.

The teacher reads text alone and the encoder hears audio alone; both are frozen, so h_teacher of a transcript and
the frames of a clip never change. Each table is computed in an order that depends on the corpus only (not on when
training was interrupted) and kept on disk: a resumed run, another seed, another ablation find the same numbers.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from diva.audio.frames import SAMPLE_RATE, pad_clips, valid_frames
from diva.data.batch import SpeechBatch, transcript_tokens
from diva.data.decoded import DecodedAudio, build_once
from diva.data.manifest import Manifest
from diva.models.encoder import Context
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.pretrained import cache_dir
from diva.terminal import track

_FORMAT = "3"
_TENSORS = "table.safetensors"
_BATCH = 64

T = TypeVar("T")


@dataclass(frozen=True)
class Precompute:
    """Which outputs of the frozen parts a run caches.

    A table takes as long as one pass over the corpus, which a run on a large corpus may never make: training clips
    are cached only where the run uses each at least once. `teacher_states` caches one state [D] per distinct
    transcript. `encoder_frames_gb` is how much disk the frames of a split may take; above it the encoder runs with
    every batch. Frames are many: 0.1 MB a second of speech for Whisper tiny on the clip's own length.
    """

    teacher_states: bool = True
    encoder_frames_gb: float = 0.0

    def caches_teacher(self, clips: int, distilled: int) -> bool:
        """Whether to cache the teacher's states of `clips` clips in a run that distils `distilled` times one."""
        return self.teacher_states and distilled >= clips

    def caches_frames(self, clips: int, heard: int, size: float, context: Context, decoded: bool) -> bool:
        """Whether to cache the frames, `size` bytes, of `clips` clips in a run that encodes `heard` times one.

        Not those of 30 s windows, and not where the corpus was too large to be `decoded` once.
        """
        fits = size <= self.encoder_frames_gb * 1e9
        return heard >= clips and fits and decoded and context != "full"


def frames_bytes(durations: np.ndarray, width: int, dtype: torch.dtype) -> float:
    """Bytes of the encoder frames [F, width] of clips of `durations` [n] seconds."""
    frames = valid_frames(torch.from_numpy(durations * SAMPLE_RATE).long())
    return float(frames.sum()) * width * dtype.itemsize


class FrozenParts:
    """What encoder and teacher say about the clips of one split: cached, or computed with each batch."""

    def __init__(
        self,
        model: DivaForConditionalGeneration,
        cached_frames: "FrameTable | None" = None,
        cached_teacher: "TeacherTable | None" = None,
    ):
        self.model = model
        self.cached_frames = cached_frames
        self.cached_teacher = cached_teacher

    @classmethod
    def of_split(
        cls,
        model: DivaForConditionalGeneration,
        manifest: Manifest,
        tokenizer: PreTrainedTokenizerBase,
        precompute: Precompute,
        heard: int | None = None,
        distilled: int | None = None,
    ) -> "FrozenParts":
        """With the tables that pay in a run that encodes and distils so many clips of the split (None: all)."""
        clips, encoder = len(manifest), model.encoder
        weight = encoder.whisper.conv1.weight
        size = frames_bytes(manifest.durations, encoder.whisper.config.d_model, weight.dtype)
        decoded = isinstance(manifest.audio, DecodedAudio)
        heard, distilled = (clips if count is None else count for count in (heard, distilled))
        teacher = frames = None
        if precompute.caches_teacher(clips, distilled):
            teacher = TeacherTable.build(model, manifest, tokenizer)
        if precompute.caches_frames(clips, heard, size, encoder.context, decoded):
            frames = FrameTable.build(model, manifest)
        return cls(model, frames, teacher)

    @property
    def need_waveforms(self) -> bool:
        """Whether batches have to hold the clips' waveforms."""
        return self.cached_frames is None

    def frames(self, batch: SpeechBatch) -> tuple[Tensor, Tensor | None]:
        """Encoder frames [B, F, E] of a batch, and the mask [B, F] of valid ones (None: all are)."""
        if self.cached_frames is not None:
            return self.cached_frames(batch)
        return self.model.encoder(batch.waveforms, batch.samples)

    def teacher_states(self, batch: SpeechBatch) -> Tensor:
        """h_teacher [B, D] of a batch; without meaning in empty rows."""
        if self.cached_teacher is not None:
            return self.cached_teacher(batch)
        return self.model.teacher_states(batch.token_ids, batch.tokens)


class TeacherTable:
    """h_teacher of every clip of a manifest, by clip id."""

    def __init__(self, states: Tensor, rows: dict[str, int]):
        self.states = states  # [distinct transcripts, D]
        self.rows = rows  # clip id -> row of `states`

    def __call__(self, batch: SpeechBatch) -> Tensor:
        """States [B, D] on the batch's device; those of empty rows mean nothing."""
        rows = [self.rows[clip_id] if clip_id else 0 for clip_id in batch.clip_ids]
        return self.states[rows].to(batch.tokens.device)

    @classmethod
    def build(
        cls, model: DivaForConditionalGeneration, manifest: Manifest, tokenizer: PreTrainedTokenizerBase
    ) -> "TeacherTable":
        """From the cache, or computed by the first process that comes."""
        transcripts = [tuple(ids) for ids in transcript_tokens(tokenizer, manifest.clips["text"].to_pylist())]
        distinct = sorted(set(transcripts), key=lambda ids: (len(ids), ids))
        key = _digest(
            weights_digest(model.llm), model.prefix_ids.tolist(), model.suffix_ids.tolist(), distinct
        )
        table = _cached(f"teacher/{key}", lambda: {"states": _teacher_states(model, distinct)})
        row = {ids: number for number, ids in enumerate(distinct)}
        clip_ids = manifest.clips["clip_id"].to_pylist()
        rows = {clip_id: row[ids] for clip_id, ids in zip(clip_ids, transcripts, strict=True)}
        return cls(table["states"], rows)


def _teacher_states(model: DivaForConditionalGeneration, distinct: list[tuple[int, ...]]) -> Tensor:
    device = model.prefix_ids.device
    states = []
    for batch in track(list(_chunks(distinct)), "the teacher reads", transient=True):
        ids = pad_sequence([torch.tensor(x) for x in batch], batch_first=True).to(device)
        tokens = torch.tensor([len(x) for x in batch], device=device)
        states.append(model.teacher_states(ids, tokens).cpu())
    return torch.cat(states)


class FrameTable:
    """Encoder frames of every clip of a manifest, by clip id."""

    def __init__(self, frames: Tensor, starts: Tensor, rows: dict[str, int]):
        self.all_frames = frames  # [all frames of all clips, E]
        self.starts = starts.tolist()  # [clips + 1], where each clip's frames begin
        self.rows = rows  # clip id -> index into `starts`

    def __call__(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """Frames [B, F, E] and the mask [B, F] of valid ones, on the batch's device.

        An empty row has one frame of zeros that counts as valid: attention over nothing would be NaN.
        """
        device = batch.tokens.device
        rows = [self._frames_of(clip_id) for clip_id in batch.clip_ids]
        lengths = torch.tensor([len(row) for row in rows], device=device)
        frames = pad_sequence(rows, batch_first=True).to(device)
        return frames, torch.arange(frames.shape[1], device=device) < lengths.unsqueeze(1)

    def _frames_of(self, clip_id: str) -> Tensor:
        if not clip_id:
            return self.all_frames.new_zeros(1, self.all_frames.shape[1])
        row = self.rows[clip_id]
        return self.all_frames[self.starts[row] : self.starts[row + 1]]

    @classmethod
    def build(cls, model: DivaForConditionalGeneration, manifest: Manifest) -> "FrameTable":
        """From the cache, or computed by the first process that comes. The manifest's audio is decoded."""
        assert isinstance(manifest.audio, DecodedAudio)
        # The file of decoded audio is named for its contents.
        key = _digest(weights_digest(model.encoder.whisper), manifest.audio.file, manifest.rows.tolist())
        table = _cached(f"frames/{key}", lambda: _frames(model, manifest))
        rows = {clip_id: row for row, clip_id in enumerate(manifest.clips["clip_id"].to_pylist())}
        return cls(table["frames"], table["starts"], rows)


def _frames(model: DivaForConditionalGeneration, manifest: Manifest) -> dict[str, Tensor]:
    order = np.argsort(manifest.durations, kind="stable")
    device, encoder = model.prefix_ids.device, model.encoder
    samples = torch.tensor([len(manifest.waveform(clip)) for clip in range(len(manifest))])
    starts = nn.functional.pad(valid_frames(samples).cumsum(0), (1, 0))
    # All at once: thousands of small tensors, kept among large ones that go, would tear the memory to pieces.
    frames = torch.empty(
        int(starts[-1]), encoder.whisper.config.d_model, dtype=encoder.whisper.conv1.weight.dtype
    )
    # The longest first: what one batch has freed has room for the next.
    for batch in track(list(_chunks(order))[::-1], "the encoder listens", transient=True):
        padded, lengths = pad_clips([manifest.waveform(clip) for clip in batch])
        encoded, mask = encoder(padded.to(device), lengths.to(device))
        for clip, row, valid in zip(batch, encoded, mask.sum(dim=1).tolist(), strict=True):
            frames[starts[clip] : starts[clip + 1]] = row[:valid]
    return {"frames": frames, "starts": starts}


def _chunks(items) -> Iterable:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


def _cached(name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of this name from the cache; other processes, those of a sweep too, wait for the first to compute."""
    folder = build_once(cache_dir() / name, lambda folder: save_file(compute(), folder / _TENSORS))
    return load_file(folder / _TENSORS)


def weights_digest(module: nn.Module) -> str:
    """Tells one set of weights from another: a slice of every parameter, its type and its shape."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.named_parameters()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        values = weight.detach().flatten()[:: max(1, weight.numel() // 64)][:64]
        digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr((_FORMAT, *parts)).encode()).hexdigest()[:32]
