from itertools import combinations

import numpy as np
import pytest
from calls import calls_of_diva
from torch.utils.data import Dataset

from diva.audio.frames import padded_samples
from diva.data.batch import BatchPlan
from diva.data.bucketing import BucketBatchSampler, EvalBatchSampler, ResumableLoader, bucket_edges
from diva.errors import UserError

BATCH_SIZE = 8


def log_normal(size: int, seed: int = 0) -> np.ndarray:
    """Durations as speech corpora have them: most of 3 to 7 s, a few of 20 s."""
    return np.random.default_rng(seed).lognormal(1.5, 0.45, size).clip(0.4, 29.9).astype(np.float32)


def sampler(
    size: int, rank: int = 0, world_size: int = 1, seed: int = 0, epoch: int = 0
) -> BucketBatchSampler:
    durations = log_normal(size)
    made = BucketBatchSampler(durations, bucket_edges(durations, 4), BATCH_SIZE, seed, rank, world_size)
    made.set_epoch(epoch)
    return made


class Plans(Dataset):
    """Gives back what the sampler asked for."""

    def __getitem__(self, plan: BatchPlan) -> BatchPlan:
        return plan


# -- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_edges_pad_as_little_as_the_best_of_all_choices(seed):
    durations = np.random.default_rng(seed).choice(np.arange(3, 15), 20) / 10

    def padded(edges):
        return sum(min(padded_samples(edge) for edge in edges if edge >= duration) for duration in durations)

    candidates = np.unique(durations)
    every_choice = [(*few, candidates[-1]) for few in combinations(candidates[:-1], 2)]
    edges = bucket_edges(durations, 3)
    assert len(edges) == 3
    assert padded(edges) == min(map(padded, every_choice))


def test_edges_are_ascending_tenths_of_a_second_that_hold_the_longest_clip():
    durations = log_normal(500)
    edges = bucket_edges(durations, 8)
    assert len(edges) == 8
    assert edges == sorted(set(edges))
    assert edges == [round(edge, 1) for edge in edges]
    assert durations.max() <= edges[-1] < durations.max() + 0.1


def test_there_are_no_more_buckets_than_lengths():
    assert bucket_edges(np.array([1.1, 1.1, 2.0], dtype=np.float32), 8) == [1.1, 2.0]


# -- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 33])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_an_epoch_has_every_clip_once_in_equal_shapes_on_all_ranks(size, world_size):
    ranks = [list(sampler(size, rank, world_size)) for rank in range(world_size)]

    clips = [clip for plans in ranks for plan in plans for clip in plan.clips if clip != -1]
    assert sorted(clips) == list(range(size))
    for step in zip(*ranks, strict=True):
        assert len({(len(plan.clips), plan.padded_samples) for plan in step}) == 1
        assert len(step[0].clips) == BATCH_SIZE // world_size


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_share_the_batches_of_a_single_one(world_size):
    ranks = [list(sampler(33, rank, world_size)) for rank in range(world_size)]
    joined = [[clip for plan in step for clip in plan.clips] for step in zip(*ranks, strict=True)]
    assert joined == [plan.clips for plan in sampler(33)]


def test_clips_fit_their_batch_and_only_the_left_over_are_below_their_bucket():
    durations = log_normal(1000)
    edges = bucket_edges(durations, 4)
    plans = list(BucketBatchSampler(durations, edges, BATCH_SIZE, seed=0))
    own = [min(padded_samples(edge) for edge in edges if edge >= duration) for duration in durations]
    given = {clip: plan.padded_samples for plan in plans for clip in plan.clips if clip != -1}

    assert all(given[clip] >= own[clip] for clip in given)
    assert sum(given[clip] > own[clip] for clip in given) < BATCH_SIZE * len(edges)
    assert {plan.padded_samples for plan in plans} == {padded_samples(edge) for edge in edges}


def test_only_one_batch_of_an_epoch_has_empty_rows():
    plans = list(sampler(1001))
    assert len(plans) == len(sampler(1001)) == 126
    assert [plan.clips.count(-1) for plan in plans if -1 in plan.clips] == [7]


def test_the_order_is_a_function_of_seed_and_epoch():
    assert list(sampler(33, seed=1, epoch=2)) == list(sampler(33, seed=1, epoch=2))
    orders = [list(sampler(33, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert not any(left == right for left, right in combinations(orders, 2))


def test_batch_lengths_come_in_random_order():
    shapes = [plan.padded_samples for plan in sampler(1000)]
    assert shapes != sorted(shapes)


def test_a_batch_size_that_the_ranks_cannot_share_is_the_users_to_mend():
    with pytest.raises(UserError, match=r"data\.batch_size=8 .* multiple of 3"):
        sampler(33, world_size=3)


def test_the_padding_fraction_is_that_of_the_batches_without_the_tail():
    made = sampler(33, epoch=1)
    edge_of = {padded_samples(edge): edge for edge in made.edges}
    padded = sum(edge_of[plan.padded_samples] * len(plan.clips) for plan in made)
    assert made.padding_fraction(1) == pytest.approx(1 - log_normal(33).astype(float).sum() / padded)


def test_eight_buckets_pad_a_quarter_of_what_random_batches_do():
    durations, batch_size = log_normal(8_192), 32
    batches = np.random.default_rng(0).permutation(durations).reshape(-1, batch_size)
    naive = 1 - durations.sum() / (batches.max(axis=1).sum() * batch_size)
    bucketed = BucketBatchSampler(durations, bucket_edges(durations, 8), batch_size, seed=0)
    assert bucketed.padding_fraction(0) < naive / 4


def test_bucket_sampler_does_no_python_work_for_each_clip():
    durations = log_normal(50_000)
    batches = []

    def epoch() -> None:
        batches.extend(BucketBatchSampler(durations, bucket_edges(durations, 8), 512, seed=0))

    assert calls_of_diva(epoch) < 5_000
    assert len(batches) == 98


@pytest.mark.parametrize("size", [1, 7, 33])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_validation_has_every_clip_once_shortest_first_on_ranks_of_equal_length(size, world_size):
    durations = log_normal(size)
    edges = bucket_edges(durations, 4)
    ranks = [
        list(EvalBatchSampler(durations, edges, BATCH_SIZE, rank, world_size)) for rank in range(world_size)
    ]

    in_order = [plan for step in zip(*ranks, strict=True) for plan in step]
    clips = [clip for plan in in_order for clip in plan.clips if clip != -1]
    assert sorted(clips) == list(range(size))
    assert (np.diff(durations[clips]) >= 0).all()
    assert len({len(plan.clips) for plan in in_order}) == 1
    for plan in in_order:
        longest = max((durations[clip] for clip in plan.clips if clip != -1), default=0)
        assert plan.padded_samples == min(padded_samples(edge) for edge in edges if edge >= longest)


# -- going on after a break -----------------------------------------------------------------------------------------


def take(loader: ResumableLoader, count: int) -> list[BatchPlan]:
    """So many batches, over as many epochs as that needs."""
    taken: list[BatchPlan] = []
    while len(taken) < count:
        for plan in loader:
            taken.append(plan)
            if len(taken) == count:
                break
    return taken


@pytest.mark.parametrize(("workers_before", "workers_after"), [(0, 0), (2, 2), (2, 0)])
@pytest.mark.parametrize("before", [2, 5, 7, 10])  # an epoch has 5 batches
def test_a_loader_goes_on_behind_the_last_batch_taken(workers_before, workers_after, before):
    everything = take(ResumableLoader(Plans(), sampler(33)), 16)
    interrupted = ResumableLoader(Plans(), sampler(33), num_workers=workers_before)
    assert take(interrupted, before) == everything[:before]

    resumed = ResumableLoader(Plans(), sampler(33), num_workers=workers_after)
    resumed.load_state_dict(interrupted.state_dict())

    assert take(resumed, 16 - before) == everything[before:]


def test_passes_are_successive_epochs_from_the_one_that_was_set():
    loader = ResumableLoader(Plans(), sampler(33))
    iterator = iter(loader)
    loader.sampler.set_epoch(4)  # Lightning calls iter() first
    assert list(iterator) == list(sampler(33, epoch=4))
    assert list(loader) == list(sampler(33, epoch=5))


def test_a_pass_that_was_broken_off_is_taken_up_by_the_next():
    loader = ResumableLoader(Plans(), sampler(33), num_workers=2)
    whole = list(sampler(33))
    assert next(iter(loader)) == whole[0]
    assert list(loader) == whole[1:]
    assert list(loader) == list(sampler(33, epoch=1))


def test_lightnings_count_of_epochs_is_not_used_after_a_state_was_loaded():
    loader = ResumableLoader(Plans(), sampler(33))
    loader.load_state_dict({"epoch": 1, "given": 0} | loader.sampler.identity())
    loader.sampler.set_epoch(2)
    assert list(loader) == list(sampler(33, epoch=1))


def test_a_checkpoint_of_other_data_is_refused():
    state = ResumableLoader(Plans(), sampler(33)).state_dict()
    with pytest.raises(UserError, match="clips=33, this run has clips=34"):
        ResumableLoader(Plans(), sampler(34)).load_state_dict(state)
