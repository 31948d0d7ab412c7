"""Seeded damage to the files that diva reads: `python -m tests.fuzz [--seconds 60] [--seed 0]`.

Whatever the bytes are, a clip is read whole or is a fault with its reason, every row of a corpus is a clip or skipped,
and a checkpoint is whole or refused. Anything else is printed, with the seed that makes it again.
"""

import argparse
import io
import json
import os
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from diva.audio.decoding import to_waveform
from diva.data.corpora.common_voice import CommonVoice
from diva.data.corpora.jsonl import JsonlCorpus
from diva.errors import AudioFault, UserError
from diva.training.checkpoints import check_resumable

RATE = 16_000
SECONDS = 1.5
ROWS = 5
# Format and subtype of soundfile.
SOUNDS = {
    "wav": ("WAV", "PCM_16"), "float": ("WAV", "FLOAT"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", None),
    "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "aiff": ("AIFF", "PCM_16"), "au": ("AU", "PCM_16"),
    "w64": ("W64", "PCM_16"), "rf64": ("RF64", "PCM_16"), "caf": ("CAF", "PCM_16"),
}  # fmt: skip
Check = Callable[[random.Random, Path], str | None]  # what is wrong, if anything is


def sound(name: str) -> bytes:
    kind, subtype = SOUNDS[name]
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, int(SECONDS * RATE)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format=kind, subtype=subtype)
    return file.getvalue()


def cut(rng: random.Random, data: bytes) -> bytes:
    """Without its end: at most seven eighths of it."""
    return data[: rng.randrange(len(data) * 7 // 8)]


def damage(rng: random.Random, data: bytes) -> bytes:
    """Bits turned, or a stretch zeroed, taken out, repeated, filled in or replaced."""
    at = rng.randrange(len(data)) if rng.random() < 0.7 else rng.randrange(min(64, len(data)))
    size = rng.choice([1, 2, 4, 16, 300, 5000])
    before, stretch, after = data[:at], data[at : at + size], data[at + size :]
    junk = rng.randbytes(size)
    return rng.choice(
        [
            before + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
            before + bytes(len(stretch)) + after,
            before + after,
            before + stretch + stretch + after,
            before + junk + stretch + after,
            before + junk + after,
        ]
    )


def of_sound(name: str) -> Check:
    whole = sound(name)

    def check(rng: random.Random, folder: Path) -> str | None:
        shorter = rng.random() < 0.5
        data = (cut if shorter else damage)(rng, whole)
        clip: bytes | Path = data
        if rng.random() < 0.5:
            clip = folder / f"clip.{name}"
            clip.write_bytes(data)
        try:
            wave = to_waveform(clip)
        except AudioFault:
            return None
        if (
            wave.ndim != 1
            or wave.dtype != np.float32
            or not np.isfinite(wave).all()
            or np.abs(wave).max() > 1
        ):
            return f"is read as {wave.dtype} {wave.shape}, finite or not, up to {np.abs(wave).max()}"
        if shorter and len(wave) < 0.9 * SECONDS * RATE:
            return f"is read as {len(wave) / RATE:.2f} s of {SECONDS} s"
        return None

    return check


def common_voice(rng: random.Random, folder: Path, packed: bool = False) -> str | None:
    (folder / "en" / "clips").mkdir(parents=True)
    names = [f"{number}.mp3" for number in range(ROWS)]
    for name in names:
        (folder / "en" / "clips" / name).write_bytes(sound("mp3")[:3000])
    rows = [f"anna\t{name}\tdas Wort {name} für “alle”" for name in names]
    tsv = ("\n".join(["client_id\tpath\tsentence", *rows]) + "\n").encode()
    root, expected = folder / "en", ROWS
    if packed:
        (root / "train.tsv").write_bytes(tsv)
        root = folder / "en.tar"
        with tarfile.open(root, "w:gz" if rng.random() < 0.5 else "w") as tar:
            tar.add(folder / "en", "cv/en")
        root.write_bytes((cut if rng.random() < 0.5 else damage)(rng, root.read_bytes()))
    else:
        header, _, body = tsv.partition(b"\n")
        body = (cut if rng.random() < 0.3 else damage)(rng, body)
        (root / "train.tsv").write_bytes(header + b"\n" + body)
        expected = sum(bool(line.strip()) for line in body.replace(b"\r", b"\n").split(b"\n"))
    try:
        manifest = CommonVoice(root).manifest("train")
    except UserError:
        return None
    return counted(len(manifest), len(manifest.skipped), expected)


def packed_release(rng: random.Random, folder: Path) -> str | None:
    return common_voice(rng, folder, packed=True)


def jsonl(rng: random.Random, folder: Path) -> str | None:
    (folder / "a.wav").write_bytes(sound("wav"))
    row = {"audio": "a.wav", "text": "das Wort für “alle”", "duration": SECONDS, "tags": [1, {"a": None}]}
    lines = [json.dumps(row | {"id": number}, ensure_ascii=False) for number in range(ROWS)]
    data = (cut if rng.random() < 0.3 else damage)(rng, ("\n".join(lines) + "\n").encode())
    (folder / "train.jsonl").write_bytes(data)
    try:
        manifest = JsonlCorpus(folder).manifest("train")
    except UserError:
        return None
    return counted(
        len(manifest), len(manifest.skipped), sum(bool(line.strip()) for line in data.split(b"\n"))
    )


def counted(clips: int, skipped: int, rows: int) -> str | None:
    return None if clips + skipped == rows else f"{clips} clips and {skipped} skipped of {rows} rows"


def checkpoint(rng: random.Random, folder: Path) -> str | None:
    file = folder / "last.ckpt"
    state = {"state_dict": {"a": torch.arange(300.0)}, "global_step": 3, "callbacks": {"x": {"seconds": 1.5}}}
    torch.save(state, file)
    file.write_bytes((cut if rng.random() < 0.3 else damage)(rng, file.read_bytes()))
    try:
        check_resumable(file)
    except UserError:
        return None
    read = torch.load(file, weights_only=True)["state_dict"]
    if set(read) != {"a"} or not torch.equal(read["a"], state["state_dict"]["a"]):
        return "is taken for a whole one and has other weights"
    return None


CHECKS: dict[str, Check] = {name: of_sound(name) for name in SOUNDS} | {
    "common_voice": common_voice, "tar": packed_release, "jsonl": jsonl, "checkpoint": checkpoint,
}  # fmt: skip


def fuzz(names: list[str], seeds: range, seconds: float = float("inf")) -> Iterator[str]:
    """What goes wrong, a line each, until the seeds or the seconds are over."""
    deadline = time.monotonic() + seconds
    for seed in seeds:
        for name in names:
            if time.monotonic() > deadline:
                return
            with tempfile.TemporaryDirectory() as folder:
                os.environ["DIVA_CACHE"] = folder + "/cache"
                try:
                    said = CHECKS[name](random.Random(f"{name} {seed}"), Path(folder))
                except Exception as error:
                    said = f"raises {type(error).__name__}: {error}"
            if said:
                yield f"{name}, seed {seed}: {said}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS))
    given = parser.parse_args()
    found = 0
    for line in fuzz(given.only, range(given.seed, sys.maxsize), given.seconds):
        found += 1
        print(line, flush=True)
    print(f"{found} found")
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
