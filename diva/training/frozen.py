"""What the frozen parts say about a corpus, computed once instead of once per step.

The teacher reads text alone and the encoder hears audio alone; both are frozen, so h_teacher of a transcript and
the frames of a clip never change. Each table is computed in an order that depends on the corpus only (not on when
training was interrupted) and kept on disk: a resumed run, another seed, another ablation find the same numbers.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from diva.audio.frames import SAMPLE_RATE, pad_clips, valid_frames
from diva.data.batch import transcript_tokens
from diva.data.decoded import DecodedAudio, build_once
from diva.data.manifest import Manifest
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.pretrained import cache_dir

_FORMAT = "3"
_TENSORS = "table.safetensors"
_BATCH = 64

T = TypeVar("T")


@dataclass(frozen=True)
class Precompute:
    """Which tables a run keeps.

    Of the training clips only those that pay: a table takes as long as one pass over the corpus, which a run on a
    large corpus may never make. `teacher_states` has one state [D] per distinct transcript. `encoder_frames_gb` is
    how much disk the frames of a corpus may take; where they would take more, the encoder runs with every batch.
    Frames are many: 0.1 MB a second of speech for Whisper tiny on the clip's own length.
    """

    teacher_states: bool = True
    encoder_frames_gb: float = 0.0

    def keeps_teacher(self, clips: int, distilled: int) -> bool:
        """Whether to keep the teacher's states of so many training clips for a run that distils so many times one."""
        return self.teacher_states and distilled >= clips

    def most_frames_gb(self, clips: int, heard: int) -> float:
        """How much the frames of so many training clips may take in a run that hears so many times one."""
        return self.encoder_frames_gb if heard >= clips else 0.0


class TeacherTable:
    """h_teacher for every clip of a manifest."""

    def __init__(self, states: Tensor, rows: np.ndarray):
        self.states = states  # [distinct transcripts, D]
        self.rows = torch.from_numpy(rows)  # [clips]

    def __call__(self, clips: Tensor) -> Tensor:
        """Clip indices [B] (-1: empty row, whose state means nothing) -> states [B, D] on the clips' device."""
        return self.states[self.rows[clips.cpu()]].to(clips.device)

    @classmethod
    def build(
        cls,
        model: DivaForConditionalGeneration,
        manifest: Manifest,
        tokenizer,
    ) -> "TeacherTable":
        """From the cache, or computed by the first process that comes."""
        transcripts = [tuple(ids) for ids in transcript_tokens(tokenizer, manifest.clips["text"].to_pylist())]
        distinct = sorted(set(transcripts), key=lambda ids: (len(ids), ids))
        key = _digest(
            weights_digest(model.llm), model.prefix_ids.tolist(), model.suffix_ids.tolist(), distinct
        )
        table = _kept(f"teacher/{key}", lambda: {"states": _teacher_states(model, distinct)})
        row = {ids: number for number, ids in enumerate(distinct)}
        return cls(table["states"], np.array([row[ids] for ids in transcripts], dtype=np.int64))


def _teacher_states(model: DivaForConditionalGeneration, distinct: list[tuple[int, ...]]) -> Tensor:
    device = model.prefix_ids.device
    states = []
    for batch in _track(list(_chunks(distinct)), "the teacher reads"):
        ids = pad_sequence([torch.tensor(x) for x in batch], batch_first=True).to(device)
        tokens = torch.tensor([len(x) for x in batch], device=device)
        states.append(model.teacher_states(ids, tokens).cpu())
    return torch.cat(states)


class FrameTable:
    """Encoder frames of every clip of a manifest."""

    def __init__(self, frames: Tensor, starts: Tensor):
        self.frames = frames  # [all frames of all clips, E]
        self.starts = starts  # [clips + 1], where each clip's frames begin

    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Clip indices [B] (-1: empty row) -> frames [B, F, E] and the mask [B, F] of valid ones.

        An empty row has one frame of zeros that counts as valid: attention over nothing would be NaN.
        """
        none = self.frames.new_zeros(1, self.frames.shape[1])
        rows = [none if c < 0 else self.frames[self.starts[c] : self.starts[c + 1]] for c in clips.tolist()]
        lengths = torch.tensor([len(row) for row in rows], device=clips.device)
        frames = pad_sequence(rows, batch_first=True).to(clips.device)
        return frames, torch.arange(frames.shape[1], device=clips.device) < lengths.unsqueeze(1)

    @classmethod
    def build(
        cls,
        model: DivaForConditionalGeneration,
        manifest: Manifest,
        max_gigabytes: float,
    ) -> "FrameTable | None":
        """From the cache, or computed by the first process that comes.

        None where it would be too large, or where the corpus was too large to be decoded once.
        """
        encoder = model.encoder
        width = encoder.whisper.config.d_model * encoder.whisper.conv1.weight.element_size()
        size = float(valid_frames(torch.tensor(manifest.durations) * SAMPLE_RATE).sum()) * width
        if (
            encoder.context == "full"
            or not isinstance(manifest.audio, DecodedAudio)
            or size > max_gigabytes * 1e9
        ):
            return None
        # The file of decoded audio is named for its contents.
        key = _digest(weights_digest(encoder.whisper), manifest.audio.file, manifest.rows.tolist())
        table = _kept(f"frames/{key}", lambda: _frames(model, manifest))
        return cls(table["frames"], table["starts"])


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
    for batch in _track(list(_chunks(order))[::-1], "the encoder listens"):
        padded, lengths = pad_clips([manifest.waveform(clip) for clip in batch])
        encoded, mask = encoder(padded.to(device), lengths.to(device))
        for clip, row, valid in zip(batch, encoded, mask.sum(dim=1).tolist(), strict=True):
            frames[starts[clip] : starts[clip + 1]] = row[:valid]
    return {"frames": frames, "starts": starts}


def _chunks(items) -> Iterable:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


def _kept(name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of this name from the cache; other processes, those of a sweep too, wait for the first to compute."""
    folder = build_once(cache_dir() / name, lambda folder: save_file(compute(), folder / _TENSORS))
    return load_file(folder / _TENSORS)


def _track(items: Sequence[T], description: str) -> Iterable[T]:
    return track(items, description=description, transient=True, console=Console(stderr=True))


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
