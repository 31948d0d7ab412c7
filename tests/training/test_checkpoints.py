"""How checkpoints are written."""

import tracemalloc

import torch

from diva.plan import compose
from diva.run import make_trainer


def test_a_checkpoint_is_written_without_a_copy_in_memory(tiny_overrides, tmp_path):
    trainer = make_trainer(
        compose([*tiny_overrides, "data.root=/no/such/folder", "logger=csv"]), tmp_path, []
    )
    state = {"model.adapter.weight": torch.randn(5_000_000)}
    tracemalloc.start()
    try:
        trainer.strategy.save_checkpoint({"state_dict": state}, tmp_path / "checkpoints" / "last.tmp")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 5_000_000
    found = torch.load(tmp_path / "checkpoints" / "last.tmp", weights_only=True)["state_dict"]
    assert torch.equal(found["model.adapter.weight"], state["model.adapter.weight"])
