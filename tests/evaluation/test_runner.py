"""The runner: stored answers are not asked again, and failures are reported."""

import json
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from diva.data.manifest import Manifest
from diva.errors import AudioFault, UserError
from diva.evaluation import runner as runner_module
from diva.evaluation.labels import NoLabel
from diva.evaluation.runner import SAMPLES, Runner, read_answers
from diva.evaluation.samples import Instruction, Sample


class Clips:
    """Ten clips of 1 to 10 samples, of which number 3 is damaged."""

    def waveform(self, row: int) -> np.ndarray:
        if row == 3:
            raise AudioFault("damaged audio", "clip 3")
        return np.full(row + 1, row, dtype=np.float32)


MANIFEST = Manifest(
    pa.table({"clip_id": [str(i) for i in range(10)], "duration": pa.array([np.nan] * 10, pa.float32())}),
    Clips(),
    np.arange(10),
)
ITEMS = [Sample(str(row), row, (f"right {row}",), f"said {row}") for row in range(10)]


class System:
    """Says how long a clip is; fails as `fails` says, and is killed before batch number `dies`."""

    hears = True
    batches = True
    identity: ClassVar[dict] = {}

    def __init__(self, fails=(), dies=None, error=RuntimeError):
        self.fails, self.dies, self.error = {*fails}, dies, error
        self.batches_seen: list[list[str]] = []

    def answer(self, samples, instruction, max_new_tokens, labels=None):
        if len(self.batches_seen) == self.dies:
            raise KeyboardInterrupt
        self.batches_seen.append([sample.id for sample in samples])
        if self.fails & {sample.id for sample in samples}:
            raise self.error("out of memory")
        return [f"{len(sample.waveform)} samples" for sample in samples]


def runner(system, folder, batch_size=4) -> Runner:
    return Runner(system, Instruction(), 64, None, folder, batch_size, "test")


def test_every_sample_has_an_answer_in_order_and_failures_say_why(tmp_path):
    answers = runner(System(fails=["5"]), tmp_path).run(MANIFEST, ITEMS)
    assert [a.id for a in answers] == [str(i) for i in range(10)]
    assert answers[3].error == "damaged audio: clip 3"
    assert answers[5].error == "RuntimeError: out of memory"
    assert [a.prediction for a in answers if not a.error] == [
        f"{i + 1} samples" for i in range(10) if i not in (3, 5)
    ]
    lines = [json.loads(line) for line in (tmp_path / SAMPLES).read_text().splitlines()]
    assert len(lines) == 10
    assert {line["id"]: line["references"] for line in lines} == {s.id: [*s.references] for s in ITEMS}


def test_batches_are_of_like_length(tmp_path):
    system = System()
    shuffled = [ITEMS[i] for i in (9, 0, 8, 1, 7, 2, 6, 4, 5)]
    runner(system, tmp_path, batch_size=3).run(MANIFEST, shuffled)
    assert system.batches_seen == [["0", "1", "2"], ["4", "5", "6"], ["7", "8", "9"]]


def test_a_killed_evaluation_continues_to_the_same_end(tmp_path):
    whole = runner(System(), tmp_path / "whole").run(MANIFEST, ITEMS)
    with pytest.raises(KeyboardInterrupt):
        runner(System(dies=1), tmp_path / "cut").run(MANIFEST, ITEMS)
    file = tmp_path / "cut" / SAMPLES
    done = {a.id for a in read_answers(file)}
    assert len(done) == 5  # the damaged clip and one batch
    with file.open("a") as torn:
        torn.write('{"id": "7", "predic')
    second = System()
    assert runner(second, tmp_path / "cut").run(MANIFEST, ITEMS) == whole
    assert not done & {name for batch in second.batches_seen for name in batch}
    assert len(file.read_text().splitlines()) == 10


def test_failures_are_asked_again_only_on_request(tmp_path):
    runner(System(fails=["5"]), tmp_path).run(MANIFEST, ITEMS)
    idle = System()
    assert runner(idle, tmp_path).run(MANIFEST, ITEMS)[5].error
    assert idle.batches_seen == []
    again = runner(System(), tmp_path).run(MANIFEST, ITEMS, retry_failed=True)
    assert again[5].prediction == "6 samples"
    assert again[3].error
    assert {a.id: a for a in read_answers(tmp_path / SAMPLES)}["5"].prediction == "6 samples"


def test_a_system_that_always_fails_stops_the_evaluation(tmp_path):
    many = [Sample(str(i), 0, ("x",), None) for i in range(50)]
    system = System(fails=[s.id for s in many])
    with pytest.raises(UserError, match=r"failed 20 times in a row.*out of memory"):
        runner(system, tmp_path).run(MANIFEST, many)


def test_clips_and_labels_at_fault_do_not_stop_it(tmp_path):
    """Thirty damaged clips, then thirty answers without a label: the system has not failed once."""
    damaged = [Sample(f"d{i}", 3, ("x",), None) for i in range(30)]
    unlabelled = [Sample(f"u{i}", 0, ("x",), None) for i in range(30)]
    system = System(fails=[s.id for s in unlabelled], error=NoLabel)
    answers = runner(system, tmp_path).run(MANIFEST, [*damaged, *unlabelled])
    assert [a.error for a in answers] == ["damaged audio: clip 3"] * 30 + ["out of memory"] * 30
    # Nor do they hide it: those of the system itself still count.
    broken = System(fails=[s.id for s in unlabelled])
    with pytest.raises(UserError, match="failed 20 times in a row"):
        runner(broken, tmp_path / "broken").run(MANIFEST, [*damaged, *unlabelled])


def test_a_system_that_answers_one_by_one_is_not_asked_twice(tmp_path):
    system = System(fails=["5"])
    system.batches = False
    runner(system, tmp_path).run(MANIFEST, ITEMS)
    assert sorted(name for batch in system.batches_seen for name in batch) == [
        s.id for s in ITEMS if s.row != 3
    ]


def test_seconds_are_those_of_all_sessions(tmp_path, monkeypatch):
    """A batch takes 8 s by this clock, and a sample its share of that, whichever session it is answered in."""
    clock = iter(range(0, 10_000, 8))
    monkeypatch.setattr(runner_module.time, "perf_counter", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt):
        runner(System(dies=1), tmp_path).run(MANIFEST, ITEMS)
    answers = runner(System(), tmp_path).run(MANIFEST, ITEMS)
    assert sum(a.seconds for a in answers) == 8 * 4  # the damaged clip and three batches
    assert {a.seconds for a in read_answers(tmp_path / SAMPLES)} == {8.0, 2.0}


def test_failures_between_answers_do_not_stop_it(tmp_path):
    many = [Sample(str(i), 0, ("x",), None) for i in range(60)]
    system = System(fails=[s.id for s in many[::2]])
    answers = runner(system, tmp_path, batch_size=1).run(MANIFEST, many)
    assert sum(answer.error is not None for answer in answers) == 30


def test_what_the_user_can_mend_is_no_failure_of_a_sample(tmp_path):
    with pytest.raises(UserError, match="out of memory"):
        runner(System(fails=["5"], error=UserError), tmp_path).run(MANIFEST, ITEMS)


def test_a_line_that_is_no_answer_is_named(tmp_path):
    (tmp_path / SAMPLES).write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match="line 1"):
        read_answers(tmp_path / SAMPLES)
