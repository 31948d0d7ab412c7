"""The default precision of a run on a CPU, and the message about it."""

import pytest
import torch

from diva.config import check_overrides, precision
from diva.config.precision import autocast_dtype
from diva.training.distributed import checks


@pytest.fixture(params=[True, False], ids=["bfloat16", "no bfloat16"])
def has_bfloat16(request, monkeypatch) -> bool:
    for module in (precision, checks):
        monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: request.param)
    return request.param


def chosen(*overrides: str) -> tuple[str, str]:
    config = check_overrides("train", list(overrides))
    return config.hardware.precision, config.model.frozen_dtype


def test_a_cpu_run_takes_bfloat16_where_the_cpu_multiplies_it(has_bfloat16):
    assert chosen() == (("bf16-mixed", "bfloat16") if has_bfloat16 else ("32-true", "float32"))


def test_a_given_precision_and_other_hardware_do_not_ask_the_cpu(has_bfloat16):
    assert chosen("hardware.precision=32-true") == ("32-true", "float32")
    assert chosen("hardware.precision=bf16-mixed") == ("bf16-mixed", "bfloat16")
    assert chosen("hardware.precision=32-true", "model.frozen_dtype=bfloat16") == ("32-true", "bfloat16")
    assert chosen("hardware=gpu") == ("bf16-mixed", "bfloat16")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("hardware=cpu", "training in float32 (hardware.precision=32-true)"),
        ("hardware.precision=bf16-mixed", "up to 100 times slower than 32-true here"),
        ("hardware=gpu", ""),
    ],
)
def test_what_a_cpu_without_bfloat16_means_is_said_in_one_line(override, words, has_bfloat16):
    said = checks.precision_note(check_overrides("train", [override]).hardware)
    assert "\n" not in said
    if words and not has_bfloat16:
        assert words in said
    else:
        assert not said


def test_names_of_precisions_say_what_is_cast():
    names = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", 32)
    assert [autocast_dtype(name) for name in names] == [None, torch.bfloat16, torch.float16, None, None]
