"""The untrained LLaVA of examples/digit_scenes with its processor, some rows, and both as folders."""

from __future__ import annotations

import copy
import json
import sys
from functools import cache
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from safetensors import safe_open


# The examples are scripts, not a package.
sys.path.append(str(Path(__file__).parents[2] / "examples" / "digit_scenes"))

import parts
import scenes


HEADS, KV_HEADS, CHANNELS, LAYERS = 8, 4, 416, 8


@cache
def processor():
    return parts.processor()


@cache
def _model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return parts.model(processor().tokenizer, KV_HEADS).eval()


def model():
    """A copy that may be pruned."""
    return copy.deepcopy(_model())


def in_whole_blocks():
    """One whose maps all read a multiple of 64 numbers."""
    config = copy.deepcopy(_model().config)
    for part, mlp in ((config.text_config, 448), (config.vision_config, 256)):
        part.update({"hidden_size": 128, "intermediate_size": mlp})
    config.text_config.head_dim = 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return type(_model())(config).eval()


def moved(by):
    """A copy whose weights are moved at random, always in the same way."""
    made = model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return made


@cache
def rows() -> Dataset:
    disable_progress_bars()
    return scenes.build(12, 8)["train"]


def save_model(folder: Path, made=None) -> Path:
    """Another model where one is given."""
    (made or _model()).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def save_rows(folder: Path) -> Path:
    rows().save_to_disk(str(folder))
    return folder


def tree(folder: Path) -> dict[str, int]:
    """Everything below a folder: names to times of change."""
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def written_text(folder: Path) -> dict[str, str]:
    """Every text file below a folder, and the metadata of every safetensors file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as stored:
                found[path.name] = json.dumps(stored.metadata())
        elif path.is_file():
            found[path.name] = path.read_text(encoding="utf-8", errors="replace")
    return found
