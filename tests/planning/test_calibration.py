"""How fast this machine is, as the plan measures it."""

from types import SimpleNamespace

import pytest
import torch

from diva.planning import calibration


def test_products_that_other_work_has_slowed_down_do_not_count(monkeypatch):
    clock = iter([0.0, 0.0, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 2.0, 2.0])  # products of 0.5, 0.1 and 1.4 s
    monkeypatch.setattr(calibration, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(calibration, "_MATMUL", 100)
    monkeypatch.setattr(calibration, "_MATMUL_SECONDS", 1.0)
    found = calibration.matmul_tflops(torch.float32, torch.device("cpu"))
    assert found == pytest.approx(2 * 100**3 / 0.1 / 1e12)
