"""On a GPU: the scores of the CPU, and every command to its end; elsewhere there is nothing to test."""

import json
from types import SimpleNamespace

import pytest
import torch
from checkpoint import tiny_llava
from commands.conftest import called
from transformers import AutoConfig

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.commands.eval import MLLMEvalCommand
from optimum_mllm_prune.commands.recover import MLLMRecoverCommand
from optimum_mllm_prune.importance.registry import METRICS
from optimum_mllm_prune.placement import layers_on_disk


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

EACH = [(method, name) for name, by_method in METRICS.items() for method in by_method]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The example's LLaVA with weights that are far from all alike."""
    return tiny_llava.save_model(tmp_path_factory.mktemp("models") / "moved", tiny_llava.moved(0.05))


def scored(folder, method, importance, **where):
    made = MLLMPruner.from_pretrained(str(folder), dtype="float32", **where)
    return made.score(PruningConfig(method=method, importance=importance, num_samples=4), tiny_llava.rows())


def assert_near(found, expected, tolerance=1e-3):
    assert found.tensors.keys() == expected.tensors.keys()
    for kind, scores in expected.tensors.items():
        # A run of layers that would end behind the last one has no score.
        near = tolerance * scores[scores.isfinite()].abs().max()
        assert torch.allclose(found.tensors[kind], scores, rtol=tolerance, atol=near, equal_nan=True), kind


@pytest.mark.parametrize(("method", "importance"), EACH)
def test_scores_are_those_of_the_cpu(method, importance, trained):
    on_gpu, on_cpu = (scored(trained, method, importance, device=device) for device in ("cuda", "cpu"))
    assert_near(on_gpu, on_cpu, 2e-2 if importance == "reconstruction" else 1e-3)


@pytest.mark.parametrize(("method", "importance"), [("layer", "block_influence"), ("width", "taylor")])
def test_layers_that_wait_on_disk(method, importance, trained):
    config = AutoConfig.from_pretrained(trained)
    weights = sum(file.stat().st_size for file in trained.glob("*.safetensors"))
    device_map = layers_on_disk(config, weights, torch.float32, "cuda")
    assert "disk" in device_map.values()
    whole, lazily = (
        scored(trained, method, importance, **where) for where in ({"device": "cuda"}, {"device_map": device_map})
    )
    assert_near(lazily, whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["width", "layer", "mixed", "hidden"])
def test_pruned_repaired_and_verified(method, dtype, command, trained, rows, cwd):
    words = ("--method", method, "--ratio", "0.3", "--dataset", rows, "--dtype", dtype)
    done = command("--model", trained, "out", *words)
    assert done.code == 0, done.err
    report = json.loads((cwd / "out" / "pruning_report.json").read_text())
    assert report["environment"]["device"] == torch.cuda.get_device_name()
    assert report["peak_memory_bytes"]["gpu"] > 0
    assert report["verification"]["max_abs_logit_difference"] == 0
    assert report["repair"] is None or report["repair"]["refitted"] + len(report["repair"]["left_alone"]) > 0


def test_recovered_and_evaluated(command, capsys, trained, rows, cwd):
    pytest.importorskip("bitsandbytes")
    done = command("--model", trained, "out", "--method", "width", "--ratio", "0.3", "--dataset", rows)
    assert done.code == 0, done.err
    quick = ("--max-steps", "2", "--per-device-train-batch-size", "4", "--logging-steps", "1")
    run = SimpleNamespace(
        recover=lambda *words: called(MLLMRecoverCommand, "optimum-cli mllm-recover", words, capsys),
        evaluate=lambda *words: called(MLLMEvalCommand, "optimum-cli mllm-eval", words, capsys),
    )
    for name, bits in {"recovered": (), "of_8bit": ("8bit",), "of_4bit": ("4bit",)}.items():
        held = ("--teacher-quantization", *bits) if bits else ()
        done = run.recover("--model", "out", "--teacher", trained, "--dataset", rows, name, *quick, *held)
        assert done.code == 0, done.err
    both = ("--model", "recovered", "--baseline", trained)
    done = run.evaluate(*both, "evaluation", "--dataset", rows, "--efficiency", "--efficiency-tokens", "4")
    assert done.code == 0, done.err
    assert "first token, batch 8 (ms)" in done.out


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_scored_in_few_bits(bits, command, trained, rows, cwd):
    pytest.importorskip("bitsandbytes")
    words = ("--method", "width", "--importance", "taylor_group", "--ratio", "0.3", "--dataset", rows)
    done = command("--model", trained, "plan", *words, "--dry-run", "--quantization", bits)
    assert done.code == 0, done.err
    done = command("--model", trained, "out", "--plan", "plan")
    assert done.code == 0, done.err
