"""Length buckets: which clips share a batch, the order of the batches, the share of each rank, and exact resume.

All clips of a global batch are in one bucket. So every rank has the same shape at every step, and there are only as
many shapes as buckets.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from diva.audio.frames import padded_samples
from diva.data.batch import EMPTY_ROW, BatchPlan, SpeechBatch
from diva.data.mixture import Shares
from diva.errors import UserError

EDGE_SECONDS = 0.1  # edges are multiples of this


def bucket_edges(durations: np.ndarray, num_buckets: int) -> list[float]:
    """At most `num_buckets` upper edges in seconds that need the least padding for `durations` [n] (seconds).

    The optimum is exact: dynamic programming over multiples of 0.1 s. The last edge is at least the longest clip.
    """
    steps, counts = np.unique(_edge_steps(durations), return_counts=True)
    # A clip between two candidate edges i < j is padded to j: cost[i, j] = shape_j * clips in (i, j].
    shapes = np.array([padded_samples(step * EDGE_SECONDS) for step in steps], dtype=np.float64)
    clips_up_to = np.concatenate([[0], np.cumsum(counts)])
    cost = shapes[None, :] * (clips_up_to[None, 1:] - clips_up_to[:-1, None])
    cost[np.tril_indices(len(steps), -1)] = np.inf  # cost[i, j]: one bucket from candidate i to j, i <= j
    best = cost[0]  # best[j]: least cost of candidates 0..j in the buckets so far
    starts: list[np.ndarray] = []  # starts[k][j]: with k + 2 buckets up to j, the start of the last bucket
    for _ in range(min(num_buckets, len(steps)) - 1):
        split = best[:-1, None] + cost[1:]  # the last bucket begins at candidate i + 1
        choice = split.argmin(axis=0)
        starts.append(choice + 1)
        best = split[choice, np.arange(len(steps))]
    edges, last = [], len(steps) - 1
    for start in reversed(starts):
        edges.append(last)
        last = start[last] - 1
    edges.append(last)
    return [round(float(steps[edge]) * EDGE_SECONDS, 1) for edge in reversed(edges)]


def _edge_steps(durations: np.ndarray) -> np.ndarray:
    """Durations in seconds -> int64 multiples of 0.1 s, rounded up. A rounding error of float32 does not count."""
    return np.ceil(np.round(np.asarray(durations, dtype=np.float64) / EDGE_SECONDS, 3)).astype(np.int64)


class BucketBatchSampler(Sampler[BatchPlan]):
    """Batches of clips of similar length: the part of one rank.

    Every epoch has every clip once, or in a mixture what `shares` draw. Clips that do not fill a batch move up to the
    next larger bucket. Empty rows complete the last batch.
    The order depends on `seed` and the epoch only. Each rank takes a contiguous slice of every global batch, so a run
    can resume on another number of ranks.

    Args:
        durations: [n] seconds.
        edges: upper edges of the buckets in seconds, ascending (`bucket_edges`).
        batch_size: clips of the global batch; UserError unless `world_size` divides it.
        shares: what an epoch has of each part of a mixture.
    """

    def __init__(
        self,
        durations: np.ndarray,
        edges: list[float],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shares: Shares | None = None,
    ):
        if batch_size % world_size:
            raise UserError(
                f"data.batch_size={batch_size} cannot be shared by {world_size} devices: "
                f"choose a multiple of {world_size}"
            )
        self.durations = np.asarray(durations, dtype=np.float64)
        self.edges = np.asarray(edges)
        self.batch_size = batch_size
        self.seed = seed
        self.shares = shares
        self.epoch = 0
        self._rows = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._buckets = assign_buckets(self.durations, edges)  # [n]
        self.first = 0  # index in the epoch of the first batch of the next iteration

    def __len__(self) -> int:
        return -(-len(self.durations) // self.batch_size)

    def __iter__(self) -> Iterator[BatchPlan]:
        clips, buckets = self.plan(self.epoch)
        shapes = [padded_samples(edge) for edge in self.edges]
        for step in range(self.first, len(self)):
            since_start = self.epoch * len(self) + step
            yield BatchPlan(clips[step, self._rows].tolist(), shapes[buckets[step]], since_start)

    def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The global batches of an epoch in order: clips [steps, batch_size] and bucket [steps]."""
        rng = np.random.default_rng([self.seed, epoch])
        drawn = self._drawn(epoch)
        shuffled = rng.permutation(drawn)
        by_bucket = shuffled[np.argsort(self._buckets[shuffled], kind="stable")]
        ends = np.cumsum(np.bincount(self._buckets[drawn], minlength=len(self.edges)))
        clips, buckets = [], []
        # The clips that remain in a bucket stay directly before those of the next bucket, so they share a batch.
        start = 0
        for bucket, end in enumerate(ends):
            steps = (end - start) // self.batch_size
            clips.append(by_bucket[start : start + steps * self.batch_size])
            buckets.append(np.full(steps, bucket))
            start += steps * self.batch_size
        if left := len(by_bucket) - start:
            clips += [by_bucket[start:], np.full(self.batch_size - left, EMPTY_ROW)]
            buckets.append(np.array([len(self.edges) - 1]))
        order = rng.permutation(len(self))
        return np.concatenate(clips).reshape(-1, self.batch_size)[order], np.concatenate(buckets)[order]

    def _drawn(self, epoch: int) -> np.ndarray:
        """The clips of an epoch, [n] ascending."""
        return np.arange(len(self.durations)) if self.shares is None else self.shares.draw(self.seed, epoch)

    def padding_fraction(self, epoch: int) -> float:
        """Fraction of an epoch's samples that is padding up to the bucket's edge, empty rows included.

        The silent tail that every clip has by design (`diva.audio.frames.TAIL_SECONDS`) is not padding.
        """
        _, buckets = self.plan(epoch)
        seconds = self.durations[self._drawn(epoch)].sum()
        return 1.0 - float(seconds / (self.edges[buckets].sum() * self.batch_size))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; Lightning calls this."""
        self.epoch = epoch

    def identity(self) -> dict[str, int]:
        """All values that decide the order of an epoch."""
        parts = {} if self.shares is None else self.shares.identity()
        return {"seed": self.seed, "clips": len(self.durations), "batch_size": self.batch_size} | parts


class ResumableLoader(DataLoader[SpeechBatch]):
    """Loads the batches of a BucketBatchSampler. It counts the batches taken; prefetched batches do not count.

    Lightning saves this state in the checkpoint. The state is plain numbers, so a run can resume with another number
    of workers or ranks.
    An iteration starts after the last batch taken and ends with the epoch. The next iteration is the next epoch.
    `set_epoch` sets the first epoch, unless a state was loaded. Later calls have no effect: if a checkpoint was written
    at the end of an epoch, Lightning's own count after a resume is one too high, or it ends the first epoch after one
    batch.

    `options` are those of DataLoader. A batch is `dataset[BatchPlan]`.
    """

    sampler: BucketBatchSampler

    def __init__(self, dataset: Dataset[SpeechBatch], sampler: BucketBatchSampler, **options: Any):
        super().__init__(dataset, batch_size=None, sampler=sampler, **options)  # type: ignore[arg-type]
        self._epoch: int | None = None  # unknown until the first batch is taken or a state is loaded
        self._given = 0  # batches of this epoch that were taken

    def __iter__(self) -> Iterator[SpeechBatch]:  # type: ignore[override]
        # A generator: it starts when the first batch is taken. Before that the epoch is unknown, because Lightning
        # calls iter() before set_epoch(), and workers must not prefetch.
        if self._epoch is None:
            self._epoch = self.sampler.epoch
        elif self._given == len(self):
            self._epoch, self._given = self._epoch + 1, 0
        self.sampler.epoch, self.sampler.first = self._epoch, self._given
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position to resume at, and the values that must be equal after the resume."""
        epoch = self.sampler.epoch if self._epoch is None else self._epoch
        return {"epoch": epoch, "given": self._given} | self.sampler.identity()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the last batch taken. Raises UserError if the order of clips cannot be reproduced."""
        for key, value in self.sampler.identity().items():
            if state.get(key) != value:
                raise UserError(
                    f"cannot resume: the checkpoint has {key}={state.get(key)}, this run has {key}={value}, so its "
                    "order of clips cannot be continued; use the same data and settings, or start a new run"
                )
        self._epoch, self._given = state["epoch"], state["given"]


class EvalBatchSampler(Sampler[BatchPlan]):
    """Every clip once, shortest first, so that a batch holds clips of similar length.

    Rank r takes every `world_size`-th batch, starting with batch r. All ranks have the same number of batches and of
    rows; empty rows complete them. The shapes are those of `edges`, as in training.

    Args:
        durations: [n] seconds.
        edges: upper edges of the buckets in seconds, ascending, the last not below the longest clip.
        batch_size: rows of a batch on one rank; fewer when there are fewer clips.
    """

    def __init__(
        self, durations: np.ndarray, edges: list[float], batch_size: int, rank: int = 0, world_size: int = 1
    ):
        rows = min(batch_size, len(durations))
        steps = -(-len(durations) // (rows * world_size))
        clips = np.full(steps * world_size * rows, EMPTY_ROW)
        clips[: len(durations)] = np.argsort(durations, kind="stable")
        buckets = np.zeros(len(clips), dtype=np.int64)
        buckets[: len(durations)] = np.sort(assign_buckets(durations, edges))
        self.rows = rows
        self._clips = clips.reshape(steps, world_size, rows)[:, rank]
        self._shapes = [
            padded_samples(edges[bucket])
            for bucket in buckets.reshape(steps, world_size, rows)[:, rank].max(axis=1)
        ]

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[BatchPlan]:
        for clips, samples in zip(self._clips, self._shapes, strict=True):
            yield BatchPlan(clips.tolist(), samples)


def assign_buckets(durations: np.ndarray, edges: list[float]) -> np.ndarray:
    """Durations [n] in seconds -> int16 [n], the smallest bucket that each clip fits into."""
    # int16: numpy sorts it with radix sort, in linear time.
    buckets = np.searchsorted(_edge_steps(np.asarray(edges)), _edge_steps(durations)).astype(np.int16)
    assert len(buckets) == 0 or buckets.max() < len(edges), "the last edge is below the longest clip"
    return buckets
