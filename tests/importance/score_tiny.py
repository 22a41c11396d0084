"""Runs as a process of its own, alone or under `accelerate launch`: scores the tiny model by several metrics.

    python score_tiny.py FOLDER

Some rows have an image, some none. The first process saves scores and what is told of each calibration in FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpoint import tiny_llava

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.calibration.processes import launch
from optimum_mllm_prune.configuration import PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.importance.scoring import score


WIDTH = ("taylor", "taylor_second", "taylor_mixed", "taylor_group", "activation", "wanda", "fluctuation")
WISHES = {
    **{name: {"ratio": 0.2, "importance": name} for name in (*WIDTH, "reconstruction")},
    **{name: {"num_layers": 2, "importance": name} for name in ("block_influence", "angular", "loss", "merge")},
    "hidden": {"ratio": 0.2, "method": "hidden"},
}


def mixed_rows():
    """Five rows with an image, of two sizes of text, and three without."""
    rows = list(tiny_llava.rows())[:5]
    texts = [(f"What is {n} and {n}{' indeed' * n}?", str(2 * n)) for n in range(3)]
    return [*rows, *({"images": [], "messages": conversation(*text)} for text in texts)]


def conversation(question, answer):
    said = {"user": question, "assistant": answer}
    return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said.items()]


def main(folder):
    torch.set_num_threads(1)
    model, processor = tiny_llava.moved(0.01), tiny_llava.processor()
    backbone = Backbone.of(model)
    told = {}
    for name, wish in WISHES.items():
        scores, told[name] = score(model, processor, backbone, PruningConfig(**wish), mixed_rows())
        if launch().is_main_process:
            (folder / name).mkdir()
            scores.save(folder / name)
    try:
        score(model, processor, backbone, PruningConfig(num_layers=1), mixed_rows()[:1])
    except UserInputError as error:
        told["too few"] = str(error)
    try:
        score(model, processor, backbone, PruningConfig(**WISHES["taylor"]), mixed_rows()[:6])
    except UserInputError as error:
        told["too few of a kind"] = str(error)
    if launch().is_main_process:
        (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
