"""Distilling the teacher's answer: losses against loops over single clips and positions, and how answers are kept."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import losses, run
from tiny import make_model, noise
from torch import Tensor

from diva.audio.frames import pad_clips
from diva.data.batch import SpeechBatch
from diva.errors import UserError
from diva.models.modeling import DivaForConditionalGeneration
from diva.training import losses as losses_module
from diva.training.answer_table import AnswerTable, make_answers
from diva.training.answers import Answer, AnswerSettings, Continuation, answer, cut
from diva.training.frozen import FrozenParts, TeacherTable
from diva.training.losses import Objective, divergences
from diva.training.measures import ANSWER_MEASURES
from diva.training.on_policy import shared_sums, shared_tokens, student_answers, student_continuation
from diva.training.step import loss_sums, measure_sums, position_weights
from diva.training.transcripts import Transcripts

Q = 12
TOKENS = [5, 2, 0]  # of the transcripts; the last row is empty
DISTANCES = ["l2", "kl", "reverse_kl", "jsd"]


@pytest.fixture(params=[None, 4.0], ids=["all tokens read", "in proportion"])
def model(request, tiny_whisper: Path, tiny_llm: Path) -> DivaForConditionalGeneration:
    return make_model(tiny_whisper, tiny_llm, tokens_per_second=request.param, projection_init="embeddings")


@pytest.fixture
def plain(tiny_whisper: Path, tiny_llm: Path) -> DivaForConditionalGeneration:
    return make_model(tiny_whisper, tiny_llm, projection_init="embeddings")


@pytest.fixture
def batch() -> SpeechBatch:
    """Two clips and an empty row."""
    clips = [noise(0.7, 0), noise(1.4, 1)]
    waveforms, samples = pad_clips(clips)
    waveforms = torch.cat([waveforms, torch.zeros_like(waveforms[:1])])
    tokens = torch.tensor(TOKENS)
    torch.manual_seed(1)
    ids = torch.randint(3, 300, (3, 5)) * (torch.arange(5) < tokens.unsqueeze(1))
    return SpeechBatch(
        waveforms,
        torch.cat([samples, torch.zeros(1, dtype=torch.long)]),
        ids,
        tokens,
        torch.arange(3),
        ["a", "b", ""],
        waveforms.shape[1],
    )


def transcripts_of(batch: SpeechBatch) -> Transcripts:
    rows = [
        tuple(ids[:count]) for ids, count in zip(batch.token_ids.tolist(), batch.tokens.tolist(), strict=True)
    ]
    distinct = sorted(set(rows[:2]), key=lambda ids: (len(ids), ids))
    return Transcripts(
        distinct, {clip: distinct.index(ids) for clip, ids in zip("ab", rows[:2], strict=True)}
    )


def states_alone(model, inputs: Tensor, suffix: list[int], said: Answer) -> Tensor:
    """The state in which each token of an answer is decided, [answer + 1, D], each in a pass of its own."""
    embed, llm = model.llm.get_input_embeddings(), model.llm.base_model
    found = []
    for position in range(len(said.ids) + 1):
        rest = embed(torch.tensor([*suffix, *said.ids[:position]]))
        whole = torch.cat([embed(model.prefix_ids), inputs, rest]).unsqueeze(0)
        found.append(llm(inputs_embeds=whole).last_hidden_state[0, -1])
    return torch.stack(found)


def heard_alone(model, batch: SpeechBatch, row: int) -> Tensor:
    """The virtual tokens of one clip that the LLM reads, [read, D]."""
    samples = int(batch.samples[row])
    v = model.virtual_tokens(*pad_clips([batch.waveforms[row, :samples].numpy()]))[0]
    return v[Q - int(model.config.adapter.tokens_read(batch.samples[row : row + 1])) :]


def pair_alone(model, batch: SpeechBatch, row: int, suffix: list[int], said: Answer) -> tuple[Tensor, Tensor]:
    """Of one clip: the student's states and the teacher's."""
    ids = batch.token_ids[row, : int(batch.tokens[row])]
    inputs = heard_alone(model, batch, row), model.embed(ids)
    student, teacher = (states_alone(model, x, suffix, said) for x in inputs)
    return student, teacher


def distance_by_hand(student: Tensor, teacher: Tensor, kind: str, temperature: float, head) -> float:
    if kind == "l2":
        return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(student, teacher, strict=True)))
    p, q = ((head(x) / temperature).double().softmax(-1) for x in (teacher, student))

    def kl(a: Tensor, b: Tensor) -> float:
        return float((a * (a / b).log()).sum())

    m = (p + q) / 2
    value = {"kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": (kl(p, m) + kl(q, m)) / 2}[kind]
    return value * temperature**2


ANSWERS = [Answer([7, 8, 9, 10], False), Answer([11], True), Answer([], False)]


@pytest.mark.parametrize("kind", DISTANCES)
def test_the_loss_is_that_of_a_loop_over_clips_and_positions(model, batch, kind):
    suffix = model.suffix_ids.tolist()
    objective = Objective(answer_tokens=4, distance=kind, temperature=1.5, end_weight=3.0)
    after = Continuation.of([suffix] * 3, ANSWERS)
    with torch.no_grad():
        sums = loss_sums(model, FrozenParts(model), batch, objective, distills=True, after=after)
        expected = weights = 0.0
        for row, said in enumerate(ANSWERS[:2]):
            student, teacher = pair_alone(model, batch, row, suffix, said)
            for position in range(len(said.ids) + 1):
                weight = 3.0 if said.ended and position == len(said.ids) else 1.0
                pair = student[position], teacher[position]
                expected += weight * distance_by_hand(*pair, kind, 1.5, model.logits)
                weights += weight
    assert float(sums.distill) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(position_weights(batch, after, objective).sum()) == weights == 5 + 4


def test_an_answer_of_no_tokens_is_the_paper(model, batch):
    empty = Continuation.of([model.suffix_ids.tolist()] * 3, [Answer([], False)] * 3)
    with torch.no_grad():
        paper, same = (
            loss_sums(model, FrozenParts(model), batch, Objective(), distills=True, after=after)
            for after in (None, empty)
        )
    torch.testing.assert_close(same.distill, paper.distill, rtol=1e-6, atol=0)
    assert torch.equal(same.align, paper.align)


@pytest.mark.parametrize("kind", DISTANCES)
def test_a_student_that_is_handed_the_transcript_has_no_loss(plain, batch, kind):
    after = Continuation.of([plain.suffix_ids.tolist()] * 3, ANSWERS)
    objective = Objective(answer_tokens=4, distance=kind)
    with torch.no_grad():
        for row in range(2):
            count = int(batch.tokens[row])
            ids, tokens = batch.token_ids[row : row + 1, :count], batch.tokens[row : row + 1]
            where = after.ids[row : row + 1], after.at[row : row + 1]
            student = plain.student_states(plain.embed(ids), None, 0, *where)
            distances = objective.distances(student, plain.teacher_states(ids, tokens, *where), plain.logits)
            assert distances.abs().max() < 1e-4


@pytest.mark.parametrize("kind", DISTANCES[1:])
def test_divergences_in_slices_have_the_gradient_of_those_at_once(kind, monkeypatch):
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 7, 6, requires_grad=True), torch.randn(3, 7, 6)
    head, weights = torch.nn.Linear(6, 50).requires_grad_(False), torch.rand(3, 7)
    monkeypatch.setattr(losses_module, "_ROWS", 4)
    value = divergences(student, teacher, head, kind, 2.0)
    (value * weights).sum().backward()
    p, q = (torch.log_softmax(head(x) / 2.0, -1) for x in (teacher, student))
    m = (p.exp() / 2 + q.exp() / 2).log()
    whole = {
        "kl": (p.exp() * (p - q)).sum(-1),
        "reverse_kl": (q.exp() * (q - p)).sum(-1),
        "jsd": ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1)) / 2,
    }[kind] * 4
    torch.testing.assert_close(value, whole)
    expected = torch.autograd.grad((whole * weights).sum(), student)[0]
    torch.testing.assert_close(student.grad, expected, rtol=1e-4, atol=1e-6)


def test_padding_and_empty_rows_get_no_gradient(plain, batch):
    after = Continuation.of([plain.suffix_ids.tolist()] * 3, ANSWERS)
    v = torch.randn(3, Q, 32, requires_grad=True)
    objective = Objective(answer_tokens=4, distance="kl")
    student = plain.student_states(v, batch.samples, batch.padded_samples, after.ids, after.at)
    teacher = plain.teacher_states(batch.token_ids, batch.tokens, after.ids, after.at)
    weights = position_weights(batch, after, objective)
    (
        objective.distances(student, teacher, plain.logits).masked_fill(weights == 0, 0) * weights
    ).sum().backward()
    assert v.grad.isfinite().all()
    assert v.grad[2].eq(0).all()
    assert v.grad[:2].ne(0).any(dim=-1).all()


# ---- the teacher's answers


def test_the_teacher_answers_as_it_does_in_a_chat_of_text(plain, batch, tmp_path, monkeypatch):
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path))
    table = AnswerTable.build(plain, transcripts_of(batch), 6, AnswerSettings())
    found = table(batch)
    for row in range(2):
        ids = batch.token_ids[row, : int(batch.tokens[row])]
        whole = torch.cat([plain.prefix_ids, ids, plain.suffix_ids]).unsqueeze(0)
        said = plain.llm.generate(whole, max_new_tokens=6, do_sample=False)[0, whole.shape[1] :]
        expected = cut(said.tolist(), {plain.llm.generation_config.eos_token_id})
        assert table.answers[found.rows[row]] == expected
        suffix = len(plain.suffix_ids)
        assert found.ids[row, suffix : suffix + len(expected.ids)].tolist() == expected.ids
    assert found.answer[2] == 0
    assert found.weights(batch.valid)[2].eq(0).all()


def test_cached_states_are_those_of_the_teacher(plain, batch, tmp_path, monkeypatch):
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path))
    transcripts = transcripts_of(batch)
    instructions = ("Reply briefly", "Translate it")
    settings = AnswerSettings(temperature=2.0, samples=2)
    table = AnswerTable.build(plain, transcripts, 5, settings, instructions)
    assert len(table) == 2 * 2 * 2
    live = FrozenParts(plain, answers=table)
    cached = FrozenParts(plain, None, TeacherTable.build(plain, transcripts, table), table)
    drawn = set()
    for step in range(12):
        after = live.continuation(batch, step)
        drawn.add(tuple(after.rows[:2]))
        there = after.weights(batch.valid) > 0
        states, kept = (parts.teacher_states(batch, after)[there] for parts in (live, cached))
        torch.testing.assert_close(kept, states, rtol=1e-4, atol=1e-5)
        assert live.continuation(batch, step).rows == after.rows  # a resumed run draws the same
    assert {row for rows in drawn for row in rows} == set(range(8))


def test_instructions_follow_the_speech_as_in_a_chat(plain, batch):
    table = AnswerTable.build(plain, transcripts_of(batch), 0, AnswerSettings(), ["Reply briefly"])
    turn = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "\nReply briefly"}]}]
    text = plain.processor.apply_chat_template(turn, tokenize=False)
    spoken = plain.processor.tokenizer.decode(table.suffixes[0])
    assert text.endswith(spoken)
    assert spoken.startswith("\nReply briefly")


def test_making_answers_goes_on_where_it_was_killed(tmp_path):
    asked, groups = [], [["a", "b"], ["c", "d"], ["e"]]

    def of_group(number: int, group: list[str]) -> list[Answer]:
        asked.append(number)
        return [Answer([ord(letter)], letter == "d") for letter in group]

    whole = make_answers(tmp_path / "whole.jsonl", groups, of_group)
    text = (tmp_path / "whole.jsonl").read_text()
    assert asked == [0, 1, 2]
    half = tmp_path / "half.jsonl"
    half.write_text(text[: text.index("\n") + 9])
    assert make_answers(half, groups, of_group) == whole
    assert asked == [0, 1, 2, 1, 2]
    assert half.read_text() == text
    assert make_answers(half, groups, of_group) == whole
    assert len(asked) == 5


def test_answers_of_several_lengths_are_those_of_each_row_alone(plain):
    torch.manual_seed(3)
    rows = [torch.randn(length, 32) for length in (3, 9, 1)]
    together = answer(plain, rows, 7)
    assert together == [answer(plain, [row], 7)[0] for row in rows]
    assert any(len(said.ids) == 7 for said in together)


def test_an_answer_ends_at_its_first_end():
    assert cut([5, 2, 6, 2], {2}) == Answer([5], True)
    assert cut([2, 5], {2}) == Answer([], True)
    assert cut([5, 6], {2, 7}) == Answer([5, 6], False)


# ---- the student's answers


def test_on_policy_both_read_what_the_student_answers(model, batch):
    suffixes = [model.suffix_ids.tolist()] * 3
    said = student_answers(model, FrozenParts(model), batch, suffixes, 5)
    assert said[2] == Answer([], False)
    for row in range(2):
        v = heard_alone(model, batch, row)
        assert said[row] == answer(model, [torch.cat([v, model.embed(model.suffix_ids)])], 5)[0]
    after = student_continuation(model, FrozenParts(model), batch, suffixes, 5)
    objective = Objective(answer_tokens=5, on_policy=1.0)
    with torch.no_grad():
        sums = loss_sums(model, FrozenParts(model), batch, objective, distills=True, after=after)
        expected = 0.0
        for row in range(2):
            student, teacher = pair_alone(model, batch, row, suffixes[0], said[row])
            expected += float((student - teacher).norm(dim=-1).sum())
    assert float(sums.distill) == pytest.approx(expected, rel=1e-4)


def test_the_share_of_steps_that_are_on_policy_is_the_one_asked_for():
    objective = Objective(answer_tokens=4, on_policy=0.25)
    steps = [step for step in range(2000) if objective.is_on_policy(step)]
    assert 0.22 < len(steps) / 2000 < 0.28
    assert steps == [step for step in range(2000) if objective.is_on_policy(step)]
    assert not any(Objective(answer_tokens=4).is_on_policy(step) for step in range(50))


def test_tokens_in_common_are_counted_up_to_the_first_that_differs():
    said = Answer([1, 2, 3], False)
    assert shared_tokens(said, Answer([1, 2, 4], False), 3) == 2
    assert shared_tokens(said, said, 3) == 3
    assert shared_tokens(Answer([1], True), Answer([1], True), 3) == 3  # both ended
    assert shared_tokens(Answer([1], True), said, 3) == 1


def test_validation_measures_are_means_over_positions_and_clips(model, batch, tmp_path, monkeypatch):
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path))
    table = AnswerTable.build(model, transcripts_of(batch), 6, AnswerSettings())
    frozen = FrozenParts(model, answers=table)
    after = frozen.continuation(batch)
    found = measure_sums(model, frozen, batch, after=after) | shared_sums(model, frozen, batch, after, 6)
    agrees, kl, shared = [], [], []
    for row in range(2):
        said = table.answers[after.rows[row]]
        with torch.no_grad():
            student, teacher = (
                model.logits(x) for x in pair_alone(model, batch, row, model.suffix_ids.tolist(), said)
            )
        agrees += (student.argmax(-1) == teacher.argmax(-1)).tolist()
        p, q = teacher.softmax(-1), student.softmax(-1)
        kl += (p * (p / q).log()).sum(-1).tolist()
        ours = student_answers(model, FrozenParts(model), batch, after.suffixes, 6)[row]
        shared.append(shared_tokens(ours, said, 6))
    assert found[ANSWER_MEASURES[0]].tolist() == [sum(agrees), len(agrees)]
    assert found[ANSWER_MEASURES[1]].tolist() == pytest.approx([sum(kl), len(kl)], rel=1e-4)
    assert found["shared_tokens"].tolist() == [sum(shared), 2]
    assert found["same_answer"].tolist() == [sum(count == 6 for count in shared), 2]


# ---- runs


@pytest.mark.integration
def test_a_resumed_run_with_answers_is_the_undisturbed_one_to_the_bit(tiny_run, shared_cache, tmp_path):
    """Some steps on the teacher's answers, some on the student's; both runs pass over the corpus: 22 clips."""
    given = [
        *tiny_run,
        "objective.distill_from_step=0",
        "objective.answer_tokens=3",
        "objective.distance=jsd",
        "objective.on_policy=0.5",
        "answers.val_tokens=4",
        "val_every=4",
        "checkpoint_every=2",
        "sample_responses=0",
        "hardware.micro_batch_size=3",
        "optimizer.schedule.num_training_steps=8",
    ]
    for folder, steps in (("whole", 8), ("halves", 6)):
        arguments = [*given, f"max_steps={steps}", f"hydra.run.dir={folder}"]
        done = run("diva.train", *arguments, cache=shared_cache, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = run("diva.train", "resume=halves", "max_steps=8", cache=shared_cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    figures = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert {"val/answer_agreement", "val/answer_kl", "val/shared_tokens", "val/same_answer"} <= figures.keys()
    assert 0 <= figures["val/shared_tokens"] <= 4


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"distance": "l3"}, "objective.distance=l3"),
        ({"on_policy": 0.5}, "objective.answer_tokens"),
        ({"end_weight": 2.0}, "objective.answer_tokens"),
    ],
)
def test_objectives_that_contradict_themselves_are_refused(settings, named):
    with pytest.raises(UserError, match=named):
        Objective(**settings)


def test_equal_samples_are_refused():
    with pytest.raises(UserError, match=r"answers\.temperature"):
        replace(AnswerSettings(), samples=2)
