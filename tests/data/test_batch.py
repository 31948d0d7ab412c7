import pickle
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch.utils.data import DataLoader

from diva.audio.frames import SAMPLE_RATE, padded_samples
from diva.data.batch import BatchPlan, SpeechBatch, SpeechDataset
from diva.data.manifest import Manifest
from diva.errors import AudioFault

MAX_TOKENS = 6
TEXTS = ["one", "two", "three", "four", "five is more than six"]
SECONDS = [1.0, 0.5, 2.0, 1.5, 0.7]


@dataclass(frozen=True)
class Tones:
    """Clip i is a constant of (i + 1) / 10; negative seconds mean a file that is damaged."""

    seconds: tuple[float, ...]

    def waveform(self, row: int) -> np.ndarray:
        if self.seconds[row] < 0:
            raise AudioFault("damaged audio", f"clip {row}")
        return np.full(int(self.seconds[row] * SAMPLE_RATE), (row + 1) / 10, dtype=np.float32)


class ByteTokenizer:
    """Byte i of the text is token i, and special tokens are on offer."""

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        special = [1] if add_special_tokens else []
        return {"input_ids": [special + list(text.encode()) for text in texts]}


def dataset(real_seconds: list[float] = SECONDS, heard: bool = True) -> SpeechDataset:
    clips = pa.table(
        {
            "clip_id": [f"clip{i}" for i in range(len(TEXTS))],
            "text": TEXTS,
            "duration": pa.array(SECONDS, type=pa.float32()),
            "speaker": [""] * len(TEXTS),
        }
    )
    manifest = Manifest(clips, Tones(tuple(real_seconds)), np.arange(len(TEXTS)))
    return SpeechDataset(manifest, ByteTokenizer(), MAX_TOKENS, heard)


def test_a_batch_holds_waveforms_and_transcripts_padded_to_the_shape_of_its_bucket():
    padded = padded_samples(2.0)
    batch = dataset()[BatchPlan([2, -1, 0], padded)]

    assert len(batch) == 3
    assert batch.waveforms.shape == (3, padded)
    assert batch.samples.tolist() == [32_000, 0, 16_000]
    assert batch.waveforms[0, :32_000].eq(torch.tensor(0.3)).all()
    assert batch.waveforms[2, :16_000].eq(torch.tensor(0.1)).all()
    assert batch.waveforms.count_nonzero() == 48_000
    assert batch.token_ids.tolist() == [[*b"three", 0], [0] * 6, [*b"one", 0, 0, 0]]
    assert batch.tokens.tolist() == [5, 0, 3]
    assert batch.clips.tolist() == [2, -1, 0]
    assert batch.valid.tolist() == [True, False, True]
    assert batch.faults == []


def test_a_batch_that_nobody_hears_is_the_same_without_its_waveforms():
    plan = BatchPlan([2, -1, 0], padded_samples(2.0))
    # Were it read, the audio would be at fault.
    unheard, batch = dataset([-1.0] * len(TEXTS), heard=False)[plan], dataset()[plan]

    assert unheard.waveforms.shape == (3, 0)
    for name in ("samples", "token_ids", "tokens", "clips"):
        assert getattr(unheard, name).equal(getattr(batch, name))
    assert unheard.faults == []
    assert [len(part) for part in unheard.micro_batches(2)] == [2, 1]


def test_a_damaged_clip_leaves_its_row_empty_and_is_named():
    batch = dataset([1.0, -1.0, 2.0, 1.5, 0.7])[BatchPlan([0, 1, 3], padded_samples(2.0))]

    assert [(fault.clip_id, fault.reason) for fault in batch.faults] == [("clip1", "damaged audio")]
    assert batch.valid.tolist() == [True, False, True]
    assert batch.waveforms[1].count_nonzero() == 0
    assert (batch.clips[1], batch.tokens[1], batch.token_ids[1].sum()) == (-1, 0, 0)


def test_a_clip_longer_than_its_bucket_is_a_fault_that_names_both_durations():
    batch = dataset([5.0, 0.5, 2.0, 1.5, 0.7])[BatchPlan([0, 1], padded_samples(1.0))]

    (fault,) = batch.faults
    assert (fault.clip_id, fault.reason) == ("clip0", "too long for its bucket")
    assert "5.00 s" in fault.detail
    assert "1.00 s" in fault.detail
    assert batch.valid.tolist() == [False, True]


def test_a_clip_that_runs_a_little_into_the_tail_is_kept():
    batch = dataset([1.2, 0.5, 2.0, 1.5, 0.7])[BatchPlan([0], padded_samples(1.0))]

    assert batch.faults == []
    assert batch.samples.tolist() == [19_200]


def test_a_transcript_longer_than_the_query_tokens_is_a_fault():
    batch = dataset()[BatchPlan([4, 0], padded_samples(2.0))]

    (fault,) = batch.faults
    assert (fault.clip_id, fault.reason) == ("clip4", "too many tokens")
    assert batch.valid.tolist() == [False, True]


@pytest.mark.parametrize("heard", [True, False])
def test_a_transcript_longer_than_the_clip_has_query_tokens_is_a_fault(heard):
    speech = dataset(heard=heard)
    speech.tokens_per_second = 1.5

    # 1.5 a second of speech and tail: 3 for a second, 3 for half a one (rounded up), 5 for two.
    batch = speech[BatchPlan([0, 1, 2, 3], padded_samples(2.0))]

    assert batch.tokens.tolist() == [3, 3, 5, 4]
    speech.tokens_per_second = 1.4
    batch = speech[BatchPlan([0, 1, 2, 3], padded_samples(2.0))]
    assert batch.tokens.tolist() == [3, 3, 5, 4]
    speech.tokens_per_second = 1.3
    batch = speech[BatchPlan([0, 1, 2, 3], padded_samples(2.0))]
    assert batch.tokens.tolist() == [3, 0, 0, 4]
    assert [fault.clip_id for fault in batch.faults] == ["clip1", "clip2"]
    assert "5 transcript tokens, the model has 4 virtual tokens for it" in batch.faults[1].detail


def test_micro_batches_are_the_batch_cut_in_order():
    batch = dataset()[BatchPlan([3, 1, 0, 2, -1], padded_samples(2.0))]

    parts = batch.micro_batches(2)

    assert [len(part) for part in parts] == [2, 2, 1]
    for name in ("waveforms", "samples", "token_ids", "tokens", "clips"):
        assert torch.cat([getattr(part, name) for part in parts]).equal(getattr(batch, name))
    assert {part.padded_samples for part in parts} == {padded_samples(2.0)}


def test_lightning_moves_every_tensor_and_keeps_the_faults():
    batch = dataset([1.0, -1.0, 2.0, 1.5, 0.7])[BatchPlan([0, 1], padded_samples(1.0))]

    moved = move_data_to_device(batch, torch.device("meta"))

    assert isinstance(moved, SpeechBatch)
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5
    assert all(tensor.is_meta for tensor in tensors)
    assert moved.faults == batch.faults


def test_workers_give_the_batches_that_the_dataset_gives():
    plans = [BatchPlan([0, 1], padded_samples(1.0)), BatchPlan([2, -1], padded_samples(2.0))]
    speech = pickle.loads(pickle.dumps(dataset()))

    loaded = list(DataLoader(speech, batch_size=None, sampler=plans, num_workers=1))

    for batch, plan in zip(loaded, plans, strict=True):
        assert batch.waveforms.equal(dataset()[plan].waveforms)
        assert batch.token_ids.equal(dataset()[plan].token_ids)
