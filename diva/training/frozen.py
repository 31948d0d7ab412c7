"""Outputs of the frozen encoder and of the frozen teacher, computed once and cached.

The teacher's input is text only. The encoder's input is audio only. Both are frozen, so h_teacher of a transcript and
the encoder frames of a clip never change during training.
The order of computation depends on the corpus only, not on interruptions. The tables are cached on disk, so resumed
runs, other seeds and ablations read identical numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from diva.audio.frames import SAMPLE_RATE, FrameCount, pad_clips
from diva.data.batch import EMPTY_ROW, SpeechBatch
from diva.data.decoded import build_once
from diva.data.manifest import Manifest
from diva.data.mixture import decoded_files
from diva.models.encoder import Context, WaveformEncoder
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.pretrained import cache_dir
from diva.terminal import track
from diva.training.answer_table import AnswerTable
from diva.training.answers import Continuation
from diva.training.transcripts import Transcripts, digest, weights_digest

_TENSORS = "table.safetensors"
_BATCH = 64

T = TypeVar("T")


@dataclass(frozen=True)
class Precompute:
    """Which outputs of the frozen parts a run caches.

    A table takes one pass over the corpus. So training clips are cached only if the run uses each at least once.
    `teacher_states` caches one state [D] per distinct transcript, and one for each token of its answers. It applies if
    the states take at most `teacher_states_gb` (10^9 bytes).
    `encoder_frames_gb` limits the disk space of a split's frames. Above it the encoder runs with every batch.
    Frames are large: 0.1 MB per second of speech for Whisper tiny, without padding to 30 s.
    """

    teacher_states: bool = True
    encoder_frames_gb: float = 0.0
    teacher_states_gb: float = 16.0

    def caches_teacher(self, clips: int, distilled: int, size: float) -> bool:
        """Whether to cache `size` bytes of teacher states of `clips` clips, if the run distils `distilled` samples."""
        return self.teacher_states and distilled >= clips and size <= self.teacher_states_gb * 1e9

    def caches_frames(self, clips: int, heard: int, size: float, context: Context, decoded: bool) -> bool:
        """Whether to cache `size` bytes of encoder frames of `clips` clips, if the run encodes `heard` samples.

        Never for 30 s windows, and never for a corpus whose audio is not `decoded` in the cache.
        """
        fits = size <= self.encoder_frames_gb * 1e9
        return heard >= clips and fits and decoded and context != "full"


def frames_bytes(durations: np.ndarray, count: FrameCount, width: int, dtype: torch.dtype) -> float:
    """Bytes of the encoder frames [F, width] of clips of `durations` [n] seconds."""
    frames = count.valid(torch.from_numpy(durations * SAMPLE_RATE).long())
    return float(frames.sum()) * width * dtype.itemsize


class FrozenParts:
    """Encoder frames and teacher states of the clips of one split: cached, or computed for each batch."""

    def __init__(
        self,
        model: DivaForConditionalGeneration,
        cached_frames: "FrameTable | None" = None,
        cached_teacher: "TeacherTable | None" = None,
        answers: AnswerTable | None = None,
        teacher_texts: Transcripts | None = None,
    ):
        self.model = model
        self.cached_frames = cached_frames
        self.cached_teacher = cached_teacher
        self.answers = answers
        self.teacher_texts = teacher_texts  # None: the teacher reads the batch's transcripts

    @classmethod
    def of_split(
        cls,
        model: DivaForConditionalGeneration,
        manifest: Manifest,
        tokenizer: PreTrainedTokenizerBase,
        precompute: Precompute,
        heard: int | None = None,
        distilled: int | None = None,
        make_answers: Callable[[Transcripts], AnswerTable] | None = None,
    ) -> "FrozenParts":
        """With the tables that save time in a run that encodes `heard` and distils `distilled` samples of the split.

        None stands for the whole split, once.
        """
        clips, encoder = len(manifest), model.encoder
        size = frames_bytes(manifest.durations, encoder.frame_count, encoder.width, encoder.dtype)
        decoded = bool(decoded_files(manifest.audio))
        heard, distilled = (clips if count is None else count for count in (heard, distilled))
        transcripts = Transcripts.of(manifest, tokenizer)
        answers = make_answers(transcripts) if make_answers else None
        teacher = frames = None
        positions = len(transcripts.distinct) if answers is None else answers.positions
        if precompute.caches_teacher(clips, distilled, positions * state_bytes(model)):
            teacher = TeacherTable.build(model, transcripts, answers)
        if precompute.caches_frames(clips, heard, size, encoder.context, decoded):
            frames = FrameTable.build(model, manifest)
        return cls(model, frames, teacher, answers, transcripts if manifest.has_teacher_text else None)

    @property
    def need_waveforms(self) -> bool:
        """Whether batches have to hold the clips' waveforms."""
        return self.cached_frames is None

    def frames(self, batch: SpeechBatch) -> tuple[Tensor, Tensor | None]:
        """Encoder frames [B, F, E] of a batch, and the mask [B, F] of valid ones (None: all are)."""
        if self.cached_frames is not None:
            return self.cached_frames(batch)
        return self.model.encoder(batch.waveforms, batch.samples, batch.masks)

    def continuation(self, batch: SpeechBatch, step: int = 0) -> Continuation | None:
        """The continuation of each clip of a batch at a step; None: the template's suffix alone."""
        return None if self.answers is None else self.answers(batch, step)

    def teacher_states(self, batch: SpeechBatch, after: Continuation | None = None) -> Tensor:
        """h_teacher of a batch, [B, D], or [B, P, D] with a continuation. Values in empty rows have no meaning."""
        if self.cached_teacher is not None and (after is None or after.rows is not None):
            return self.cached_teacher(batch, after)
        read = (batch.token_ids, batch.tokens) if self.teacher_texts is None else self._texts_of(batch)
        if after is None:
            return self.model.teacher_states(*read)
        return self.model.teacher_states(*read, after.ids, after.at)

    def _texts_of(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """Token ids [B, N] of what the teacher reads, and their number [B], on the batch's device."""
        assert self.teacher_texts is not None
        device = batch.tokens.device
        # XLA would compile every new width.
        width = self.teacher_texts.longest if device.type == "xla" else 0
        return _padded(self.teacher_texts.of_clips(batch.clip_ids), device, width)


def state_bytes(model: DivaForConditionalGeneration) -> int:
    """Bytes of one hidden state of the LLM."""
    return model.llm.config.get_text_config().hidden_size * model.llm.dtype.itemsize


class TeacherTable:
    """h_teacher of every transcript of a split, at each position of its answers if it has answers."""

    def __init__(self, states: Tensor, numbers: dict[str, int], starts: Tensor | None = None):
        self.states = states  # [rows, D], or with answers [positions of all rows, D]
        self.numbers = numbers  # clip id -> index of its distinct transcript
        self.starts = (
            None if starts is None else starts.tolist()
        )  # [rows + 1], offset of each row's first state

    def __call__(self, batch: SpeechBatch, after: Continuation | None = None) -> Tensor:
        """States [B, D], or [B, P, D] for the rows of `after`, on the batch's device."""
        if self.starts is None:
            numbers = [self.numbers[clip_id] if clip_id else 0 for clip_id in batch.clip_ids]
            return self.states[numbers].to(batch.tokens.device)
        assert after is not None
        assert after.rows is not None
        found = self.states.new_zeros(*after.at.shape, self.states.shape[1])
        for number, row in enumerate(after.rows):
            if row != EMPTY_ROW:
                states = self.states[self.starts[row] : self.starts[row + 1]]
                found[number, : len(states)] = states
        return found.to(batch.tokens.device)

    @classmethod
    def build(
        cls,
        model: DivaForConditionalGeneration,
        transcripts: Transcripts,
        answers: AnswerTable | None = None,
    ) -> "TeacherTable":
        """From the cache, or computed by the first process that comes."""
        distinct = transcripts.distinct
        sources = (model.suffix_ids.tolist(), distinct) if answers is None else (distinct, answers.digest)
        key = digest(weights_digest(model.llm), model.prefix_ids.tolist(), *sources)
        if answers is None:
            table = _cached(f"teacher/{key}", lambda: {"states": _teacher_states(model, distinct)})
            return cls(table["states"], transcripts.numbers)
        table = _cached(
            f"teacher/{key}", lambda: {"states": _states_behind_answers(model, distinct, answers)}
        )
        return cls(table["states"], transcripts.numbers, answers.starts)


def _teacher_states(model: DivaForConditionalGeneration, distinct: list[tuple[int, ...]]) -> Tensor:
    states = []
    for batch in track(list(_chunks(distinct)), "the teacher reads", transient=True):
        states.append(model.teacher_states(*_padded(batch, model.prefix_ids.device)).cpu())
    return torch.cat(states)


def _states_behind_answers(
    model: DivaForConditionalGeneration, distinct: list[tuple[int, ...]], answers: AnswerTable
) -> Tensor:
    states = []
    for rows in track(list(_chunks(range(len(answers)))), "the teacher reads", transient=True):
        device = model.prefix_ids.device
        after = answers.rows(list(rows)).to(device)
        ids, tokens = _padded([distinct[row // answers.variants] for row in rows], device)
        found = model.teacher_states(ids, tokens, after.ids, after.at)
        states.append(found[after.weights(tokens > 0) > 0].cpu())
    return torch.cat(states)


def _padded(
    transcripts: Sequence[tuple[int, ...]], device: torch.device, width: int = 0
) -> tuple[Tensor, Tensor]:
    """Token ids [B, N], zero-padded to at least `width`, and their number [B]."""
    ids = pad_sequence([torch.tensor(x, dtype=torch.long) for x in transcripts], batch_first=True)
    ids = nn.functional.pad(ids, (0, max(0, width - ids.shape[1]))).to(device)
    return ids, torch.tensor([len(x) for x in transcripts], device=device)


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
        files = decoded_files(manifest.audio)
        assert files
        # The name of a decoded audio file is a digest of its contents.
        sources: list[object] = [*files, manifest.rows.tolist()]
        if isinstance(model.encoder, WaveformEncoder):
            sources.append(model.encoder.standardizes)
        key = digest(weights_digest(model.encoder.body), *sources)
        table = _cached(f"frames/{key}", lambda: _frames(model, manifest))
        rows = {clip_id: row for row, clip_id in enumerate(manifest.clips["clip_id"].to_pylist())}
        return cls(table["frames"], table["starts"], rows)


def _frames(model: DivaForConditionalGeneration, manifest: Manifest) -> dict[str, Tensor]:
    order = np.argsort(manifest.durations, kind="stable")
    device, encoder = model.prefix_ids.device, model.encoder
    samples = torch.tensor([len(manifest.waveform(clip)) for clip in range(len(manifest))])
    starts = nn.functional.pad(encoder.frame_count.valid(samples).cumsum(0), (1, 0))
    # One large tensor: thousands of small ones between temporary large ones would fragment the memory.
    frames = torch.empty(int(starts[-1]), encoder.width, dtype=encoder.dtype)
    # The longest first: the memory that one batch frees is then large enough for the next.
    for batch in track(list(_chunks(order))[::-1], "the encoder listens", transient=True):
        padded, lengths = pad_clips([manifest.waveform(clip) for clip in batch])
        encoded, mask = encoder(padded.to(device), lengths.to(device))
        for clip, row, valid in zip(batch, encoded, mask.sum(dim=1).tolist(), strict=True):
            frames[starts[clip] : starts[clip + 1]] = row[:valid]
    return {"frames": frames, "starts": starts}


def _chunks(items) -> Iterable:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


def _cached(name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of this name from the cache. The first process computes them; others wait (also those of a sweep)."""
    folder = build_once(cache_dir() / name, lambda folder: save_file(compute(), folder / _TENSORS))
    return load_file(folder / _TENSORS)
