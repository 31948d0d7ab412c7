"""The export of the best validation."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diva.config import check_overrides
from diva.errors import UserError
from diva.models.modeling import DivaForConditionalGeneration
from diva.training.best import BestExport, check_best
from diva.training.checkpoints import ADAPTER_PREFIX


def validate(callback: BestExport, model: DivaForConditionalGeneration, values: dict[int, float]) -> None:
    """Validations at these steps, at each of which all biases of the projection are the number of the step."""
    for step, value in values.items():
        torch.nn.init.constant_(model.adapter.projection.bias, step)
        state = {ADAPTER_PREFIX + name: weight for name, weight in model.adapter.state_dict().items()}
        trainer = SimpleNamespace(
            callback_metrics={callback.metric: torch.tensor(value)},
            strategy=SimpleNamespace(lightning_module_state_dict=lambda state=state: state),
            is_global_zero=True,
            global_step=step,
        )
        callback.on_validation_end(trainer, SimpleNamespace(model=model))


def exported_step(folder: Path) -> int:
    """Of which step the export is; its note and its card have to say the same."""
    bias = DivaForConditionalGeneration.from_pretrained(folder / "export_best").adapter.projection.bias
    step = int(bias[0])
    assert json.loads((folder / "best.json").read_text())["step"] == step
    assert f"that of step {step}:" in (folder / "export_best" / "README.md").read_text()
    return step


@pytest.mark.parametrize(("metric", "best"), [("val/kl", 8), ("val/answer_kl", 8), ("val/same_answer", 4)])
def test_the_best_export_is_that_of_the_best_value(metric, best, tiny_model, tmp_path):
    values = {1: float("nan"), 2: 0.5, 4: 0.7, 6: float("nan"), 8: 0.3, 10: 0.4}
    validate(BestExport(tmp_path, metric, resumed=False), tiny_model, values)
    assert exported_step(tmp_path) == best


def test_a_resumed_run_goes_on_from_the_best_before(tiny_model, tmp_path):
    validate(BestExport(tmp_path, "val/kl", resumed=False), tiny_model, {2: 0.5})
    validate(BestExport(tmp_path, "val/kl", resumed=True), tiny_model, {4: 0.6})
    assert exported_step(tmp_path) == 2
    validate(BestExport(tmp_path, "val/kl", resumed=True), tiny_model, {6: 0.4})
    assert exported_step(tmp_path) == 6
    validate(BestExport(tmp_path, "val/alignment_accuracy", resumed=True), tiny_model, {8: 0.1})
    assert exported_step(tmp_path) == 8  # another metric has no best before


def test_a_metric_that_is_not_measured_is_refused_by_name():
    check_best(check_overrides("train", ["checkpoint_best=val/kl"]))
    check_best(check_overrides("train", ["checkpoint_best=val/same_answer", "answers.val_tokens=4"]))
    for metric in ("val/same_answer", "kl", "val/loss"):
        with pytest.raises(UserError, match="val/alignment_accuracy, val/first_token_agreement, val/kl"):
            check_best(check_overrides("train", [f"checkpoint_best={metric}"]))
