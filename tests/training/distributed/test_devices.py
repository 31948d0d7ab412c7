"""What is asked of the system."""

import sys

import pytest
import torch

from diva.training.distributed.devices import give_back_memory, resident_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_memory_that_was_freed_is_given_back():
    give_back_memory()  # of the tests before, or the tensors may have it
    before = resident_bytes()
    tensors = [torch.ones(10_000) for _ in range(5_000)]  # 200 MB
    assert resident_bytes() > before + 100e6
    del tensors[:-50]  # the last ones hold what lies before them
    give_back_memory()
    assert resident_bytes() < before + 50e6
