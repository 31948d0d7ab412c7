"""Mixtures: what is drawn of each part, against a loop; what the parts' clips are in the union; files per part."""

import pickle
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
from calls import calls_of_diva
from lightning.pytorch.callbacks import ModelCheckpoint

from diva.audio.frames import SAMPLE_RATE, padded_samples
from diva.data.bucketing import BucketBatchSampler, ResumableLoader, bucket_edges
from diva.data.decoded import DecodedAudio
from diva.data.manifest import Manifest, Skip
from diva.data.mixture import Mixture, Part, Shares, decoded_files, union
from diva.errors import AudioFault, UserError
from diva.training.transcripts import Transcripts
from tests.data.test_bucketing import Plans, log_normal, take
from tests.data.test_datamodule import ByteTokenizer, fit, make, on_rank  # noqa: F401

BATCH_SIZE = 8
SIZES = {"big": 130, "mid": 40, "small": 7}
WEIGHTS = {"big": 2.0, "mid": 1.0, "small": 1.0}


def sampler(
    sizes=SIZES, weights=WEIGHTS, seed: int = 0, rank: int = 0, world_size: int = 1, epoch: int = 0
) -> BucketBatchSampler:
    durations = np.sort(log_normal(sum(sizes.values())))  # each part has other lengths
    shares = Shares.by_weight(sizes, weights)
    edges = bucket_edges(durations, 4)
    made = BucketBatchSampler(durations, edges, BATCH_SIZE, seed, rank, world_size, shares)
    made.set_epoch(epoch)
    return made


def part_of(clip: int, sizes=SIZES) -> str:
    return next(name for name, end in zip(sizes, np.cumsum(list(sizes.values())), strict=True) if clip < end)


def clips_of(plans) -> list[int]:
    return [clip for plan in plans for clip in plan.clips if clip != -1]


# -- what is drawn --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("weights", [WEIGHTS, {"big": 0.1, "mid": 7, "small": 1}], ids=["near", "far"])
def test_an_epoch_has_what_a_loop_draws_clip_by_clip(weights, epoch):
    total, drawn, first = sum(SIZES.values()), [], 0
    exact = {name: total * weight / sum(weights.values()) for name, weight in weights.items()}
    counts = {name: int(value) for name, value in exact.items()}
    while sum(counts.values()) < total:
        counts[max(exact, key=lambda name: exact[name] - counts[name])] += 1
    for name, size in SIZES.items():
        order, number = [], 0
        while len(order) < (epoch + 1) * counts[name]:
            order += np.random.default_rng([3, number, *name.encode()]).permutation(size).tolist()
            number += 1
        drawn += [first + clip for clip in order[epoch * counts[name] : (epoch + 1) * counts[name]]]
        first += size
    found = Shares.by_weight(SIZES, weights).draw(3, epoch)
    assert found.tolist() == sorted(drawn)
    assert sorted(clips_of(sampler(weights=weights, seed=3, epoch=epoch))) == sorted(drawn)


@pytest.mark.parametrize(
    "weights",
    [[1, 1, 1], [5, 1, 3], [0.02, 0.9, 0.08], [1000, 900, 800]],
    ids=lambda w: ":".join(map(str, w)),
)
def test_drawn_shares_are_within_one_percent_of_the_weights(weights):
    sizes = {"a": 900, "b": 60, "c": 240}
    of = dict(zip(sizes, weights, strict=True))
    for epoch in range(3):
        drawn = Counter(part_of(clip, sizes) for clip in clips_of(sampler(sizes, of, 1, epoch=epoch)))
        for name, weight in of.items():
            assert drawn[name] / 1200 == pytest.approx(weight / sum(weights), abs=0.01)


def test_a_small_part_is_repeated_and_a_large_one_is_used_up_before_it_repeats():
    shares = Shares.by_weight({"big": 100, "small": 10}, {"big": 1, "small": 1})
    assert shares.drawn == (55, 55)
    first, second = (shares.draw(0, epoch) for epoch in (0, 1))
    of_small = Counter(first[first >= 100].tolist())
    assert sorted(of_small.values()) == [5] * 5 + [6] * 5
    assert len(set(first[first < 100])) == 55
    assert len({clip for epoch in (first, second) for clip in epoch if clip < 100}) == 100


def test_order_is_a_function_of_seed_and_epoch_and_not_of_the_order_of_the_parts():
    given = {name: Part(lambda: None, weight=weight) for name, weight in WEIGHTS.items()}
    assert list(Mixture(dict(reversed(given.items()))).parts) == list(Mixture(given).parts)
    assert list(sampler(seed=1, epoch=2)) == list(sampler(seed=1, epoch=2))
    assert list(sampler(seed=1, epoch=2)) != list(sampler(seed=2, epoch=2))
    # What is drawn of a part does not depend on the parts beside it.
    both = Shares(("big", "mid"), (130, 40), (50, 120)).draw(4, 3)
    assert both[both < 130].tolist() == Shares(("big",), (130,), (50,)).draw(4, 3).tolist()


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_a_mixture_of_one_part_has_the_batches_of_the_part_alone(epoch):
    mixed = sampler({"only": 33}, {"only": 0.3}, epoch=epoch)
    alone = BucketBatchSampler(mixed.durations, mixed.edges.tolist(), BATCH_SIZE, seed=0)
    alone.set_epoch(epoch)
    assert list(mixed) == list(alone)
    assert batches_of(mixed) == order_by_hand(mixed.durations, alone.edges, np.arange(33), epoch)
    assert mixed.padding_fraction(epoch) == alone.padding_fraction(epoch)


def test_batches_of_a_mixture_are_those_of_a_loop_over_what_is_drawn():
    made = sampler(epoch=2)
    drawn = made.shares.draw(0, 2)
    assert batches_of(made) == order_by_hand(made.durations, made.edges, drawn, 2)
    padded = sum(edge * BATCH_SIZE for edge in made.edges[made.plan(2)[1]])
    assert made.padding_fraction(2) == pytest.approx(1 - made.durations[drawn].sum() / padded)


def batches_of(made: BucketBatchSampler) -> list[tuple[list[int], int]]:
    return [(plan.clips, plan.padded_samples) for plan in made]


def order_by_hand(durations, edges, drawn, epoch) -> list[tuple[list[int], int]]:
    """The batches of an epoch: fill them bucket by bucket, what is left moves up, shuffle the batches."""
    rng = np.random.default_rng([0, epoch])
    shuffled, batches, waiting = rng.permutation(drawn).tolist(), [], []
    fits = [min(edge for edge in edges if durations[clip] <= edge + 1e-4) for clip in range(len(durations))]
    for edge in edges:
        waiting += [clip for clip in shuffled if fits[clip] == edge]
        while len(waiting) >= BATCH_SIZE:
            batches.append((waiting[:BATCH_SIZE], padded_samples(edge)))
            waiting = waiting[BATCH_SIZE:]
    if waiting:
        batches.append((waiting + [-1] * (BATCH_SIZE - len(waiting)), padded_samples(edges[-1])))
    return [batches[number] for number in rng.permutation(len(batches))]


def test_a_part_of_which_an_epoch_has_no_clip_is_refused():
    with pytest.raises(
        UserError, match=r"data\.parts\.small\.weight=0\.001 is less than one clip of the 17 of"
    ):
        Shares.by_weight({"big": 10, "small": 7}, {"big": 1, "small": 0.001})


def test_a_million_clips_are_drawn_without_python_work_for_each():
    durations = log_normal(50_000)
    shares = Shares.by_weight({"a": 40_000, "b": 10_000}, {"a": 1, "b": 3})
    edges = bucket_edges(durations, 8)
    made = BucketBatchSampler(durations, edges, 512, 0, shares=shares)
    assert calls_of_diva(lambda: list(made)) < 5_000


# -- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [3, 23, 30])  # an epoch has 23 batches
@pytest.mark.parametrize(("ranks", "ranks_after"), [(1, 1), (1, 2), (2, 1), (2, 2), (2, 4)])
def test_a_mixture_goes_on_behind_the_last_batch_on_any_number_of_ranks(ranks, ranks_after, before):
    def batches(world_size: int, count: int, state=None) -> tuple[list[list[int]], dict]:
        loaders = [
            ResumableLoader(Plans(), sampler(rank=r, world_size=world_size)) for r in range(world_size)
        ]
        for loader in loaders if state else ():
            loader.load_state_dict(state)
        of_ranks = [take(loader, count) for loader in loaders]
        joined = [
            list(chain.from_iterable(plan.clips for plan in step)) for step in zip(*of_ranks, strict=True)
        ]
        return joined, loaders[0].state_dict()

    undisturbed, _ = batches(1, 50)
    first, state = batches(ranks, before)
    second, _ = batches(ranks_after, 50 - before, state)
    assert first + second == undisturbed


def test_a_checkpoint_of_another_mixture_is_refused_by_name():
    state = ResumableLoader(Plans(), sampler()).state_dict()
    for weights, key in (({**WEIGHTS, "small": 3.0}, "drawn"), ({**WEIGHTS, "mid": 1.1}, "drawn")):
        with pytest.raises(
            UserError, match=rf"cannot resume: the checkpoint has parts\.\w+\.{key}=\d+, this run has"
        ):
            ResumableLoader(Plans(), sampler(weights=weights)).load_state_dict(state)
    renamed = sampler({"big": 130, "mid": 40, "tiny": 7}, {"big": 2.0, "mid": 1.0, "tiny": 1.0})
    with pytest.raises(UserError, match=r"parts\.tiny\.clips=None, this run has parts\.tiny\.clips=7"):
        ResumableLoader(Plans(), renamed).load_state_dict(state)


# -- the union ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """Audio whose samples are the row and the part's own level."""

    level: float
    damaged: int = -1

    def waveform(self, row: int) -> np.ndarray:
        if row == self.damaged:
            raise AudioFault("damaged audio", f"clip {row}")
        return np.full(SAMPLE_RATE, self.level + row / 1000, dtype=np.float32)


@dataclass
class Parts:
    """A corpus of clips of a second, of which each split has the same ids; `columns` are further ones of each clip."""

    level: float
    clips: int = 20
    text: str = "hello"
    damaged: int = -1
    skipped: tuple[Skip, ...] = ()
    splits: tuple[str, ...] = ("train", "dev")
    columns: tuple[str, ...] = ()

    def manifest(self, split: str) -> Manifest:
        if split not in self.splits:
            raise UserError(f"no split {split!r}, there are: {', '.join(self.splits)}")
        clips = self.clips if split == "train" else 4
        seconds = np.ones(clips, dtype=np.float32)
        table = {
            "clip_id": pa.array([f"{i}.mp3" for i in range(clips)], pa.string()),
            "text": pa.array([f"{self.text}{i}" for i in range(clips)], pa.string()),
            "duration": seconds,
            "speaker": pa.array(["x"] * clips).dictionary_encode() if self.columns else ["x"] * clips,
            **{name: ["v"] * clips for name in self.columns},
        }
        audio = Level(self.level, self.damaged if split == "train" else -1)
        return Manifest(pa.table(table), audio, np.arange(clips), list(self.skipped), f"{self.level:g}.tsv")


def mixture(**parts: Part) -> Mixture:
    return Mixture(parts)


def part(corpus: Parts, **further) -> Part:
    return Part(lambda: corpus, **further)


@pytest.fixture
def mixed(make):  # noqa: F811
    """Data modules of mixtures of such parts, validated on `dev` of each."""

    def datamodule(parts: dict[str, Part], **arguments):
        names = {f"val_{name}": f"{name}/dev" for name in parts}
        validated = {"val_splits": names, "pooled_val": {"val": list(names)}}
        return make(corpus=Mixture(parts), **validated | arguments)

    return datamodule


def test_clips_of_two_parts_with_the_same_ids_stay_apart():
    one, two = Parts(0.1, clips=5, text="one", columns=("age",)), Parts(0.2, clips=3, text="two", columns=())
    manifests = {"a": one.manifest("train").select([4, 0, 2]), "b": two.manifest("train")}
    both = union(manifests)
    assert both.column("clip_id") == ["a/4.mp3", "a/0.mp3", "a/2.mp3", "b/0.mp3", "b/1.mp3", "b/2.mp3"]
    assert both.column("text") == ["one4", "one0", "one2", "two0", "two1", "two2"]
    assert both.column("speaker") == ["x"] * 6
    levels = [0.104, 0.1, 0.102, 0.2, 0.201, 0.202]
    heard = pickle.loads(pickle.dumps(both)).select([5, 0, 3])
    assert [heard.waveform(i)[0] for i in range(3)] == pytest.approx([levels[i] for i in (5, 0, 3)])
    # What the teacher reads is looked up by clip id.
    transcripts = Transcripts.of(both, ByteTokenizer())
    assert [bytes(ids).decode() for ids in transcripts.of_clips(both.column("clip_id"))] == both.column(
        "text"
    )


def test_durations_of_a_union_are_not_copied():
    both = union({"a": Parts(0.1).manifest("train"), "b": Parts(0.2).manifest("train")})
    assert np.shares_memory(both.durations, both.durations)


def test_files_of_decoded_audio_are_known_only_if_all_parts_are_decoded(tmp_path):
    decoded = [DecodedAudio(tmp_path / name, np.array([0, 1])) for name in "ab"]
    manifests = [replace(Parts(0.1, clips=1).manifest("train"), audio=audio) for audio in decoded]
    both = union(dict(zip("ab", manifests, strict=True)))
    assert decoded_files(both.audio) == [tmp_path / "a", tmp_path / "b"]
    assert decoded_files(decoded[0]) == [tmp_path / "a"]
    assert decoded_files(union({"a": manifests[0], "c": Parts(0.1).manifest("train")}).audio) == []
    assert decoded_files(Level(0.1)) == []


def test_a_union_is_made_without_python_work_for_each_clip():
    clips = 20_000
    manifests = {name: Parts(0.1, clips=clips).manifest("train") for name in "ab"}
    assert calls_of_diva(lambda: union(manifests)) < 200


# -- the data module ------------------------------------------------------------------------------------------------


def test_each_part_has_its_weight_its_limit_and_its_line(mixed, tmp_path):
    skipped = (Skip("lost.mp3", "missing file", "gone"),)
    parts = {
        "a": part(Parts(0.1, clips=40), weight=3, limit=30),
        "b": part(Parts(0.2, clips=10, skipped=skipped)),
    }
    made = mixed(parts, max_skipped_fraction=0.2)
    made.setup("fit")
    assert len(made.train) == 40
    assert made.clips_in_corpus == {"train": 40, "val": 8, "val_a": 4, "val_b": 4}
    assert (
        "part a: 30 clips, 0.01 h, 75.0% of the drawn clips, each 1 times an epoch; skipped: none"
        in made.describe()
    )
    assert (
        "part b: 10 clips, 0.00 h, 25.0% of the drawn clips, each 1 times an epoch; skipped: 1 missing file"
        in (made.describe())
    )
    assert made.parts["a"] == {
        "weight": 3,
        "share": 0.75,
        "drawn_per_epoch": 30,
        "splits": {
            "train": {"clips": 30, "hours": round(30 / 3600, 4), "skipped": {}},
            "dev": {"clips": 4, "hours": round(4 / 3600, 4), "skipped": {}},
        },
    }
    assert made.parts["b"]["splits"]["dev"]["skipped"] == {"missing file": 1}
    lines = (tmp_path / "skipped.tsv").read_text().splitlines()[1:]
    assert lines == ["b/train\tlost.mp3\tmissing file\tgone", "b/dev\tlost.mp3\tmissing file\tgone"]
    heard = fit(made, max_epochs=1, max_steps=-1).heard
    drawn = Counter(clip >= 30 for _, clips, _ in heard for clip in clips)
    assert drawn == {False: 30, True: 10}


def test_a_fault_found_in_training_is_counted_in_its_part(mixed, tmp_path):
    parts = {"a": part(Parts(0.1)), "b": part(Parts(0.2, damaged=3))}
    made = mixed(parts, max_skipped_fraction=0.1)
    fit(made, max_epochs=2, max_steps=-1)
    assert {split: [s.clip_id for s in skips] for split, skips in made.skipped.items() if skips} == {
        "b/train": ["3.mp3"]
    }
    assert made.parts["b"]["splits"]["train"]["skipped"] == {"damaged audio": 1}
    assert "b/train\t3.mp3\tdamaged audio\tclip 3" in (tmp_path / "skipped.tsv").read_text()


def test_a_mixture_of_one_part_gives_the_waveforms_of_the_part_alone(mixed, make):  # noqa: F811
    corpus = Parts(0.1, clips=13)
    alone = make(corpus=corpus, val_splits={"val": "dev"})
    one = mixed({"a": part(corpus, weight=0.7)})
    for made in (alone, one):
        made.setup("fit")
    pairs = list(zip(alone.train_dataloader(), one.train_dataloader(), strict=True))
    assert len(pairs) == 4
    for left, right in pairs:
        assert left.waveforms.equal(right.waveforms)
        assert left.token_ids.equal(right.token_ids)
        assert [f"a/{clip_id}" if clip_id else "" for clip_id in left.clip_ids] == right.clip_ids


@pytest.mark.integration
def test_a_run_on_a_mixture_goes_on_with_the_batches_of_an_undisturbed_one(mixed, tmp_path):
    def run():
        return mixed({"a": part(Parts(0.1, clips=17)), "b": part(Parts(0.2, clips=5), weight=2)})

    every_step = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    undisturbed = fit(run(), every_step, max_steps=14).heard  # an epoch has 6 batches
    for step in (2, 6, 9):
        assert fit(run(), resume=tmp_path / f"step={step}.ckpt", max_steps=14).heard == undisturbed[step:]


def test_each_rank_loads_its_share_of_a_mixture(mixed):
    shares = []
    for rank in range(2):
        made = mixed({"a": part(Parts(0.1, clips=6)), "b": part(Parts(0.2, clips=2))})
        made.setup("fit")
        made.trainer = on_rank(rank, 2)
        shares.append([clip for batch in made.train_dataloader() for clip in batch.clips.tolist()])
    assert sorted(chain.from_iterable(shares)) == sorted(made._shares.draw(made.seed, 0))


@pytest.mark.parametrize(
    ("other", "arguments", "said"),
    [
        (
            Parts(0.2, clips=0),
            {},
            r"split 'b/train' of 0\.2\.tsv \(data\.parts\.b\) has no clip that can be used",
        ),
        (Parts(0.2, splits=("train",)), {}, r"^data\.parts\.b: no split 'dev', there are: train"),
        (
            Parts(0.2),
            {"teacher_text": "({age}) {text}"},
            r"0\.2\.tsv \(data\.parts\.b\) has no column 'age', it has: clip_id, text",
        ),
        (Parts(0.2), {"max_train_clips": 3}, r"limit each part with data\.parts\.NAME\.limit"),
        (
            Parts(0.2),
            {"val_splits": {"val_a": "a/dev"}},
            r"pooled_val names 'val_b', which data\.val_splits lacks",
        ),
    ],
    ids=["empty", "no split", "no column", "limit", "no validation"],
)
def test_what_a_part_lacks_is_refused_by_its_name(mixed, other, arguments, said):
    with pytest.raises(UserError, match=said):
        mixed({"a": part(Parts(0.1, columns=("age",))), "b": part(other)}, **arguments).setup("fit")


def test_parts_with_other_columns_have_the_teachers_text_together(mixed):
    parts = {"a": part(Parts(0.1, columns=("age", "accent"))), "b": part(Parts(0.2, columns=("age",)))}
    made = mixed(parts, teacher_text="({age}) {text}")
    made.setup("fit")
    assert made.train.teacher_texts.to_pylist()[::20] == ["(v) hello0", "(v) hello0"]
    assert made.val["val_b"].teacher_texts[1].as_py() == "(v) hello1"
