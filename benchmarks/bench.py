"""Clips, frozen parts, adapter and optimizer, which both sides of the training benchmark share."""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from benchmarks.clips import write_corpus
from benchmarks.measure import RESULTS, Parts
from benchmarks.published_training import PublishedTraining
from benchmarks.step import OurTraining, Variant, training_step
from diva.audio.decoding import decode
from diva.audio.frames import SAMPLE_RATE, TAIL_SECONDS
from diva.config import check_overrides, make
from diva.config.precision import autocast_dtype
from diva.data.batch import SpeechBatch
from diva.data.datamodule import SpeechDataModule
from diva.data.decoded import build_once
from diva.models.build import build
from diva.models.configuration import DivaConfig, EncoderConfig
from diva.models.encoder import Context
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.parts import load_tokenizer
from diva.models.pretrained import cache_dir
from diva.run import make_data
from diva.training.frozen import FrozenParts, Precompute, TeacherTable
from diva.training.transcripts import Transcripts

# Raise it after changes that give other clips for the same counts.
_CLIPS_VERSION = 2
_PARITY_CLIPS = 4


@dataclass
class Bench:
    """Ready to take steps on either side."""

    config: DictConfig
    data: SpeechDataModule
    folder: Path  # of the corpus
    batches: list[SpeechBatch]
    ours: OurTraining
    published: PublishedTraining
    optimizers: dict[bool, torch.optim.Optimizer]  # by whether it is fused
    seconds_once: dict[str, float]  # a clip, for what is computed once

    @classmethod
    def open(cls, root: Path, clips: int, batch_size: int, overrides: list[str]) -> "Bench":
        """A corpus of so many clips below `root`'s spoken one, and a model that starts as in training."""
        folder = joined_clips(root, clips)
        size = f"data.batch_size={batch_size}"
        config = check_overrides("train", ["data=jsonl", f"data.root={folder}", size, *overrides])
        model_config: DivaConfig = make(config.model)
        tokenizer = load_tokenizer(model_config.llm.name)
        torch.manual_seed(config.seed)
        model = build(model_config, tokenizer).train()
        autocast = autocast_dtype(config.hardware.precision)
        ours, once = OurTraining(model, autocast), Parts()
        with _fresh_cache() as cache:
            data = make_data(config.data, tokenizer, model_config.adapter, cache)
            with once("decode"):
                data.setup("fit")
            precompute: Precompute = make(config.precompute)
            if precompute.teacher_states:
                with once("teacher"):
                    ours.teacher = TeacherTable.build(model, Transcripts.of(data.train, tokenizer))
            with once("encoder"):
                frames_only = replace(precompute, teacher_states=False)
                ours.frames = FrozenParts.of_split(model, data.train, tokenizer, frames_only).cached_frames
            data.num_workers = 0
            full = (batch for batch in data.train_dataloader() if bool(batch.valid.all()))
            batches = list(islice(full, 8))
        ours.tokens_per_second = half_of_the_median(model_config, data)
        parameters, algorithm = list(model.adapter.parameters()), make(config.optimizer.algorithm)
        return cls(
            config=config,
            data=data,
            folder=folder,
            batches=batches,
            ours=ours,
            published=restate(model, autocast),
            optimizers={fused: algorithm(parameters, fused=fused) for fused in (True, False)},
            seconds_once={name: seconds / len(data.train) for name, seconds in once.seconds.items()},
        )

    @property
    def context(self) -> Context:
        """The encoder's context in a run of this config."""
        return self.config.model.encoder.context

    @property
    def kept(self) -> Variant:
        """How a run of this config computes a step after its first pass."""
        return Variant(
            frames=self.context if self.ours.frames is None else "kept",
            teacher="trimmed" if self.ours.teacher is None else "kept",
        )

    def batch(self, number: int) -> SpeechBatch:
        """The batch of a round; all sides get the same."""
        return self.batches[number % len(self.batches)]

    def typical_batch(self) -> SpeechBatch:
        """The batch whose clips are nearest to the corpus's median length."""
        median = float(np.median(self.data.train.durations)) * SAMPLE_RATE
        return min(self.batches, key=lambda batch: abs(float(batch.samples.float().mean()) - median))

    def our_step(self, batch: SpeechBatch, variant: Variant, parts: Parts) -> None:
        with parts("decode"):  # what was decoded once is read, with kept frames too
            for clip in batch.clips.tolist():
                self.data.train.waveform(clip)
        self._step(lambda: self.ours.losses(batch, variant, parts), variant.fused_optimizer, parts)

    def published_step(self, batch: SpeechBatch, parts: Parts) -> None:
        names = self.data.train.clips["clip_id"]
        with parts("decode"):
            clips = [decode(self.folder / names[clip].as_py()) for clip in batch.clips.tolist()]
        self._step(lambda: self.published.losses(clips, transcripts(batch), parts), True, parts)

    def _step(self, losses, fused: bool, parts: Parts) -> None:
        training_step(losses, self.optimizers[fused], self.config.optimizer.gradient_clip, parts)

    def parity(self) -> dict[str, list[float]]:
        """L_distill and L_align of both sides in float32 on 30 s of context, on a few clips."""
        given: DivaConfig = make(self.config.model)
        encoder = EncoderConfig(given.encoder.name, "full")
        adapter = replace(given.adapter, tokens_per_second=None)
        exact = DivaConfig(encoder, adapter, given.llm, frozen_dtype="float32")
        torch.manual_seed(self.config.seed)
        model = build(exact, load_tokenizer(given.llm.name))
        batch = self.batches[0].micro_batches(_PARITY_CLIPS)[0]
        return {name: [float(x) for x in losses] for name, losses in both_losses(model, batch).items()}


@torch.no_grad()
def both_losses(model: DivaForConditionalGeneration, batch: SpeechBatch) -> dict[str, tuple]:
    """The losses of a batch by our step without cached tables, and by the published step; neither uses autocast."""
    variant = Variant(frames="full", teacher="trimmed")
    waveforms = [
        row[:count].numpy() for row, count in zip(batch.waveforms, batch.samples.tolist(), strict=True)
    ]
    return {
        "ours": OurTraining(model, None).losses(batch, variant, Parts()),
        "published": restate(model, None).losses(waveforms, transcripts(batch), Parts()),
    }


def restate(model: DivaForConditionalGeneration, autocast: torch.dtype | None) -> PublishedTraining:
    """The published step on this model's parts."""
    prefix, suffix = model.prefix_ids.tolist(), model.suffix_ids.tolist()
    return PublishedTraining(model.encoder.body, model.adapter, model.llm, prefix, suffix, autocast)


def half_of_the_median(config: DivaConfig, data: SpeechDataModule) -> float:
    """Virtual tokens a second with which the LLM reads half of the virtual tokens for a clip of median length."""
    seconds = float(np.median(data.train.durations)) + TAIL_SECONDS
    return config.adapter.num_virtual_tokens / 2 / seconds


def transcripts(batch: SpeechBatch) -> list[list[int]]:
    """Token ids of each row, unpadded."""
    return [ids[:count] for ids, count in zip(batch.token_ids.tolist(), batch.tokens.tolist(), strict=True)]


def joined_clips(root: Path, clips: int, most_sentences: int | None = None) -> Path:
    """The corpus of `benchmarks.clips` with so many clips to train on, made once."""

    def write(folder: Path) -> None:
        write_corpus(root, folder, {"train": clips, "dev": 2}, most_sentences)

    name = f"{_CLIPS_VERSION}_{clips}" + (f"_{most_sentences}" if most_sentences else "")
    return build_once(cache_dir() / "benchmark_clips" / name, write)


@contextmanager
def _fresh_cache() -> Iterator[Path]:
    """An empty cache folder, so that nothing is cached from before."""
    before = os.environ.get("DIVA_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DIVA_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["DIVA_CACHE"]
            if before is not None:
                os.environ["DIVA_CACHE"] = before


def parse_arguments(name: str, description: str | None) -> argparse.Namespace:
    """The command line of a benchmark that opens a Bench."""
    parser = argparse.ArgumentParser(
        prog=f"benchmarks.{name}", description=(description or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="the spoken corpus's data.root")
    parser.add_argument("--clips", type=int, help="of the corpus; 96 unless given")
    parser.add_argument("--batch", type=int, help="clips a step; 16 unless given")
    parser.add_argument("--rounds", type=int, help="steps of each side; 3 unless given")
    parser.add_argument("--quick", action="store_true", help="8 clips, steps of 4, one round")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder for the JSON file and the table")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of diva.train's config")
    arguments = parser.parse_args()
    quick = {"clips": 8, "batch": 4, "rounds": 1}
    for key, value in (quick if arguments.quick else {"clips": 96, "batch": 16, "rounds": 3}).items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, value)
    return arguments
