"""A Hub of this test's own, and its client in this process or in another."""

import os
from contextlib import contextmanager

import pytest
from hub import api, contents, xet  # noqa: F401  (their routes)
from hub.server import Hub
from huggingface_hub import constants


TOKEN = "hf_" + "w" * 34
READ_ONLY = "hf_" + "r" * 34


@contextmanager
def served():
    """A Hub with a user, whose tokens are those above."""
    hub = Hub()
    hub.tokens.update({TOKEN: ("me", True), READ_ONLY: ("me", False)})
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def hub():
    with served() as hub:
        yield hub


@pytest.fixture(scope="module")
def module_hub():
    with served() as hub:
        yield hub


def settings(hub, home):
    """What a process needs to know to talk to a Hub as a user would: the environment alone."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def client(hub, monkeypatch):
    """Let huggingface_hub in this process talk to the Hub of the test, without its waits from try to try.

    Where hf_xet is installed the client sends large files through it whatever the Hub answers, hence the switch.
    """
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def environment(hub, tmp_path):
    return settings(hub, tmp_path)


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with all kinds of files that a checkpoint has, and some that are in the way."""
    folder = tmp_path / "out"
    for name, content in {
        "README.md": b"---\ntags:\n- pruning\n---\n\n# out\n",
        "config.json": b"{}",
        "model-00001-of-00002.safetensors": bytes(300_000),
        "model-00002-of-00002.safetensors": os.urandom(300_000),
        "model.safetensors.index.json": b"{}",
        "pruning_plan.json": b"{}",
        "pruning_report.json": b'{"parameters": {"before": 2000, "after": 1500}}',
        "recovery_losses.png": b"\x89PNG",
        "tokenizer.json": b'{"hf_": 1, "half_of_it": 2}',
        ".cache/huggingface/x.metadata": b"",
        ".hidden": b"",
        "__pycache__/x.pyc": b"",
        "deeper/__pycache__/y.pyc": b"",
        ".out.x7.partial/model.safetensors": b"",
        "weights.partial": b"",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


PUSHED = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "pruning_plan.json",
    "pruning_report.json",
    "recovery_losses.png",
    "tokenizer.json",
    "README.md",
]
