import subprocess
import sys

import pytest
import torch

from optimum_mllm_prune.errors import first_line, is_out_of_memory


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("\n one \n two"), "one"), (ValueError(), "ValueError"), (KeyboardInterrupt(), "KeyboardInterrupt")],
)
def test_the_first_line_of_an_error(error, line):
    assert first_line(error) == line


@pytest.mark.parametrize(
    "said",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "RuntimeError: CUDA error: out of memory",
        "MemoryError",
    ],
)
def test_out_of_memory(said):
    assert is_out_of_memory(said)


@pytest.mark.parametrize("said", [RuntimeError("shapes do not match"), "ValueError: no"])
def test_other_errors(said):
    assert not is_out_of_memory(said)


def test_they_are_light_to_import():
    script = "import sys, optimum_mllm_prune.errors; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"
