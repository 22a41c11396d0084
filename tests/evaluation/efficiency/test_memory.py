import subprocess
from types import SimpleNamespace

import pytest
import torch
from checkpoint import tiny_llava

from optimum_mllm_prune.evaluation.efficiency import memory, memory_probe
from optimum_mllm_prune.evaluation.efficiency.inputs import prompt_inputs
from optimum_mllm_prune.evaluation.efficiency.memory import Memory, gpu_memory, process_memory
from optimum_mllm_prune.evaluation.efficiency.speed import Runner


LINUX = pytest.mark.skipif(not memory_probe.STATUS.is_file(), reason="Linux tells of a process's memory")


def measured(folder, batch_sizes=(1, 32), with_images=True, dtype=torch.float32):
    return process_memory(folder, dtype, with_images, batch_sizes, new_tokens=3, text_tokens=100)


@LINUX
def test_of_a_fresh_process(tmp_path):
    weights = sum(p.nbytes for p in tiny_llava.model().parameters())
    found = measured(tiny_llava.save_model(tmp_path))
    assert found.kind == "process"
    # The weights, and not much more.
    assert weights < found.loaded - found.empty < weights + 60e6
    assert found.loaded <= found.peak[1] < found.peak[32]


@LINUX
@pytest.mark.slow
def test_without_a_processor(tmp_path):
    tiny_llava.model().save_pretrained(tmp_path)
    found = measured(tmp_path, (2,), with_images=False, dtype=torch.bfloat16)
    assert list(found.peak) == [2] and found.empty < found.loaded <= found.peak[2]


@LINUX
def test_resident_memory_is_that_of_the_process():
    before = memory_probe.resident("VmRSS")
    held = torch.ones(20_000_000)
    assert 60e6 < memory_probe.resident("VmRSS") - before < 120e6
    assert memory_probe.resident("VmHWM") >= before + held.nbytes * 0.75


@LINUX
@pytest.mark.parametrize(
    ("returncode", "stderr"), [(-9, ""), (1, "...\nRuntimeError: DefaultCPUAllocator: can't allocate memory")]
)
def test_a_process_that_runs_out_of_memory(monkeypatch, tmp_path, returncode, stderr):
    done = SimpleNamespace(returncode=returncode, stderr=stderr, stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert measured(tmp_path) is None


@LINUX
@pytest.mark.slow
def test_a_process_that_fails(tmp_path):
    with pytest.raises(RuntimeError, match=f"the memory of '{tmp_path.name}' cannot be measured: .*UserInputError"):
        measured(tmp_path)


def test_another_system(monkeypatch, tmp_path):
    monkeypatch.setattr(memory.memory_probe, "STATUS", tmp_path / "none")
    assert measured(tmp_path) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_of_a_gpu():
    model, processor = tiny_llava.model().cuda(), tiny_llava.processor()
    other = torch.ones(50_000_000, device="cuda")
    found = gpu_memory(Runner(model, lambda rows: prompt_inputs(model, processor, 40, rows)), (1, 16), 4)
    assert isinstance(found, Memory) and found.empty == 0
    weights = sum(p.nbytes for p in model.parameters())
    assert weights <= found.loaded < weights + 1e5
    assert found.loaded < found.peak[1] < found.peak[16] < other.nbytes
