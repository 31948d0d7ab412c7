"""The output of diva.plan, compared with direct counts, published numbers and real runs."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from command_line import run as run_command
from omegaconf import OmegaConf

import diva.training.distributed.checks
from benchmarks import plan_check
from diva.config import CONFIG_DIR
from diva.data.corpora.common_voice import CommonVoice
from diva.errors import UserError
from diva.plan import compose, make_plan
from diva.planning.duration import Timing
from diva.planning.lengths import clip_lengths, val_lengths
from diva.planning.run import Run

# A rate, so that nothing is timed.
GIVEN = ["plan.device_tflops=100", "plan.mfu=0.5"]
NO_DATA = "data.root=/no/such/folder"


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (Path(CONFIG_DIR) / group).glob("*.yaml"))


PLANNED = sorted(
    {(experiment, "gpu_ddp") for experiment in choices("experiment")}
    | {("diva_llama3_8b", hardware) for hardware in choices("hardware")}
)


@pytest.mark.parametrize(("experiment", "hardware"), PLANNED)
def test_every_experiment_and_every_hardware_can_be_planned(experiment, hardware):
    plan = make_plan(compose([f"experiment={experiment}", f"hardware={hardware}", NO_DATA, *GIVEN]))
    assert plan.memory_total > 1e8
    assert plan.memory_total == sum(plan.memory.device.values())
    assert plan.hours > 0
    assert plan.device_hours == pytest.approx(plan.hours * plan.devices)


# ---- phases


def timing(*overrides: str) -> Timing:
    """The part of a plan that needs FLOPs alone, which is quicker to count than memory."""
    return Timing(Run(compose([*overrides, *GIVEN])))


def phases_of(of: Timing) -> dict:
    return {phase.name: phase for phase in of.phases()}


def phases(*overrides: str) -> dict:
    return phases_of(timing(*overrides, NO_DATA))


def test_the_curriculum_is_counted_by_phase_and_tables_once():
    found = phases("experiment=mini")
    assert [(p.name, p.steps) for p in found.values()] == [
        ("encoder frames, once", 0),
        ("teacher states, once", 0),
        ("alignment", 1100),
        ("distillation", 700),
        ("validation", 0),
    ]
    assert found["alignment"].clips == 1100 * 16
    assert found["encoder frames, once"].clips == 5220
    assert found["validation"].clips == 9 * 2 * 320
    # An aligning clip passes through the adapter alone, a distilling one through the LLM as well.
    each = {name: phase.tflops / phase.clips for name, phase in found.items()}
    assert each["distillation"] > 5 * each["alignment"]
    assert found["distillation"].seconds == pytest.approx(found["distillation"].tflops / 50)


def test_objectives_decide_which_phases_there_are():
    assert phases("objective=align_only")["alignment"].steps == 1800
    assert "distillation" not in phases("objective=align_only")
    assert phases("objective=distill_only")["distillation"].steps == 1800
    assert "alignment" not in phases("objective=diva")


def test_without_tables_every_step_encodes_and_teaches():
    kept = phases("experiment=mini")["distillation"]
    computed = phases("experiment=mini", "precompute.teacher_states=false", "precompute.encoder_frames_gb=0")
    assert set(computed) == {"alignment", "distillation", "validation"}
    assert computed["distillation"].tflops > 1.5 * kept.tflops


def test_augmented_clips_are_encoded_at_every_step_and_the_plan_says_so():
    planned = timing("experiment=mini", "data/augment=robust", NO_DATA)
    assert list(phases_of(planned)) == ["teacher states, once", "alignment", "distillation", "validation"]
    kinds = "speed, reverberation, noise, gain, telephone, codec, spec_augment"
    assert f"augmentation ({kinds}) in workers that keep up with the device" in planned.run.assumptions


def test_all_held_out_clips_are_validated_where_there_is_no_limit(tiny_release):
    given = ["data=common_voice", "data.max_val_clips=null", "max_steps=10", "val_every=5"]
    here = [*given, f"data.root={tiny_release}"]
    assert phases_of(timing(*here))["validation"].clips == 2 * 6
    assert phases_of(timing(*here, "data.max_val_clips=4"))["validation"].clips == 2 * 4
    elsewhere = timing(*given, NO_DATA)
    assert phases_of(elsewhere)["validation"].clips == 2 * 16_400
    assert any("16400 clips to validate on" in line for line in elsewhere.rests_on)


def test_what_contradicts_the_hardware_is_not_planned(monkeypatch):
    monkeypatch.setattr(diva.training.distributed.checks, "find_spec", lambda name: None)
    make_plan(compose(["experiment=diva_llama3_8b", "hardware=tpu_v4_256", NO_DATA, *GIVEN]))
    with pytest.raises(UserError, match=r"sample_responses=0"):
        make_plan(compose(["hardware=tpu_v5e", "sample_responses=1", NO_DATA, *GIVEN]))


def test_devices_share_the_time_and_not_the_work():
    one = make_plan(compose(["experiment=diva_llama3_8b", "hardware=gpu", NO_DATA, *GIVEN]))
    eight = make_plan(compose(["experiment=diva_llama3_8b", "hardware=gpu_ddp", NO_DATA, *GIVEN]))
    assert eight.devices == 8
    assert eight.hours == pytest.approx(one.hours / 8)
    assert [p.tflops for p in eight.phases] == pytest.approx([p.tflops for p in one.phases])


def test_tpu_v5e_and_v4_have_their_own_memory_and_tflops():
    small, large = (
        Run(compose(["experiment=diva_llama32_1b", f"hardware={name}", NO_DATA])).device
        for name in ("tpu_v5e", "tpu_v4_256")
    )
    assert (small.memory, small.tflops) == (16 * 10**9, 197)
    assert (large.memory, large.tflops) == (32 * 2**30, 275)


@pytest.mark.parametrize("mfu", ["0", "1.5"])
def test_plan_refuses_mfu_outside_zero_to_one(mfu):
    with pytest.raises(UserError, match=r"plan\.mfu"):
        make_plan(compose([NO_DATA, "plan.device_tflops=1", f"plan.mfu={mfu}"]))


# ---- clips


def test_lengths_of_a_corpus_at_hand(tiny_release):
    data = compose(["data=common_voice", f"data.root={tiny_release}"]).data
    found = clip_lengths(data)
    assert found.clips == 22
    assert found.seconds == pytest.approx(CommonVoice(str(tiny_release)).manifest("train").durations)
    assert clip_lengths(replace_limit(data, 5)).clips == 5


def replace_limit(data, clips: int):
    return OmegaConf.merge(data, {"max_train_clips": clips})


def test_lengths_of_a_mixture_are_those_of_what_it_draws(tiny_release):
    given = [
        "data=mixture",
        f"data.root={tiny_release}",
        "data.parts.here={corpus: common_voice, weight: 3, limit: 20}",
    ]
    there = "data.parts.there={corpus: common_voice, root: /no/such/folder, limit: 300, max_seconds: 9}"
    config = compose([*given, there, "data.max_val_clips=5", "max_steps=10", "val_every=5"])
    here = CommonVoice(str(tiny_release)).manifest("train").durations
    found = clip_lengths(config.data)
    assert found.clips == 320
    assert found.longest_seconds == 9
    assert float((found.seconds <= here.max()).mean()) == pytest.approx(0.75, abs=0.02)
    lines = found.origin.splitlines()
    assert lines[0].startswith("part here, 75.0% of the drawn clips: 22 clips of ")
    assert lines[1].startswith(
        "part there, 25.0% of the drawn clips: assumed: 300 clips with a median of 5 s"
    )
    assert [val_lengths(config.data, split).clips for split in config.data.val_splits.values()] == [5, 5]
    assert set(lines) <= set(Run(config).assumptions)


def test_nothing_is_spoken_for_a_plan(tmp_path):
    found = clip_lengths(compose([f"data.root={tmp_path}"]).data)
    assert found.origin.startswith("assumed")
    assert list(tmp_path.iterdir()) == []


def test_clip_lengths_are_log_normal_without_a_corpus():
    data = compose(["data=common_voice", NO_DATA]).data
    found = clip_lengths(data, 4.0)
    assert float(torch.tensor(found.seconds).median()) == pytest.approx(4.0, rel=0.01)
    assert found.longest_seconds <= 30
    assert found.tokens(8.0) == math.ceil(8 * 3.5)


# ---- command lines


def documented_plan() -> tuple[list[str], str]:
    """The arguments of the plan in docs/planning.md, and what it is said to print."""
    text = (Path(__file__).parents[2] / "docs" / "planning.md").read_text()
    (command,) = re.findall(r"^python -m diva\.plan (.*)$", text, re.MULTILINE)
    return command.split(), text.partition("<!-- plan -->\n```\n")[2].partition("```\n<!-- /plan -->")[0]


def words(printed: str) -> list[str]:
    """Words and numbers of the plan, without what draws its tables, wraps its cells, or differs between machines."""
    text = re.sub(r"[\u2500-\u257f]", " ", printed)
    return sorted(re.sub(r"memory of each machine +\S+", "", text).split())


@pytest.mark.integration
def test_the_documented_plan_is_what_the_command_prints_and_writes(tmp_path):
    arguments, said = documented_plan()
    arguments.append(f"plan.json={tmp_path}/plan.json")
    done = run_command("diva.plan", *arguments, cache=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    title, _, printed = done.stdout.partition(f"{arguments[-1]}\n")
    assert title.split() == arguments[:-1]
    assert "largest micro-batch that fits" in printed
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["devices"] == 8
    assert plan["memory_total"] == sum(plan["memory"]["device"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    # But for the machine's own memory, of which the interpreter that counts has a part.
    assert words(without_host(printed)) == words(without_host(said))


def without_host(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "memory of each machine" not in line)


@pytest.mark.integration
def test_a_small_model_is_timed_on_this_machine(tiny_overrides, tmp_path):
    file = tmp_path / "plan.json"
    done = run_command("diva.plan", *tiny_overrides, f"plan.json={file}", cache=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "timed now" in done.stdout.replace("\n", " ")
    seconds = {phase["name"]: phase["seconds"] for phase in json.loads(file.read_text())["phases"]}
    assert 0 < seconds["alignment"] / 1100 < seconds["distillation"] / 700


@pytest.mark.integration
def test_a_plan_is_put_beside_a_run(tiny_overrides, tiny_release, tmp_path, monkeypatch):
    corpus = [
        "data=common_voice",
        f"data.root={tiny_release}",
        "data.batch_size=2",
        "hardware.micro_batch_size=2",
    ]
    monkeypatch.setenv("DIVA_CACHE", str(tmp_path / "cache"))
    command = ["plan_check", "--steps", "5", "--into", str(tmp_path), *tiny_overrides, *corpus]
    monkeypatch.setattr("sys.argv", command)
    plan_check.main()
    found = json.loads((tmp_path / "plan.json").read_text())
    alignment, distillation, memory = found["rows"]
    assert (alignment["figure"], memory["figure"]) == ("alignment, seconds a step", "memory, GB")
    assert distillation["ratio"] == pytest.approx(
        distillation["predicted"] / distillation["measured"], rel=0.1
    )
    assert found["revision"]
    assert f"| memory, GB | {memory['predicted']:.3f} |" in (tmp_path / "plan.md").read_text()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("wrong", "said"), [("data.rot=x", "data.root"), ("plan.device_memory_gb=0", "above 0")]
)
def test_wrong_input_is_one_line_and_exit_code_2(wrong, said, tmp_path):
    done = run_command("diva.plan", wrong, cache=tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.integration
def test_training_that_cannot_fit_ends_before_weights_are_loaded(tiny_overrides, tiny_release, tmp_path):
    arguments = [
        *tiny_overrides,
        "data=common_voice",
        f"data.root={tiny_release}",
        "plan.device_memory_gb=0.1",
    ]
    done = run_command(
        "diva.train", *arguments, f"hydra.run.dir={tmp_path}/run", cache=tmp_path, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "this run needs" in done.stderr
    assert "parameters:" not in done.stderr  # said once the model is there
