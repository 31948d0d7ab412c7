"""The published training step restated against ours: the same losses and gradients, and what the benchmark prints."""

import json
import re

import numpy as np
import pytest
import torch
from tiny import write_release

from benchmarks import growth, savings, training
from benchmarks.bench import both_losses, restate, transcripts
from benchmarks.clips import LONGEST_SECONDS, SHORTEST_SECONDS, wanted_seconds, write_corpus
from benchmarks.measure import Parts, in_turn
from benchmarks.step import OurTraining, Variant
from diva.audio.decoding import decode
from diva.audio.frames import pad_clips
from diva.data.batch import SpeechBatch
from diva.data.corpora.common_voice import CommonVoice
from diva.errors import UserError
from diva.models.build import build
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig
from diva.models.parts import load_tokenizer
from diva.training.distributed.devices import peak_tflops
from diva.training.frozen import FrozenParts

Q = 12
NOTHING_KEPT = {"frames": "full", "teacher": "trimmed"}


@pytest.fixture
def model(tiny_whisper, tiny_llm):
    torch.manual_seed(0)
    config = DivaConfig(
        EncoderConfig(str(tiny_whisper), "full"),
        AdapterConfig(num_query_tokens=Q),
        LLMConfig(str(tiny_llm), attention="eager"),
        frozen_dtype="float32",
    )
    return build(config, load_tokenizer(str(tiny_llm))).train()


@pytest.fixture
def batch() -> SpeechBatch:
    generator = torch.Generator().manual_seed(1)
    lengths = (8_000, 30_000, 17_500)
    waveforms, samples = pad_clips([torch.randn(n, generator=generator).numpy() * 0.1 for n in lengths])
    tokens = torch.tensor([4, Q - 2, 1])
    ids = torch.randint(3, 300, (3, Q), generator=generator)
    ids = ids.where(torch.arange(Q) < tokens.unsqueeze(1), 0)
    return SpeechBatch(waveforms, samples, ids, tokens, torch.arange(3), list("abc"), waveforms.shape[1])


@pytest.mark.parity
def test_both_sides_have_the_same_losses(model, batch):
    losses = both_losses(model, batch)
    for ours, published in zip(losses["ours"], losses["published"], strict=True):
        assert float(ours) > 0.1
        torch.testing.assert_close(ours, published, atol=1e-3, rtol=0)


@pytest.mark.parity
def test_both_sides_have_the_same_gradients(model, batch):
    waveforms = [row[:n].numpy() for row, n in zip(batch.waveforms, batch.samples, strict=True)]
    sides = (
        lambda: OurTraining(model, None).losses(batch, Variant(**NOTHING_KEPT), Parts()),
        lambda: restate(model, None).losses(waveforms, transcripts(batch), Parts()),
    )
    gradients = []
    for losses in sides:
        model.adapter.zero_grad()
        sum(losses()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.adapter.named_parameters()})
    for name, ours in gradients[0].items():
        torch.testing.assert_close(ours, gradients[1][name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": "padded"},
        {"reuses_prefix": False},
        {"last_position_only": True},
        {"llm_attention": "eager"},
        {"llm_attention": "sdpa"},
        {"adapter_attention": "sdpa"},
        {"frozen_in_float32": True},
    ],
)
def test_a_saving_taken_back_leaves_the_losses(model, batch, change):
    ours = OurTraining(model, None)
    with torch.no_grad():
        expected = ours.losses(batch, Variant(**NOTHING_KEPT), Parts())
        actual = ours.losses(batch, Variant(**(NOTHING_KEPT | change)), Parts())
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_variants_compute_what_they_say(model, batch):
    """Positions that pass through the LLM's first and last layers, and frames that leave the encoder."""
    layers, seen = model.llm.base_model.layers, {}
    for name, module in (
        ("first", layers[0].mlp),
        ("last", layers[-1].mlp),
        ("encoder", model.encoder.body.layers[0]),
    ):
        module.register_forward_hook(
            lambda m, a, out, name=name: seen.setdefault(name, []).append(out.shape[1])
        )
    prefix, suffix, longest = len(model.prefix_ids), len(model.suffix_ids), int(batch.tokens.max())
    model.student_states(torch.zeros(1, Q, 32))  # fills the cache of the prefix

    def run(**change):
        seen.clear()
        with torch.no_grad():
            ours = OurTraining(model, None, tokens_per_second=2.0)
            ours.losses(batch, Variant(**(NOTHING_KEPT | change)), Parts())
        return seen

    assert run() == {
        "encoder": [1500],
        "first": [Q + suffix, longest + suffix],
        "last": [Q + suffix, longest + suffix],
    }
    assert run(teacher="padded")["first"] == [Q + suffix, 448 + suffix]
    assert run(reuses_prefix=False)["first"] == [prefix + Q + suffix, longest + suffix]
    assert run(last_position_only=True)["last"] == [1, longest + suffix]
    # The longest clip has 1.875 s and a second of silence.
    assert run(reads_in_proportion=True)["first"] == [6 + suffix, longest + suffix]
    assert run(frames="bucket")["encoder"] == [batch.waveforms.shape[1] // 320]
    seen.clear()
    both_losses(model, batch)
    assert seen["first"][2:] == [prefix + Q + suffix, prefix + 448 + suffix]


def test_recomputed_activations_have_the_same_gradients(model, batch):
    gradients, calls = [], []
    model.adapter.layers[0].fc1.register_forward_hook(lambda *given: calls.append(1))
    for change in ({}, {"recomputes": True}):
        model.adapter.zero_grad()
        calls.clear()
        losses = OurTraining(model, None).losses(batch, Variant(**(NOTHING_KEPT | change)), Parts())
        assert not any("forward" in vars(module) for module in model.modules()), (
            "as it was, before going back"
        )
        sum(losses).backward()
        gradients.append([p.grad.clone() for p in model.adapter.parameters()])
        assert len(calls) == (2 if change else 1)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)


def test_a_step_that_fails_leaves_the_model_as_it_was(model, batch, monkeypatch):
    monkeypatch.setattr(FrozenParts, "teacher_states", lambda *given: 1 / 0)
    variant = Variant(
        frames="bucket", teacher="trimmed", llm_attention="sdpa", recomputes=True, reads_in_proportion=True
    )
    before = model.llm.config._attn_implementation, model.encoder.context, model.config.adapter
    with pytest.raises(ZeroDivisionError):
        OurTraining(model, None, tokens_per_second=2.0).losses(batch, variant, Parts())
    assert before == (model.llm.config._attn_implementation, model.encoder.context, model.config.adapter)
    assert not any("forward" in vars(module) for module in model.modules())


def test_lengths_are_those_of_common_voice():
    seconds = wanted_seconds(4000)
    assert np.median(seconds) == pytest.approx(5.0, abs=0.2)
    assert seconds.min() >= SHORTEST_SECONDS
    assert seconds.max() <= LONGEST_SECONDS
    np.testing.assert_array_equal(seconds[:50], wanted_seconds(4000)[:50])


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_release(root / "cv-corpus-spoken-mini", {"train": 22})
    (root / "cv-corpus-spoken-mini" / "complete").touch()
    return root


def test_a_joined_clip_has_its_sentences_and_about_its_length(spoken, tmp_path):
    folder = write_corpus(spoken, tmp_path / "joined", {"train": 6, "dev": 1})
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row, wanted in zip(rows, wanted_seconds(7), strict=False):
        heard = len(decode(folder / row["audio"])) / 16_000
        assert heard == pytest.approx(row["duration"], abs=0.1)
        assert heard == pytest.approx(wanted, abs=1.5)  # half of the longest sentence
    few = write_corpus(spoken, tmp_path / "few", {"train": 6}, most_sentences=1)
    sentences = set(CommonVoice(spoken / "cv-corpus-spoken-mini").manifest("train").clips["text"].to_pylist())
    assert max(len(row["text"]) for row in rows) > max(map(len, sentences)), "some hold several"
    assert {json.loads(line)["text"] for line in (few / "train.jsonl").read_text().splitlines()} <= sentences
    again = write_corpus(spoken, tmp_path / "again", {"train": 6, "dev": 1})
    assert (again / "train.jsonl").read_text() == (folder / "train.jsonl").read_text()


@pytest.fixture
def bench_command(spoken, tiny_overrides, tmp_path, monkeypatch):
    """Runs a benchmark of tiny models; its results are in tmp_path."""
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    overrides = [*tiny_overrides, "data.max_skipped_fraction=1", "model.adapter.projection_init=embeddings"]

    def run(module, *more: str) -> dict:
        name = module.__name__.rpartition(".")[2]
        command = [name, "--quick", "--data", str(spoken), "--into", str(tmp_path), *overrides, *more]
        monkeypatch.setattr("sys.argv", command)
        module.main()
        return json.loads((tmp_path / f"{name}.json").read_text())

    return run


def test_the_benchmark_of_tiny_models(bench_command, tmp_path, capsys):
    figures = bench_command(training)
    last = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(
        r"training speed-up (\d+\.\d\d) \(clips/s ours (\d+\.\d\d), published pattern (\d+\.\d\d)\)", last
    )
    assert found
    speed_up, ours, published = map(float, found.groups())
    assert speed_up == pytest.approx(ours / published, rel=0.05)
    parts = figures["parts"]["published"]
    assert {"decode", "features", "encoder", "teacher", "student, backward", "optimizer"} <= parts.keys()
    assert figures["passes"] == pytest.approx(1800 * 16 / 22, abs=0.01)  # of its clips
    table = (tmp_path / "training.md").read_text()
    assert "| ours | 1 |" in table
    # 1,100 of the mini recipe's 1,800 steps align alone.
    assert figures["aligning"] == pytest.approx(11 / 18, abs=1e-4)
    speed, step = figures["clips_per_second"], figures["step_seconds"]
    counted = sum(figures["once_seconds_per_clip"].values()) / figures["passes"]
    mean = (11 * step["aligning"]["median"] + 7 * step["ours"]["median"]) / 18 / figures["batch"]
    assert speed["shipped"] == pytest.approx(1 / (mean + counted), rel=0.01)
    assert ours == pytest.approx(speed["shipped"], abs=0.01)
    assert "student" not in figures["parts"]["aligning"]


def test_what_a_side_computes_once_is_counted(bench_command):
    figures = bench_command(training)
    once, speed = figures["once_seconds_per_clip"], figures["clips_per_second"]
    for side, (_, names) in training.SIDES.items():
        step = figures["step_seconds"][side]["median"] / figures["batch"]
        counted = sum(once[name] for name in names) / figures["passes"]
        assert speed[side] == pytest.approx(1 / (step + counted), rel=0.01)


def test_the_split_is_between_what_keeps_the_loss_and_what_does_not():
    said = training._split({"published": 0.5, "full_windows": 2.0, "ours": 3.0, "shipped": 6.0})
    assert "12.00 times as fast" in said
    assert "4.00 times by savings that keep the loss, 1.50 times that by hearing" in said
    assert "2.00 times that by aligning first" in said


@pytest.mark.parametrize(
    ("override", "encodes"),
    [("model.encoder.context=full", "30 s"), ("precompute.encoder_frames_gb=0", "bucket")],
)
def test_a_config_without_a_table_of_frames(bench_command, override, encodes, monkeypatch):
    seen = set()

    def step(self, batch, variant, parts, before=training.Bench.our_step):
        seen.add((variant.frames, variant.teacher))
        before(self, batch, variant, parts)

    monkeypatch.setattr(training.Bench, "our_step", step)
    bench_command(training, override)
    expected = {("full", "kept"), ("full", "trimmed")}
    if encodes == "bucket":
        expected = {("full", "kept"), ("bucket", "kept"), ("bucket", "trimmed")}
    assert seen == expected


def test_losses_are_compared_where_all_virtual_tokens_are_read(bench_command):
    bench_command(training, "model.adapter.tokens_per_second=30")  # else it says that the two sides disagree


def test_the_table_of_savings_of_tiny_models(bench_command, tmp_path):
    rows = {row["saving"]: row for row in bench_command(savings)["rows"]}
    assert rows.keys() == {name for group in savings.GROUPS.values() for name in group} - {
        "torch.compile of MLPs and norms"
    }
    for row in rows.values():
        assert row["speed_up"] == pytest.approx(row["off"]["median"] / row["on"]["median"], rel=0.01)
    assert rows["encoder on the bucket's length, not 30 s"]["group"] == "changes the frames"
    assert "| AdamW fused | shipped |" in (tmp_path / "savings.md").read_text()


def test_savings_that_a_config_cannot_have_are_skipped(bench_command):
    overrides = ["precompute.teacher_states=false", "model.encoder.context=full", "model.adapter.kind=mlp"]
    found = {row["saving"] for row in bench_command(savings, *overrides)["rows"]}
    assert "transcripts trimmed for the teacher" in found
    absent = {"teacher states kept", "encoder frames kept", "virtual tokens in proportion to the clip"}
    assert not found & absent


def test_growth_benchmark_measures_a_run_and_reports_one_that_fails(
    spoken, tiny_overrides, tmp_path, monkeypatch
):
    """One run of its own, measured; and one that fails, with its reason."""
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    small = [*tiny_overrides[:2], "model.adapter.projection_init=embeddings"]
    command = [
        "benchmarks.growth",
        "--clips",
        "6",
        "--steps",
        "2",
        "--batch",
        "2",
        "--data",
        str(spoken),
        *small,
    ]
    monkeypatch.setattr("sys.argv", command)
    arguments = growth.parse_arguments()
    row = growth.measure(growth.Row(times=2, queries=48), arguments)
    assert (row["clips"], row["left_out"], row["queries"], row["processes"]) == (12, 0, 48, 1)
    assert row["step_seconds"]["n"] == 3, "six steps are a pass, of which the first three do not count"
    assert row["clips_per_second"] == pytest.approx(2 / row["step_seconds"]["median"], rel=0.01)
    assert "| 12 | 0 | 48 | 1 |" in growth.report([row], arguments)
    assert row["megabytes"] > 0
    with pytest.raises(UserError, match="num_query_tokens=65 is more than the 64"):
        growth.measure(growth.Row(queries=65), arguments)


def test_peaks_are_those_of_the_very_device():
    found = {
        name: peak_tflops(f"NVIDIA {name}") for name in ("H100 80GB HBM3", "H100 PCIe", "L40", "L40S", "L4")
    }
    assert list(found.values()) == [989, 756, 181, 362, 121]
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == 312
    for name in ("NVIDIA T4", "NVIDIA GH200 480GB"):
        with pytest.raises(UserError, match="--peak-tflops"):
            peak_tflops(name)


def test_a_corpus_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["benchmarks.training", "--quick", "--data", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        training.main()
    assert left.value.code == 2
    assert "make corpus" in capsys.readouterr().err


def test_losses_that_differ_are_no_comparison():
    training.check_losses({"ours": [1.0, 2.0], "published": [1.0005, 2.0]})
    with pytest.raises(RuntimeError, match="disagree"):
        training.check_losses({"ours": [1.0, 2.0], "published": [1.0, 2.002]})


def test_contenders_take_turns_and_the_first_round_does_not_count():
    calls = []
    seconds = in_turn({"a": lambda n: calls.append(("a", n)), "b": lambda n: calls.append(("b", n))}, 2)
    assert calls == [("a", -1), ("b", -1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [len(values) for values in seconds.values()] == [2, 2]
