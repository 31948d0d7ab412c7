"""Augmented batches are the same whoever loads them and after whichever break; validation and caches stay clean."""

from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from omegaconf import OmegaConf
from tiny import noise

from diva.audio.frames import SAMPLE_RATE, TAIL_SECONDS
from diva.config import CONFIG_DIR, make
from diva.data.batch import SpeechBatch
from diva.data.datamodule import SpeechDataModule
from diva.data.manifest import Manifest

CLIPS = 22
EVERY = {
    "speed": {"probability": 0.7},
    "reverberation": {"probability": 0.3},
    "noise": {"probability": 0.7},
    "gain": {"probability": 0.5},
    "telephone": {"probability": 0.2},
    "codec": {"probability": 0.2, "names": ["mu_law", "mp3"]},
    "spec_augment": {"probability": 0.5},
}


@dataclass(frozen=True)
class Sounds:
    seconds: np.ndarray

    def waveform(self, row: int) -> np.ndarray:
        return noise(float(self.seconds[row]), row)


class Spoken:
    def manifest(self, split: str) -> Manifest:
        count = CLIPS if split == "train" else 4
        seconds = np.random.default_rng(1).uniform(0.4, 2.0, count).astype(np.float32)
        columns = {"clip_id": [f"{split}{n}" for n in range(count)], "text": ["hello"] * count}
        clips = pa.table(columns | {"duration": seconds, "speaker": [""] * count})
        return Manifest(clips, Sounds(seconds), np.arange(count))


def module(
    tmp_path, kinds: dict | None = EVERY, rank: int = 0, world_size: int = 1, **given
) -> SpeechDataModule:
    """A data module with these kinds switched on; None: without the parameter `augment`."""
    augment = {}
    if kinds is not None:
        config = OmegaConf.load(f"{CONFIG_DIR}/data/augment/none.yaml")
        augment = {"augment": make(OmegaConf.merge(config, kinds))}
    made = SpeechDataModule(
        corpus=Spoken(),
        tokenizer=lambda texts, add_special_tokens: {"input_ids": [list(text.encode()) for text in texts]},
        max_tokens=8, batch_size=4, num_buckets=3, seed=5, val_splits={"val": "dev", "again": "train"},
        val_batch_size=4, skipped_tsv=tmp_path / "skipped.tsv", **{"num_workers": 0} | augment | given,
    )  # fmt: skip
    made.setup("fit")
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    made.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)
    return made


def assert_same(found: list[SpeechBatch], expected: list[SpeechBatch]) -> None:
    for batch, other in zip(found, expected, strict=True):
        for name in ("waveforms", "samples", "token_ids", "tokens", "clips"):
            assert getattr(batch, name).equal(getattr(other, name)), name
        assert (batch.masks is None) == (other.masks is None)
        if batch.masks is not None:
            assert batch.masks.times.equal(other.masks.times)
            assert batch.masks.bands.equal(other.masks.bands)


def test_workers_make_the_batches_that_the_main_process_makes(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # a worker has one
    try:
        alone = list(module(tmp_path).train_dataloader())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert_same(list(module(tmp_path, num_workers=2).train_dataloader()), alone)
    assert not any(batch.faults for batch in alone)


def test_an_epoch_goes_on_with_the_batches_of_an_undisturbed_one(tmp_path):
    loader = module(tmp_path).train_dataloader()
    undisturbed = [*loader, *loader]
    for given in (2, 8):  # in the first epoch and in the second
        resumed = module(tmp_path).train_dataloader()
        state = loader.state_dict() | {"epoch": given // len(loader), "given": given % len(loader)}
        resumed.load_state_dict(state)
        assert_same(list(resumed), undisturbed[given : len(loader) * (1 + given // len(loader))])


def test_ranks_share_the_batches_of_one(tmp_path):
    alone = list(module(tmp_path).train_dataloader())
    shares = [list(module(tmp_path, rank=rank, world_size=2).train_dataloader()) for rank in range(2)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert torch.cat([part.waveforms for part in parts]).equal(batch.waveforms)
        assert torch.cat([part.masks.times for part in parts]).equal(batch.masks.times)


def test_the_same_clip_is_changed_anew_in_the_next_epoch(tmp_path):
    loader = module(tmp_path, {"noise": {"probability": 1.0}}).train_dataloader()
    epochs = []
    for _ in range(2):
        rows = [(batch.clip_ids[row], batch.waveforms[row]) for batch in loader for row in range(len(batch))]
        epochs.append({name: waveform for name, waveform in rows if name})
    for name, waveform in epochs[0].items():
        size = min(len(waveform), len(epochs[1][name]))
        assert not waveform[:size].equal(epochs[1][name][:size])


def test_switched_off_the_batches_are_those_without_augmentation(tmp_path):
    without, off = module(tmp_path, None), module(tmp_path, {})
    assert off.augment is None
    assert_same(list(off.train_dataloader()), list(without.train_dataloader()))
    assert all(batch.masks is None for batch in off.train_dataloader())
    assert off.describe() == without.describe()


def test_validation_is_clean_even_on_the_training_split(tmp_path):
    augmented, clean = module(tmp_path), module(tmp_path, None)
    for found, expected in zip(augmented.val_dataloader(), clean.val_dataloader(), strict=True):
        assert_same(list(found), list(expected))


@pytest.mark.parametrize(("factor", "per_second"), [([0.5, 0.5], None), ([2.0, 2.0], 4.0)])
def test_another_speed_leaves_every_clip_its_tail_and_its_virtual_tokens(tmp_path, factor, per_second):
    kinds = {"speed": {"probability": 1.0, "factor": factor}}
    plain = {
        name: int(samples)
        for batch in module(
            tmp_path, None, tokens_per_second=per_second, max_skipped_fraction=1.0
        ).train_dataloader()
        for name, samples in zip(batch.clip_ids, batch.samples, strict=True)
    }
    made = module(tmp_path, kinds, tokens_per_second=per_second, max_skipped_fraction=1.0)
    changed = 0
    for batch in made.train_dataloader():
        assert batch.faults == []
        assert batch.padded_samples in [samples for _, samples in made.shapes()]
        for name, samples, tokens in zip(
            batch.clip_ids, batch.samples.tolist(), batch.tokens.tolist(), strict=True
        ):
            if name:
                changed += samples != plain[name]
                assert samples + int(TAIL_SECONDS * SAMPLE_RATE) <= batch.padded_samples
                assert per_second is None or tokens <= -(-(samples // 320 + 50) * per_second // 50)
    assert changed > CLIPS // 3


def test_masks_follow_their_rows(tmp_path):
    batch = next(iter(module(tmp_path, {"spec_augment": {"probability": 1.0}}).train_dataloader()))
    assert batch.masks.times.shape == batch.masks.bands.shape == (4, 2, 2)
    assert (batch.masks.bands[:, :, 1] > batch.masks.bands[:, :, 0]).all()
    assert (batch.masks.times.amax(dim=(1, 2)) <= batch.samples / 160).all()
    parts = batch.micro_batches(3)
    assert torch.cat([part.masks.times for part in parts]).equal(batch.masks.times)
    assert batch.to("meta").masks.bands.is_meta


def test_the_startup_report_says_what_is_switched_on(tmp_path):
    last = module(tmp_path, {"gain": {"probability": 0.25}}).describe().splitlines()[-1]
    assert last == "augmentation, with its probability: gain 0.25 (-12 to 6 dB)"


def test_every_global_batch_has_its_own_step(tmp_path):
    sampler = module(tmp_path).train_dataloader().sampler
    steps = [plan.step for plan in sampler]
    sampler.set_epoch(1)
    steps += [plan.step for plan in sampler]
    assert steps[0] == 0
    assert all(after == before + 1 for before, after in pairwise(steps))
