"""What the documentation prints on recovery, run as it is printed."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from checkpoint import tiny_llava
from datasets import load_from_disk
from docs.printed import ROOT, block
from transformers import AutoModelForImageTextToText, AutoProcessor

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.evaluation import exact_match, generate_answers, reference_answers


OFFLINE = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}


@pytest.mark.slow
def test_the_script(tmp_path):
    original = tiny_llava.save_model(tmp_path / "original")
    tiny_llava.save_rows(tmp_path / "my_rows")
    pruner = MLLMPruner.from_pretrained(str(original), device="cpu")
    pruner.prune(PruningConfig(num_layers=2, importance="magnitude"))
    pruner.save_pretrained(tmp_path / "pruned")
    script = block("docs/recovery.md", "python", "trainer.train()")
    assert len([line for line in script.splitlines() if line.strip() and "import" not in line]) <= 10
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=OFFLINE, check=True)
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "recovered", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.num_parameters() == pruner.model.num_parameters()


@pytest.mark.slow
def test_the_example(tmp_path):
    """Rows, pruning and recovery: most of what is lost comes back, and 95 % of the original at least."""
    shutil.copytree(ROOT / "examples" / "digit_scenes", tmp_path / "examples" / "digit_scenes")
    path = os.pathsep.join([str(Path(sysconfig.get_path("scripts"))), os.environ["PATH"]])
    commands = block("README.md", "bash", "optimum-cli mllm-recover --model small")
    subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, env={**OFFLINE, "PATH": path}, check=True)
    home = tmp_path / "examples" / "digit_scenes"
    rows = load_from_disk(home / "rows")["test"]
    found = {name: accuracy(home / name, rows) for name in ("llava", "small", "better")}
    assert found["small"] < found["better"]
    assert found["better"] > 0.95 * found["llava"]


def accuracy(folder, rows):
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    return exact_match(generate_answers(model, processor, rows), reference_answers(rows))
