"""What the frozen parts say about a corpus, computed once instead of once per step.

The teacher reads text alone and the encoder hears audio alone; both are frozen, so h_teacher of a transcript and
the frames of a clip never change. Each table is computed in an order that depends on the corpus only (not on when
training was interrupted) and kept on disk: a resumed run, another seed, another ablation find the same numbers.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from diva.audio import SAMPLE_RATE, pad_clips, valid_frames
from diva.data.batch import transcript_tokens
from diva.data.decoded import DecodedAudio
from diva.data.manifest import Manifest
from diva.models.diva import DivaForConditionalGeneration
from diva.pretrained import cache_dir

_FORMAT = "2"
_BATCH = 64


@dataclass(frozen=True)
class Precompute:
    """Which tables a run keeps.

    `teacher_states` pays as soon as a clip is seen twice; the table has one state [D] per distinct transcript.
    `encoder_frames_gb` is how much disk the frames of a corpus may take; where they would take more, the encoder
    runs with every batch. Frames are many: 0.1 MB a second of speech for Whisper tiny on the clip's own length.
    """

    teacher_states: bool = True
    encoder_frames_gb: float = 0.0


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
        barrier: Callable[[str], None],
    ) -> "TeacherTable":
        """From the cache, or computed on rank 0 while the others wait."""
        transcripts = [tuple(ids) for ids in transcript_tokens(tokenizer, manifest.clips["text"].to_pylist())]
        distinct = sorted(set(transcripts), key=lambda ids: (len(ids), ids))
        key = _digest(
            weights_digest(model.llm), model.prefix_ids.tolist(), model.suffix_ids.tolist(), distinct
        )
        path = cache_dir() / "teacher" / f"{key}.safetensors"
        _write_missing(path, lambda: {"states": _teacher_states(model, distinct)})
        barrier("teacher states")
        row = {ids: number for number, ids in enumerate(distinct)}
        return cls(load_file(path)["states"], np.array([row[ids] for ids in transcripts], dtype=np.int64))


def _teacher_states(model: DivaForConditionalGeneration, distinct: list[tuple[int, ...]]) -> Tensor:
    device = model.prefix_ids.device
    states = []
    for batch in track(list(_chunks(distinct)), description="the teacher reads", transient=True):
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
        barrier: Callable[[str], None],
    ) -> "FrameTable | None":
        """From the cache, or computed on rank 0 while the others wait.

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
        path = cache_dir() / "frames" / f"{key}.safetensors"
        _write_missing(path, lambda: _frames(model, manifest))
        barrier("encoder frames")
        stored = load_file(path)
        return cls(stored["frames"], stored["starts"])


def _frames(model: DivaForConditionalGeneration, manifest: Manifest) -> dict[str, Tensor]:
    order = np.argsort(manifest.durations, kind="stable")
    device, encoder = model.prefix_ids.device, model.encoder
    samples = torch.tensor([len(manifest.waveform(clip)) for clip in range(len(manifest))])
    starts = nn.functional.pad(valid_frames(samples).cumsum(0), (1, 0))
    # All at once: thousands of small tensors, kept among large ones that go, would tear the memory to pieces.
    frames = torch.empty(
        int(starts[-1]), encoder.whisper.config.d_model, dtype=encoder.whisper.conv1.weight.dtype
    )
    for batch in track(list(_chunks(order)), description="the encoder listens", transient=True):
        padded, lengths = pad_clips([manifest.waveform(clip) for clip in batch])
        encoded, mask = encoder(padded.to(device), lengths.to(device))
        for clip, row, valid in zip(batch, encoded, mask.sum(dim=1).tolist(), strict=True):
            frames[starts[clip] : starts[clip + 1]] = row[:valid]
    return {"frames": frames, "starts": starts}


def _chunks(items) -> Iterable:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


@rank_zero_only
def _write_missing(path: Path, compute: Callable[[], dict[str, Tensor]]) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = compute()
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        temporary = file.name
    save_file(tensors, temporary)
    os.replace(temporary, path)


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
