import os
from dataclasses import dataclass, field
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from diva.audio.frames import SAMPLE_RATE
from diva.config import check_overrides
from diva.data.datamodule import SpeechDataModule, token_limits
from diva.data.manifest import Manifest, Skip
from diva.errors import AudioFault, UserError
from diva.models.build import build
from diva.models.parts import load_tokenizer
from diva.run import make_data, make_module

CLIPS = 30  # 8 batches of 4 an epoch


@dataclass(frozen=True)
class Tones:
    seconds: np.ndarray
    damaged: frozenset[int] = frozenset()

    def waveform(self, row: int) -> np.ndarray:
        if row in self.damaged:
            raise AudioFault("damaged audio", f"clip {row}")
        return np.full(int(self.seconds[row] * SAMPLE_RATE), 0.1, dtype=np.float32)


class ByteTokenizer:
    """Byte i of the text is token i; what it was asked for is in `seen`."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        self.seen += texts
        return {"input_ids": [list(text.replace("~", "").encode()) for text in texts]}


@dataclass
class Memory:
    """A corpus of constant tones: `texts` for training, four clips for each other split."""

    texts: list[str] = field(default_factory=lambda: ["hello"] * CLIPS)
    damaged: frozenset[int] = frozenset()
    skipped: list[Skip] = field(default_factory=list)
    seconds: list[float] | None = None  # of the training clips

    def manifest(self, split: str) -> Manifest:
        texts = self.texts if split == "train" else ["bye"] * 4
        seconds = np.random.default_rng(0).uniform(0.5, 3.0, len(texts)).astype(np.float32)
        if self.seconds and split == "train":
            seconds = np.array(self.seconds, dtype=np.float32)
        if split != "train":
            seconds *= 2
        clips = pa.table(
            {
                "clip_id": [f"{split}{i}" for i in range(len(texts))],
                "text": texts,
                "duration": seconds,
                "speaker": [""] * len(texts),
            }
        )
        damaged = self.damaged if split == "train" else frozenset()
        return Manifest(clips, Tones(seconds, damaged), np.arange(len(texts)), list(self.skipped))


class Listener(LightningModule):
    """Notes what it is given, trains one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.heard: list[tuple[int, list[int], int]] = []
        self.validated: list[tuple[int, list[int]]] = []

    def training_step(self, batch, batch_idx):
        self.heard.append((self.current_epoch, batch.clips.tolist(), batch.waveforms.shape[1]))
        self.trainer.datamodule.record_faults(batch.faults)
        return self.weight.sum() * batch.waveforms.mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.validated.append((dataloader_idx, batch.clips.tolist()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """SpeechDataModules with the arguments that matter to a test."""
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)

    def datamodule(**arguments) -> SpeechDataModule:
        defaults = {
            "corpus": Memory(),
            "tokenizer": ByteTokenizer(),
            "max_tokens": 8,
            "batch_size": 4,
            "num_buckets": 3,
            "seed": 3,
            "val_splits": {"val": "dev", "val_unseen_voice": "unseen_voice"},
            "val_batch_size": 4,
            "num_workers": 0,
            "skipped_tsv": tmp_path / "skipped.tsv",
        }
        return SpeechDataModule(**defaults | arguments)

    return datamodule


def fit(datamodule: SpeechDataModule, *callbacks, resume=None, **arguments) -> Listener:
    module = Listener()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **{"max_steps": 20, "limit_val_batches": 0} | arguments,
    )
    trainer.fit(module, datamodule, ckpt_path=resume, weights_only=True)
    return module


def on_rank(rank: int, world_size: int) -> SimpleNamespace:
    """As much of a Trainer as a data module asks for."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)


# -- what is trained on ---------------------------------------------------------------------------------------------


def test_transcripts_beyond_the_query_tokens_are_skipped_and_listed(make, tmp_path):
    made = make(corpus=Memory(["fits", "12345678", "123456789", "~~~~~~~~"] * 8), max_skipped_fraction=0.6)
    made.setup("fit")

    assert sorted(set(made.train.column("text"))) == ["12345678", "fits"]
    reasons = {(skip.clip_id, skip.reason) for skip in made.skipped["train"]}
    assert ("train2", "too many tokens") in reasons
    assert ("train3", "empty text") in reasons
    assert len(reasons) == 16
    assert "train\ttrain2\ttoo many tokens\t9 transcript tokens" in (tmp_path / "skipped.tsv").read_text()


def test_transcripts_beyond_the_query_tokens_of_their_clip_are_skipped(make):
    corpus = Memory(["1234", "12345", "123456"] * 4, seconds=[0.5, 2.0, 2.0] * 4)
    # 2 a second of speech and tail: 3 for half a second, 6 for two.
    made = make(corpus=corpus, tokens_per_second=2.0, max_skipped_fraction=1.0)
    made.setup("fit")
    assert sorted(set(made.train.column("text"))) == ["12345", "123456"]
    assert {skip.detail for skip in made.skipped["train"]} == {
        "4 transcript tokens, the model has 3 virtual tokens for it"
    }
    assert token_limits(np.array([0.5, np.nan, 2.0]), 100, 2.0).tolist() == [3, 60, 6]
    assert token_limits(np.array([0.5, np.nan]), 100, None).tolist() == [100, 100]


def test_only_transcripts_that_could_be_too_long_are_tokenised(make):
    made = make(corpus=Memory(["short"] * 1000 + ["long enough"]))
    made.setup("fit")
    assert made.tokenizer.seen == ["long enough"]


def test_too_many_skipped_clips_end_the_run_before_training_and_are_listed(make, tmp_path):
    corpus = Memory(skipped=[Skip("lost", "missing file", "clips/lost.mp3")] * 10)
    with pytest.raises(UserError, match="missing file"):
        make(corpus=corpus, max_skipped_fraction=0.2).setup("fit")
    assert "lost\tmissing file" in (tmp_path / "skipped.tsv").read_text()


def test_a_limit_takes_the_same_clips_whatever_the_seed(make):
    chosen = []
    for seed in (1, 2):
        made = make(seed=seed, max_train_clips=10, max_val_clips=2)
        made.setup("fit")
        assert [len(part) for part in (made.train, *made.val.values())] == [10, 2, 2]
        chosen.append(made.train.column("clip_id"))
    assert chosen[0] == chosen[1]
    assert chosen[0] != [f"train{i}" for i in range(10)]


def test_the_description_has_clips_hours_buckets_and_padding(make):
    made = make()
    made.setup("fit")
    text = made.describe()
    hours = made.train.durations.sum() / 3600
    assert f"train: 30 clips, {hours:.2f} h" in text
    assert "val_unseen_voice: 4 clips" in text
    assert "8 batches of 4 an epoch" in text
    assert "padding: " in text
    assert made.shapes() == sorted({(4, plan.padded_samples) for plan in made.train_dataloader().sampler})


def test_no_worker_has_the_tokenizers_warning_printed(make):
    make(num_workers=2).setup("fit")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


# -- loaders --------------------------------------------------------------------------------------------------------


def test_every_epoch_has_every_clip_once_and_its_own_order(make):
    heard = fit(make(), max_epochs=3, max_steps=-1).heard

    epochs = [[clips for epoch, clips, _ in heard if epoch == wanted] for wanted in range(3)]
    for batches in epochs:
        assert sorted(chain.from_iterable(batches)) == [-1, -1, *range(CLIPS)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_validation_clip_longer_than_all_of_training_has_a_shape_of_its_own(make):
    made = make(corpus=Memory(["alone"]))
    made.setup("fit")
    longest = max(made.val["val"].durations)
    assert longest > made.train.durations.max()
    (batch,) = made.val_dataloader()[0]
    assert batch.faults == []
    assert batch.waveforms.shape[1] >= longest * SAMPLE_RATE + SAMPLE_RATE


def test_validations_come_in_their_order_and_whole(make):
    module = fit(make(num_workers=1), max_steps=1, limit_val_batches=1.0, val_check_interval=1)
    assert [index for index, _ in module.validated] == [0, 1]
    assert all(sorted(clips) == [0, 1, 2, 3] for _, clips in module.validated)


def test_waveforms_are_left_out_of_the_splits_that_nobody_hears(make):
    made = make(num_workers=2)
    made.setup("fit")
    made.without_waveforms = {"train", "unseen_voice"}
    loaders = [made.train_dataloader(), *made.val_dataloader()]
    widths = [next(iter(loader)).waveforms.shape[1] for loader in loaders]
    assert [width > 0 for width in widths] == [False, True, False]
    assert [loader.num_workers for loader in loaders] == [0, 2, 0]


def test_a_run_that_keeps_the_encoders_frames_does_not_load_waveforms(
    tiny_overrides, tiny_release, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path))
    overrides = ["data=common_voice", f"data.root={tiny_release}", "data.batch_size=4", "max_steps=1"]
    config = check_overrides("train", [*overrides, *tiny_overrides])
    model_config = instantiate(config.model)
    tokenizer = load_tokenizer(model_config.llm.name)
    for gigabytes, width in {0.0: True, 1.0: False}.items():
        config.precompute.encoder_frames_gb = gigabytes
        data = make_data(config.data, tokenizer, model_config.adapter, tmp_path)
        data.setup("fit")
        module = make_module(config, build(model_config, tokenizer))
        module._trainer = SimpleNamespace(datamodule=data, max_steps=6)
        module.on_fit_start()
        loaders = [data.train_dataloader(), *data.val_dataloader()]
        assert [next(iter(loader)).waveforms.shape[1] > 0 for loader in loaders] == [width, width]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_rank_loads_its_share(make, world_size):
    shares, validated = [], []
    for rank in range(world_size):
        made = make(val_batch_size=1)
        made.setup("fit")
        made.trainer = on_rank(rank, world_size)
        shares.append(list(made.train_dataloader()))
        validated += [clip for batch in made.val_dataloader()[0] for clip in batch.clips.tolist()]
        assert {rows for rows, _ in made.shapes()} == {4 // world_size}
    assert sorted(clip for share in shares for batch in share for clip in batch.clips) == [
        -1,
        -1,
        *range(CLIPS),
    ]
    assert sorted(validated) == [0, 1, 2, 3]
    for step in zip(*shares, strict=True):
        assert len({batch.waveforms.shape for batch in step}) == 1


def test_a_batch_that_the_devices_cannot_share_is_the_users_to_mend(make):
    made = make(batch_size=5)
    made.setup("fit")
    made.trainer = on_rank(0, 2)
    with pytest.raises(UserError, match=r"data\.batch_size=5"):
        made.train_dataloader()


def test_a_corpus_of_one_clip_trains(make):
    heard = fit(make(corpus=Memory(["alone"])), max_steps=3).heard
    assert [clips for _, clips, _ in heard] == [[0, -1, -1, -1]] * 3


def test_the_torch_generator_is_not_moved_by_loaders(make):
    made = make(num_workers=1)
    made.setup("fit")
    before = torch.get_rng_state()
    next(iter(made.train_dataloader()))
    next(iter(made.val_dataloader()[0]))
    assert torch.get_rng_state().equal(before)


# -- going on after a break -----------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_with_the_very_batches_of_an_undisturbed_one(make, tmp_path, workers):
    every_step = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    undisturbed = fit(make(num_workers=workers), every_step).heard
    assert len(undisturbed) == 20

    for step in (3, 8, 11):  # in the first epoch, at its end, in the second
        checkpoint = tmp_path / f"step={step}.ckpt"
        torch.load(checkpoint, weights_only=True)
        assert fit(make(num_workers=workers), resume=checkpoint).heard == undisturbed[step:]


@pytest.mark.integration
@pytest.mark.parametrize("limit", [{"max_steps": 20}, {"max_steps": -1, "max_epochs": 3}])
def test_a_checkpoint_written_after_an_epoch_goes_on_with_the_next(make, tmp_path, limit):
    every_epoch = ModelCheckpoint(tmp_path, "{step}", save_on_train_epoch_end=True, save_top_k=-1)
    undisturbed = fit(make(), every_epoch, **limit).heard
    resumed = fit(make(), resume=tmp_path / "step=16.ckpt", **limit).heard
    # Lightning's own number of the epoch may be one off after such a checkpoint.
    assert [batch[1:] for batch in resumed] == [batch[1:] for batch in undisturbed[16:]]


@pytest.mark.integration
def test_a_run_goes_on_with_another_number_of_workers(make, tmp_path):
    every_step = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    undisturbed = fit(make(num_workers=2), every_step, max_steps=12).heard
    assert fit(make(), resume=tmp_path / "step=5.ckpt", max_steps=12).heard == undisturbed[5:]


# -- faults met while training --------------------------------------------------------------------------------------


def test_damaged_clips_do_not_end_a_run_and_are_counted_once(make, tmp_path):
    made = make(corpus=Memory(damaged=frozenset({4, 9})), max_skipped_fraction=0.1, decoded_cache_gb=0.0)
    heard = fit(made, max_epochs=2, max_steps=-1).heard

    assert sorted(skip.clip_id for skip in made.skipped["train"]) == ["train4", "train9"]
    assert sorted(chain.from_iterable(clips for epoch, clips, _ in heard if epoch == 1)) == sorted(
        [-1] * 4 + [clip for clip in range(CLIPS) if clip not in (4, 9)]
    )
    assert (tmp_path / "skipped.tsv").read_text().count("damaged audio") == 2


def test_faults_above_the_limit_end_the_run(make):
    made = make(max_skipped_fraction=0.05)  # of 38 clips
    made.setup("fit")
    made.record_faults([Skip("train1", "damaged audio", "")] * 5)
    made.record_faults([Skip("train1", "damaged audio", "")])
    with pytest.raises(UserError, match=r"2 of 38 clips \(5\.3%\)"):
        made.record_faults([Skip("dev1", "damaged audio", "")], split="dev")


@pytest.mark.integration
def test_a_resumed_run_still_counts_the_faults_met_before(make, tmp_path):
    corpus = Memory(damaged=frozenset({4, 9}))
    arguments = {"corpus": corpus, "max_skipped_fraction": 0.1, "decoded_cache_gb": 0.0}
    fit(make(**arguments), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=8), max_steps=8)

    resumed = make(**arguments)
    fit(resumed, resume=tmp_path / "step=8.ckpt", max_steps=9)

    assert len(resumed.skipped["train"]) == 2
