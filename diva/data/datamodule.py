"""The LightningDataModule: corpus -> manifests of usable clips -> loaders of SpeechBatches."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from diva.audio.frames import SAMPLE_RATE, WHISPER_SECONDS, padded_samples, tokens_read
from diva.data.augment import Augmentation
from diva.data.batch import SpeechBatch, SpeechDataset, transcript_fault, transcript_tokens
from diva.data.bucketing import BucketBatchSampler, EvalBatchSampler, ResumableLoader, bucket_edges
from diva.data.decoded import decode_once
from diva.data.manifest import (
    Corpus,
    Manifest,
    Skip,
    check_skipped,
    count_by_reason,
    with_distinct_ids,
    write_skipped,
)
from diva.data.mixture import Mixture, Shares
from diva.data.teacher_text import check_template, with_teacher_text
from diva.errors import UserError

_TOKENIZE_AT_ONCE = 10_000  # transcripts


class SpeechDataModule(LightningDataModule):
    """Batches of speech and transcripts for the Trainer, which needs `use_distributed_sampler=False`.

    Args:
        corpus: gives the manifest of a split. Of a mixture all parts are trained on, each by its weight.
        tokenizer: the LLM's.
        max_tokens: the number of virtual tokens; clips with longer transcripts are skipped, counted and listed.
        batch_size: recordings per optimizer step, over all devices.
        num_buckets: largest number of different batch lengths.
        seed: with the epoch, fixes the order of the clips.
        train_split: split of the corpus to train on; for a mixture, the name of the union of its parts' splits.
        val_splits: name of each validation -> split of the corpus.
        pooled_val: name of further metrics -> the names of the validations that they are over.
        val_batch_size: recordings per validation batch and device.
        tokens_per_second: also limits a transcript by the length of its clip (AdapterConfig.tokens_per_second).
        max_train_clips: number of clips to train on, the same ones for every seed; null for all. A mixture has a
            limit for each part instead.
        max_val_clips: number of clips of each split to validate on; null for all.
        max_skipped_fraction: above this fraction of skipped clips, setup and `record_faults` raise UserError.
        decoded_cache_gb: if the decoded waveforms of a split fit in this (10^9 bytes), they are decoded once, before
            training.
        num_workers: processes that load batches, for each loader.
        skipped_tsv: file that lists the skipped clips.
        teacher_text: what the teacher reads of a clip, a template (`diva.data.teacher_text`); null: its transcript.
        augment: changes of the training clips (`diva.data.augment`). Validation clips are never changed.
    """

    def __init__(
        self,
        *,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        batch_size: int,
        num_buckets: int = 8,
        seed: int,
        train_split: str = "train",
        val_splits: Mapping[str, str],
        pooled_val: Mapping[str, Sequence[str]] | None = None,
        val_batch_size: int,
        tokens_per_second: float | None = None,
        max_train_clips: int | None = None,
        max_val_clips: int | None = None,
        max_skipped_fraction: float = 0.05,
        decoded_cache_gb: float = 2.0,
        num_workers: int = 2,
        skipped_tsv: str | Path = "skipped.tsv",
        teacher_text: str | None = None,
        augment: Augmentation | None = None,
    ):
        super().__init__()
        if teacher_text is not None:
            check_template(teacher_text)
        self.mixture = corpus if isinstance(corpus, Mixture) else None
        if self.mixture and max_train_clips is not None:
            raise UserError(
                f"data.max_train_clips={max_train_clips} is for a single corpus: limit each part with"
                " data.parts.NAME.limit"
            )
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.num_buckets = num_buckets
        self.seed = seed
        self.train_split = train_split
        self.val_splits = dict(val_splits)
        self.pooled_val = {name: list(pooled) for name, pooled in (pooled_val or {}).items()}
        if (
            unknown := {name for pooled in self.pooled_val.values() for name in pooled}
            - self.val_splits.keys()
        ):
            raise UserError(f"data.pooled_val names {min(unknown)!r}, which data.val_splits lacks")
        self.val_batch_size = val_batch_size
        self.tokens_per_second = tokens_per_second
        self.max_train_clips = max_train_clips
        self.max_val_clips = max_val_clips
        self.max_skipped_fraction = max_skipped_fraction
        self.decoded_cache_gb = decoded_cache_gb
        self.num_workers = num_workers
        self.skipped_tsv = Path(skipped_tsv)
        self.teacher_text = teacher_text
        # None if no kind of change is switched on: then the batches are those without augmentation, to the bit.
        self.augment = augment if augment is not None and augment.kinds else None
        self._splits: dict[str, Manifest] = {}  # by split of the corpus
        # Splits whose batches hold no waveforms, because the encoder frames of their clips are cached. It applies to
        # loaders that are made after a change.
        self.without_waveforms: set[str] = set()
        self._run_faults: dict[str, dict[str, Skip]] = {}  # split -> clip_id -> fault found while training

    # -- manifests ----------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Decode in one process of each machine. The other processes use the cached result in `setup`."""
        self.setup("fit")

    def setup(self, stage: str) -> None:
        """Read, filter and decode the splits, once. Raises UserError if too many clips are skipped."""
        if self._splits:
            return
        if self.augment is not None:
            self.augment.check()
        limits = self.mixture.limits if self.mixture else {self.train_split: self.max_train_clips}
        limits = limits | {s: self.max_val_clips for s in self.val_splits.values() if s not in limits}
        splits = {split: self._manifest(split, limit) for split, limit in limits.items()}
        self._write_skipped({split: manifest.skipped for split, manifest in splits.items()})
        check_skipped(splits, self.max_skipped_fraction, self.skipped_tsv)
        self._splits = splits
        self._train, self._shares = self._training_clips()
        self._edges = bucket_edges(self.train.durations, self.num_buckets)
        if self.num_workers:
            # If the tokenizer has used threads, it prints a warning in every worker without this setting.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def _manifest(self, split: str, limit: int | None) -> Manifest:
        manifest = with_distinct_ids(self.corpus.manifest(split))
        limits = token_limits(manifest.durations, self.max_tokens, self.tokens_per_second)
        manifest = drop_unlearnable(manifest, self.tokenizer, limits)
        if limit is not None and limit < len(manifest):
            # A fixed seed: runs with different seeds must use the same clips.
            chosen = np.random.default_rng(0).permutation(len(manifest))[:limit]
            manifest = replace(manifest.select(chosen), unused=len(manifest) - limit)
        if self.teacher_text is not None:
            manifest = with_teacher_text(manifest, self.teacher_text)
        return decode_once(manifest, self.decoded_cache_gb, self.num_workers)

    def _training_clips(self) -> tuple[Manifest, Shares | None]:
        return self.mixture.train(self._splits) if self.mixture else (self._splits[self.train_split], None)

    @property
    def train(self) -> Manifest:
        return self._train

    @property
    def val(self) -> dict[str, Manifest]:
        """Manifests by name of the validation, in the order of `val_dataloader`."""
        return {name: self._splits[split] for name, split in self.val_splits.items()}

    @property
    def skipped(self) -> dict[str, list[Skip]]:
        """All skipped clips by split, including faults found during training."""
        return {
            split: [*manifest.skipped, *self._run_faults.get(split, {}).values()]
            for split, manifest in self._splits.items()
        }

    @property
    def parts(self) -> dict[str, Any]:
        """What each part of a mixture has (`Mixture.summary`); none for a single corpus."""
        if self.mixture is None or self._shares is None:
            return {}
        return self.mixture.summary(self._splits, self.skipped, self._shares)

    @property
    def clips_in_corpus(self) -> dict[str, int]:
        """Number of clips that are trained on, and of each validation."""
        counts = {name: len(manifest) for name, manifest in self.val.items()}
        pooled = {name: sum(counts[of] for of in names) for name, names in self.pooled_val.items()}
        return {"train": len(self.train), **pooled, **counts}

    def shapes(self) -> list[tuple[int, int]]:
        """(rows per device, samples) of all possible training batches."""
        rows = self.batch_size // self._world_size
        return sorted({(rows, padded_samples(edge)) for edge in self._edges})

    def describe(self) -> str:
        """A few lines of text about clips, hours, buckets and padding."""
        lines = [
            f"{name}: {len(clips)} clips, {clips.durations.sum(dtype=np.float64) / 3600:.2f} h"
            for name, clips in ({self.train_split: self.train} | self.val).items()
        ]
        if self.mixture:
            lines[1:1] = self.mixture.describe(self.parts)
        sampler = self._train_sampler()
        edges = " ".join(f"{edge:g}" for edge in self._edges)
        lines.append(f"buckets: {edges} s, {len(sampler)} batches of {self.batch_size} an epoch")
        shapes = " ".join(f"{rows}x{samples}" for rows, samples in self.shapes())
        lines.append(f"shapes on each device, clips x samples: {shapes}")
        lines.append(f"padding: {sampler.padding_fraction(0):.1%} of the samples")
        skips = [skip for of_split in self.skipped.values() for skip in of_split]
        reasons = ", ".join(f"{count} {reason}" for reason, count in count_by_reason(skips).items())
        lines.append(f"skipped: {reasons or 'none'}")
        if self.augment is not None:
            lines.append(f"augmentation, with its probability: {self.augment}")
        return "\n".join(lines)

    # -- loaders ------------------------------------------------------------------------------------------------

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _train_sampler(self) -> BucketBatchSampler:
        ranks = self._rank, self._world_size
        return BucketBatchSampler(
            self.train.durations, self._edges, self.batch_size, self.seed, *ranks, self._shares
        )

    def train_dataloader(self) -> ResumableLoader:
        dataset = self._dataset(self.train_split, self.augment)
        return ResumableLoader(dataset, self._train_sampler(), **self._loader_options(self.train_split))

    def val_dataloader(self) -> list[DataLoader[SpeechBatch]]:
        """One loader for each of `val_splits`, in order. Rank r takes every world_size-th batch."""
        return [self._val_dataloader(split) for split in self.val_splits.values()]

    def _val_dataloader(self, split: str) -> DataLoader[SpeechBatch]:
        manifest = self._splits[split]
        edges = self._edges_for(manifest)
        sampler = EvalBatchSampler(
            manifest.durations, edges, self.val_batch_size, self._rank, self._world_size
        )
        return DataLoader(
            self._dataset(split), batch_size=None, sampler=sampler, **self._loader_options(split)
        )

    def _dataset(self, split: str, augment: Augmentation | None = None) -> SpeechDataset:
        heard = split not in self.without_waveforms
        manifest = self.train if split == self.train_split else self._splits[split]
        return SpeechDataset(
            manifest, self.tokenizer, self.max_tokens, heard, self.tokens_per_second, augment, self.seed
        )

    def _edges_for(self, manifest: Manifest) -> list[float]:
        """The edges of the training buckets, and one more if a clip is longer than all of them."""
        (longest,) = bucket_edges(manifest.durations, num_buckets=1)
        return self._edges if longest <= self._edges[-1] else [*self._edges, longest]

    def _loader_options(self, split: str) -> dict:
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        # No workers for batches without waveforms: making one is faster than receiving it from another process.
        workers = 0 if split in self.without_waveforms else self.num_workers
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": on_cuda,
            # Loaders seed their workers from a generator. Every new iterator would advance the global generator.
            "generator": torch.Generator().manual_seed(self.seed),
        }

    # -- faults found during training ---------------------------------------------------------------------------

    def record_faults(self, faults: list[Skip], split: str | None = None) -> None:
        """Count clips that were found faulty in a batch, each once. `split` is by default the training split.

        Raises UserError if too many clips are skipped in total.
        """
        new = 0
        for fault in faults:
            of, fault = self._split_of(fault) if split is None else (split, fault)
            known = self._run_faults.setdefault(of, {})
            new += fault.clip_id not in known
            known.setdefault(fault.clip_id, fault)
        if not new:
            return
        skipped = self.skipped
        self._write_skipped(skipped)
        count = sum(map(len, skipped.values()))
        total = sum(manifest.listed for manifest in self._splits.values())
        if count > self.max_skipped_fraction * total:
            raise UserError(
                f"{count} of {total} clips ({count / total:.1%}) cannot be used, more than "
                f"data.max_skipped_fraction={self.max_skipped_fraction:g}: correct those listed in {self.skipped_tsv} "
                "or raise the limit"
            )

    def _split_of(self, fault: Skip) -> tuple[str, Skip]:
        """The split of a clip that is trained on, and the fault with the clip's id in that split."""
        return self.mixture.of_part(fault) if self.mixture else (self.train_split, fault)

    @rank_zero_only
    def _write_skipped(self, skipped: Mapping[str, list[Skip]]) -> None:
        write_skipped(self.skipped_tsv, skipped)

    def state_dict(self) -> dict:
        """The faults found so far, in plain lists, so that a resumed run also counts them."""
        return {
            "faults": [
                [split, fault.clip_id, fault.reason, fault.detail]
                for split, faults in self._run_faults.items()
                for fault in faults.values()
            ]
        }

    def load_state_dict(self, state_dict: dict) -> None:
        for split, clip_id, reason, detail in state_dict["faults"]:
            self._run_faults.setdefault(split, {})[clip_id] = Skip(clip_id, reason, detail)


def token_limits(durations: np.ndarray, max_tokens: int, per_second: float | None) -> np.ndarray:
    """Durations [n] in seconds, NaN if not listed -> the token limit of each transcript, [n]."""
    seconds = np.nan_to_num(durations.astype(np.float64), nan=WHISPER_SECONDS)
    samples = torch.from_numpy(np.rint(seconds * SAMPLE_RATE).astype(np.int64))
    return tokens_read(samples, max_tokens, per_second).numpy()


def drop_unlearnable(manifest: Manifest, tokenizer: PreTrainedTokenizerBase, limits: np.ndarray) -> Manifest:
    """The manifest without clips whose transcript has no token or more than `limits` [n]; these join `skipped`.

    A token covers at least one byte (SentencePiece adds one in front). So only transcripts with enough bytes to exceed
    the limit are tokenized, and a million rows take little time. For the few tokenizers of which this is not true,
    SpeechDataset checks each transcript again.
    """
    texts = manifest.clips["text"]
    long = np.flatnonzero(pc.binary_length(texts).to_numpy() >= limits)
    skips: list[Skip] = []
    dropped = np.zeros(len(manifest), dtype=bool)
    for start in range(0, len(long), _TOKENIZE_AT_ONCE):
        rows = long[start : start + _TOKENIZE_AT_ONCE]
        ids = transcript_tokens(tokenizer, texts.take(pa.array(rows)).to_pylist())
        for row, tokens in zip(rows, map(len, ids), strict=True):
            if fault := transcript_fault(tokens, int(limits[row])):
                skips.append(Skip(manifest.clips["clip_id"][int(row)].as_py(), fault.reason, fault.detail))
                dropped[row] = True
    if not skips:
        return manifest
    return replace(manifest.select(np.flatnonzero(~dropped)), skipped=[*manifest.skipped, *skips])
