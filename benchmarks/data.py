"""Speed of loading: clips a second of a worker, compared with the clips a second that training needs.

`python -m benchmarks.data [--clips 384] [--into benchmarks/results]`. Generated clips with the lengths of Common
Voice's lie in files, in a .tar.gz and in shards; DataLoaders with one and two workers make batches of them in
shuffled order. CPU milliseconds are of one process with one thread, and do not depend on what else the machine does;
clips a second of whole loaders do, so the load of the machine is written beside them.
"""

import argparse
import io
import json
import math
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from rich.console import Console
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from benchmarks.clips import wanted_seconds
from benchmarks.measure import RESULTS, markdown, write_results
from diva.audio.decoding import to_mono_16khz
from diva.command import exit_codes, quieten
from diva.data.batch import BatchPlan, SpeechDataset
from diva.data.bucketing import BucketBatchSampler, bucket_edges
from diva.data.corpora.common_voice import CommonVoice
from diva.data.corpora.webdataset import WebDataset
from diva.data.decoded import decode_once
from diva.data.manifest import Manifest
from diva.models.parts import load_tokenizer

LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXT = "The house stood on a hill above the river, and nobody had lived in it for years."
BATCH = 16
# Clips a second. The mini recipe was seen to take 20 to 40 on two cores. Of the paper's recipe a clip costs 18.8
# TFLOP, so eight H100 at 40 % of their 989 TFLOP/s take 170; 300 leaves room for what runs better.
DEMANDS = {"mini, two cores": 40, "paper's recipe, 8 H100": 300}


@dataclass(frozen=True)
class Format:
    """How clips are encoded. Common Voice's mp3 has 32 kHz in the newer releases; opus always decodes to 48 kHz."""

    ending: str
    container: str
    coding: str
    rate: int  # Hz


FORMATS = (
    Format("mp3", "MP3", "MPEG_LAYER_III", 32_000),
    Format("opus", "OGG", "OPUS", 48_000),
    Format("wav", "WAV", "PCM_16", 16_000),
)


@dataclass(frozen=True)
class Clip:
    name: str
    data: bytes
    seconds: float


@exit_codes
def main() -> None:
    arguments = parse_arguments()
    quieten()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(LLM)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DIVA_CACHE"] = f"{folder}/cache"
        formats, sources = measure_all(Path(folder), arguments.clips, tokenizer)
    text = report(formats, sources)
    figures = {
        "formats": formats,
        "sources": sources,
        "clips": arguments.clips,
        "batch": BATCH,
        "demands": DEMANDS,
    }
    write_results("data", figures, text, arguments.into)
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def measure_all(
    root: Path, count: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Figures of each format, and of each source of clips."""
    formats, sources = [], []
    for encoding in FORMATS:
        clips = list(encode(encoding, count))
        formats.append({"format": encoding.ending, "rate": encoding.rate, **measure_format(clips)})
        folder = root / encoding.ending
        sources.append(("shards", encoding, write_shards(folder / "shards", clips)))
        if encoding.ending == "mp3":
            release = write_release(folder / "cv-corpus", clips)
            sources.append(("files", encoding, CommonVoice(release).manifest("train")))
            archive = CommonVoice(write_archive(release)).manifest("train")
            sources.append((".tar.gz", encoding, archive))
            sources.append(("decoded once", encoding, decode_once(archive, max_gigabytes=2.0, num_workers=1)))
    measured = [
        {"source": source, "format": encoding.ending, **measure_source(manifest, tokenizer)}
        for source, encoding, manifest in sources
    ]
    return formats, measured


def encode(encoding: Format, count: int) -> Iterable[Clip]:
    """Noise in the rhythm of syllables: what it costs to decode does not depend on what is said."""
    rng = np.random.default_rng(0)
    for number, seconds in enumerate(wanted_seconds(count)):
        time_axis = np.arange(int(seconds * encoding.rate)) / encoding.rate
        samples = rng.standard_normal(len(time_axis)) * (0.02 + 0.1 * np.sin(2 * np.pi * 2 * time_axis) ** 2)
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, encoding.rate, format=encoding.container, subtype=encoding.coding)
        yield Clip(f"common_voice_en_{number:06d}.{encoding.ending}", buffer.getvalue(), float(seconds))


def write_release(folder: Path, clips: list[Clip]) -> Path:
    (folder / "en" / "clips").mkdir(parents=True)
    rows, durations = ["client_id\tpath\tsentence"], ["clip\tduration[ms]"]
    for clip in clips:
        (folder / "en" / "clips" / clip.name).write_bytes(clip.data)
        rows.append(f"anna\t{clip.name}\t{TEXT}")
        durations.append(f"{clip.name}\t{round(1000 * clip.seconds)}")
    (folder / "en" / "train.tsv").write_text("\n".join(rows) + "\n")
    (folder / "en" / "clip_durations.tsv").write_text("\n".join(durations) + "\n")
    return folder


def write_archive(release: Path) -> Path:
    archive = release.with_name(f"{release.name}.tar.gz")
    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        tar.add(release, arcname=release.name)
    return archive


def write_shards(folder: Path, clips: list[Clip], per_shard: int = 100) -> Manifest:
    folder.mkdir(parents=True)
    for start in range(0, len(clips), per_shard):
        with tarfile.open(folder / f"train-{start // per_shard:05d}.tar", "w") as tar:
            for clip in clips[start : start + per_shard]:
                described = json.dumps({"text": TEXT, "duration": clip.seconds}).encode()
                for name, data in ((clip.name, clip.data), (f"{Path(clip.name).stem}.json", described)):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return WebDataset(folder).manifest("train")


def measure_format(clips: list[Clip]) -> dict[str, float]:
    """CPU milliseconds a clip for decoding and resampling, and its mean size and length."""
    decoded, decode_ms = cpu_ms(lambda clip: soundfile.read(io.BytesIO(clip.data), dtype="float32"), clips)
    to_mono_16khz(*decoded[0])  # makes the filter
    _, resample_ms = cpu_ms(lambda samples: to_mono_16khz(*samples), decoded)
    return {
        "seconds": round(float(np.mean([clip.seconds for clip in clips])), 2),
        "kilobytes": round(float(np.mean([len(clip.data) for clip in clips])) / 1000, 1),
        "decode_ms": decode_ms,
        "resample_ms": resample_ms,
    }


def measure_source(manifest: Manifest, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """CPU milliseconds a clip of one worker, and clips a second of loaders."""
    dataset = SpeechDataset(manifest, tokenizer, max_tokens=64)
    edges = bucket_edges(manifest.durations, num_buckets=8)
    plans = list(BucketBatchSampler(manifest.durations, edges, BATCH, seed=0))
    clips = [clip for plan in plans for clip in plan.clips if clip >= 0]
    dataset[plans[0]]
    _, waveform_ms = cpu_ms(manifest.waveform, clips)
    batches, batch_ms = cpu_ms(dataset.__getitem__, plans)
    assert not any(batch.faults for batch in batches)
    total_ms = batch_ms * len(plans) / len(clips)
    per_worker = 1000 / total_ms
    return {
        "waveform_ms": waveform_ms,
        "batch_ms": round(max(total_ms - waveform_ms, 0.0), 3),
        "clips_per_cpu_second": round(per_worker, 1),
        "workers": {name: math.ceil(demand / per_worker) for name, demand in DEMANDS.items()},
        "load_before": round(os.getloadavg()[0], 1),
        "clips_per_second": {str(workers): loader_speed(dataset, plans, workers) for workers in (1, 2)},
    }


def cpu_ms(work: Callable[[Any], Any], items: list[Any]) -> tuple[list[Any], float]:
    """The result for each item, and CPU milliseconds an item."""
    started = time.process_time()
    results = [work(item) for item in items]
    return results, round(1000 * (time.process_time() - started) / len(items), 3)


def loader_speed(dataset: SpeechDataset, plans: list[BatchPlan], workers: int) -> float:
    """Clips a second of a DataLoader, from its first batch on."""
    batches = iter(DataLoader(dataset, batch_size=None, sampler=plans, num_workers=workers))
    next(batches)
    started = time.perf_counter()
    clips = sum(int(batch.valid.sum()) for batch in batches)
    return round(clips / (time.perf_counter() - started), 1)


def report(formats: list[dict[str, Any]], sources: list[dict[str, Any]]) -> str:
    names = ("format", "rate", "seconds", "kilobytes", "decode_ms", "resample_ms")
    columns = ("format", "Hz", "seconds", "kB", "decode, ms", "resample, ms")
    text = "CPU time a clip\n\n" + markdown(columns, [[row[name] for name in names] for row in formats])
    columns = ("source", "format", "waveform, ms", "batch, ms", "clips/s a worker", "1 worker, clips/s", "2 workers",
               *(f"workers: {name}, {demand}/s" for name, demand in DEMANDS.items()))  # fmt: skip
    rows = [
        (row["source"], row["format"], row["waveform_ms"], row["batch_ms"], row["clips_per_cpu_second"],
         *row["clips_per_second"].values(), *row["workers"].values())
        for row in sources
    ]  # fmt: skip
    load = max(row["load_before"] for row in sources)
    return (
        f"{text}\nLoading\n\n{markdown(columns, rows)}\n"
        f"Clips/s a worker: of a core that it has to itself. 1 and 2 workers: as seen, at a load of up to {load}.\n"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=384)
    parser.add_argument("--into", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
