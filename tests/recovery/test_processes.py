"""Two real processes on a CPU: what one process with twice the batch does."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from launching import LAUNCH, TWO, launched
from recovery import train_tiny
from transformers import AutoModelForImageTextToText


pytestmark = pytest.mark.slow

SCRIPT = Path(train_tiny.__file__)
SGD = {"optim": "sgd", "learning_rate": 0.05, "lora_dropout": 0.0, "hidden_tokens": "all", "max_steps": 3}
RUNS = {
    "full": {"train": "full", "loss": "sft=0.1,logits=0.2,hidden=0.3,layers=0.4"},
    "lora": {"train": "lora", "loss": "sft+hidden+kd", "gradient_checkpointing": True},
    "projector": {"train": "projector", "loss": "hidden", "gradient_accumulation_steps": 2, "max_steps": 1},
}
# Three tokens of the vocabulary of 384 a chunk: the head is called many times a step.
SMALL_CHUNKS = 3 * 384

FSDP2 = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "use_cpu": True,
    "num_machines": 1,
    "num_processes": 2,
    "mixed_precision": "no",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
        "fsdp_reshard_after_forward": True,
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
    },
}


def jobs(folder, batch_size, wrapper=""):
    return [
        {
            "folder": str(folder / "training"),
            "saved": str(folder / name),
            "arguments": {**SGD, **given, "per_device_train_batch_size": batch_size},
            "chunk_elements": SMALL_CHUNKS,
            "wrapper": wrapper,
        }
        for name, given in RUNS.items()
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with batches of four."""
    folder = tmp_path_factory.mktemp("alone")
    train([sys.executable], jobs(folder, 4), folder)
    return folder


def train(command, todo, folder):
    (folder / "jobs.json").write_text(json.dumps(todo))
    launched([*command, SCRIPT, folder / "jobs.json"])


def compare(folder, alone):
    for name in RUNS:
        logs, expected = (json.loads((home / name / "logged.json").read_text()) for home in (folder, alone))
        assert len(logs) == len(expected) > 0
        for one, other in zip(logs, expected, strict=True):
            for key in (key for key in other if key.startswith("loss") or key == "grad_norm"):
                assert one[key] == pytest.approx(other[key], rel=1e-4), (name, key)
        found, report = AutoModelForImageTextToText.from_pretrained(folder / name, output_loading_info=True)
        assert not any(report.values())
        wanted = AutoModelForImageTextToText.from_pretrained(alone / name).state_dict()
        for key, tensor in found.state_dict().items():
            torch.testing.assert_close(tensor, wanted[key], rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")


def test_ddp(tmp_path, alone):
    train([*LAUNCH, *TWO], jobs(tmp_path, 2, "DistributedDataParallel"), tmp_path)
    compare(tmp_path, alone)


def test_fsdp2(tmp_path, alone):
    (tmp_path / "fsdp.yaml").write_text(yaml.safe_dump(FSDP2))
    train([*LAUNCH, "--config_file", tmp_path / "fsdp.yaml"], jobs(tmp_path, 2, "FSDP"), tmp_path)
    compare(tmp_path, alone)
