"""What is free goes back to the system, where layers wait on disk."""

import subprocess
import sys
from ctypes import CDLL

import pytest


LEFT = """
import psutil, torch
from optimum_mllm_prune.memory import give_back_at_once

def taken():
    return psutil.Process().memory_info().rss

give_back_at_once()
# What glibc learns from: once a large piece is free, pieces of its size come from the heap.
torch.ones(7_000_000)
before, kept = taken(), []
for _ in range(8):
    large = [torch.ones(2_500_000) for _ in range(10)]
    # Small things come to lie behind them.
    kept += [bytes(500) for _ in range(2000)]
    del large
print((taken() - before) / 1e6)
"""


@pytest.mark.skipif(not hasattr(CDLL(None), "mallopt"), reason="needs glibc")
def test_nothing_large_is_left_behind():
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, check=True)
    # Ten pieces of 10 MB were there at a time.
    assert float(done.stdout) < 20
