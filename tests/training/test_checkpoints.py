"""How checkpoints are written."""

import tracemalloc

import pytest
import torch

from diva.errors import UserError
from diva.plan import compose
from diva.run import make_trainer
from diva.training.checkpoints import check_resumable


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


@pytest.mark.faults
def test_a_checkpoint_with_a_bit_turned_is_refused(tmp_path):
    """torch would read it, and the run would go on with another weight."""
    file, weights = tmp_path / "last.ckpt", torch.ones(100)
    torch.save({"state_dict": {"a": weights}}, file)
    check_resumable(file)
    whole = file.read_bytes()
    at = whole.index(weights.numpy().tobytes())
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UserError, match="has another checksum"):
        check_resumable(file)
