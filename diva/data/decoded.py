"""Decode a corpus once, before training, into one flat file. Every worker maps this file into memory."""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock

from diva.audio.frames import SAMPLE_RATE
from diva.data.manifest import Manifest, Skip, StoredAudio, listed_fault
from diva.errors import AudioFault, UserError
from diva.models.pretrained import cache_dir
from diva.terminal import progress_bar

# Increase it if the same files are decoded to other samples, or if the layout of the folder changes.
FORMAT_VERSION = 2
BYTES_PER_SECOND = 2 * SAMPLE_RATE
_FULL_SCALE = 32_768
# Clips per task of a worker, and the number of clips below which a pool of workers does not save time.
_CHUNK = 64
_POOL_CLIPS = 1_000
# Threads that read headers in parallel, and the number of clips whose headers are read for an estimate.
_HEADER_THREADS = 16
_ESTIMATE_CLIPS = 200

T = TypeVar("T")


@dataclass(frozen=True)
class DecodedAudio:
    """Waveforms of a corpus, one after another in one file of 16-bit PCM at 16 kHz. Each process maps the file."""

    file: Path
    offsets: np.ndarray  # [n + 1] int64, first sample of each clip

    @cached_property
    def _pcm(self) -> np.ndarray:
        return np.memmap(self.file, dtype=np.int16, mode="r")

    def waveform(self, row: int) -> np.ndarray:
        """Float32 mono at 16 kHz, [S]."""
        start, end = self.offsets[row], self.offsets[row + 1]
        return self._pcm[start:end].astype(np.float32) / _FULL_SCALE

    def __getstate__(self) -> dict:  # without the mapping: it would be pickled as all of its samples
        return {"file": self.file, "offsets": self.offsets}


def decode_once(manifest: Manifest, max_gigabytes: float, num_workers: int) -> Manifest:
    """The manifest with every clip decoded, if that fits in `max_gigabytes` (10^9 bytes) of disk.

    Clips that cannot be decoded move to `skipped`. Durations are then those of the decoded samples. The result is
    cached until a file of the corpus changes.
    A corpus that is too large is decoded clip by clip during training. Then only missing durations are read, from the
    headers, and clips with faulty headers are skipped.
    Audio that is in memory or already decoded is returned unchanged.
    """
    audio = manifest.audio
    if not len(manifest) or not isinstance(audio, StoredAudio):
        return manifest
    if _estimate_seconds(manifest, audio) * BYTES_PER_SECOND > max_gigabytes * 1e9:
        return _with_header_durations(manifest, audio)
    key = sha256(f"{FORMAT_VERSION} {audio.fingerprint(manifest.rows)}".encode()).hexdigest()[:32]
    folder = build_once(
        cache_dir() / "decoded" / key, partial(_decode_all, audio, manifest.rows, max(1, num_workers))
    )
    return _read_decoded(manifest, folder)


def _estimate_seconds(manifest: Manifest, audio: StoredAudio) -> float:
    durations = manifest.durations.astype(np.float64)
    unknown = np.flatnonzero(np.isnan(durations))
    if not len(unknown):
        return float(durations.sum())
    looked_at = unknown[np.linspace(0, len(unknown) - 1, min(_ESTIMATE_CLIPS, len(unknown)), dtype=np.int64)]
    seconds = [found for found in _headers(audio, manifest.rows[looked_at]) if isinstance(found, float)]
    return float(np.nansum(durations)) + len(unknown) * (float(np.mean(seconds)) if seconds else 0.0)


def _headers(audio: StoredAudio, rows: np.ndarray) -> list[float | AudioFault]:
    """Duration of each row in seconds, or its fault."""
    found: list[float | AudioFault] = []
    for row in rows:
        try:
            found.append(audio.seconds(int(row)))
        except AudioFault as fault:
            found.append(fault)
    return found


def _with_header_durations(manifest: Manifest, audio: StoredAudio) -> Manifest:
    durations = manifest.durations.copy()
    unknown = np.flatnonzero(np.isnan(durations))
    faults: dict[int, AudioFault] = {}
    with progress_bar() as progress, ThreadPoolExecutor(_HEADER_THREADS) as pool:
        task = progress.add_task("reading durations", total=len(unknown), visible=len(unknown) > 0)
        chunks = _chunks(unknown)
        answers = _in_order(
            pool, lambda chunk: _headers(audio, manifest.rows[chunk]), chunks, _HEADER_THREADS
        )
        for chunk, found in zip(chunks, answers, strict=True):
            for position, seconds in zip(chunk, found, strict=True):
                if isinstance(seconds, AudioFault):
                    faults[int(position)] = seconds
                else:
                    durations[position] = seconds
            progress.advance(task, len(chunk))
    return _without_faults(manifest, durations, faults)


def _without_faults(manifest: Manifest, durations: np.ndarray, faults: dict[int, AudioFault]) -> Manifest:
    """The manifest with `durations` [n] and without the faulty clips. `faults` are by position; they join `skipped`."""
    where = manifest.clips.column_names.index("duration")
    clips = manifest.clips.set_column(where, "duration", pa.array(durations, type=pa.float32()))
    ids = clips["clip_id"]
    skips = [Skip(ids[at].as_py(), fault.reason, fault.detail) for at, fault in sorted(faults.items())]
    kept = np.delete(np.arange(len(manifest)), list(faults))
    return replace(replace(manifest, clips=clips).select(kept), skipped=[*manifest.skipped, *skips])


def _decode_all(audio: StoredAudio, rows: np.ndarray, num_workers: int, folder: Path) -> None:
    """Write samples.int16, offsets.npy [n + 1] and faults.json (position, reason, detail) for these rows."""
    lengths = np.zeros(len(rows), dtype=np.int64)
    faults: list[tuple[int, str, str]] = []
    with (folder / "samples.int16").open("wb") as file, progress_bar() as progress:
        task = progress.add_task("decoding audio", total=len(rows))
        position = 0
        for decoded in _decode_chunks(audio, rows, num_workers):
            for samples in decoded:
                if isinstance(samples, AudioFault):
                    faults.append((position, samples.reason, samples.detail))
                else:
                    file.write(samples.data)
                    lengths[position] = len(samples)
                position += 1
            progress.advance(task, len(decoded))
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
    (folder / "faults.json").write_text(json.dumps(faults), encoding="utf-8")


def _decode_chunks(
    audio: StoredAudio, rows: np.ndarray, num_workers: int
) -> Iterator[list[np.ndarray | AudioFault]]:
    chunks = _chunks(rows)
    if len(rows) < _POOL_CLIPS:
        yield from (_decode_chunk(audio, chunk) for chunk in chunks)
        return
    # Not forked: if torch has already used threads, a forked child can wait for them forever.
    with ProcessPoolExecutor(num_workers, get_context("spawn"), _start_worker, (audio,)) as pool:
        yield from _in_order(pool, _decode_in_worker, chunks, 4 * num_workers)


def _decode_chunk(audio: StoredAudio, rows: np.ndarray) -> list[np.ndarray | AudioFault]:
    """16-bit samples [S] of each row, or its fault."""
    decoded: list[np.ndarray | AudioFault] = []
    for row in rows:
        try:
            samples = np.rint(audio.waveform(int(row)) * _FULL_SCALE)
            decoded.append(samples.clip(-_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16))
        except AudioFault as fault:
            decoded.append(fault)
    return decoded


_worker_audio: StoredAudio  # set once in each worker process, so that it is not sent with every chunk


def _start_worker(audio: StoredAudio) -> None:
    global _worker_audio
    _worker_audio = audio
    torch.set_num_threads(1)


def _decode_in_worker(rows: np.ndarray) -> list[np.ndarray | AudioFault]:
    return _decode_chunk(_worker_audio, rows)


def _chunks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]


def _in_order(
    pool: Executor, work: Callable[[np.ndarray], T], chunks: list[np.ndarray], ahead: int
) -> Iterator[T]:
    """Results in the order of the chunks. At most `ahead` chunks are computed at a time, to limit the memory."""
    waiting: deque[Future[T]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(work, chunk))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read_decoded(manifest: Manifest, folder: Path) -> Manifest:
    file, offsets = folder / "samples.int16", np.load(folder / "offsets.npy")
    if file.stat().st_size != 2 * offsets[-1]:
        raise UserError(
            f"the decoded audio in {folder} is damaged: delete that folder; the next run makes it again"
        )
    faults = {
        at: AudioFault(*fault)
        for at, *fault in json.loads((folder / "faults.json").read_text(encoding="utf-8"))
    }
    durations = (np.diff(offsets) / SAMPLE_RATE).astype(np.float32)
    for at in np.flatnonzero(durations < manifest.durations):
        if fault := listed_fault(float(durations[at]), float(manifest.durations[at])):
            faults.setdefault(int(at), fault)
    decoded = replace(manifest, audio=DecodedAudio(file, offsets), rows=np.arange(len(manifest)))
    return _without_faults(decoded, durations, faults)


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """The folder `target`; if it does not exist, `build(folder)` fills it.

    The folder appears only when it is complete. Other processes that need it wait for the first. Files of an
    interrupted process are deleted. Raises UserError if the disk cannot be written.
    """
    partial_folder = Path(f"{target}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                shutil.rmtree(partial_folder, ignore_errors=True)
                partial_folder.mkdir()
                try:
                    build(partial_folder)
                    partial_folder.rename(target)
                finally:
                    shutil.rmtree(partial_folder, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot fill the cache folder {target}: {error.strerror or error};"
            " make room, or set DIVA_CACHE to another folder"
        ) from error
    return target
