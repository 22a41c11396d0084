"""The vision tower runs once a batch, and gives the same ever after."""

import pytest
import torch
from families import FAMILIES
from importance.naive import batch_of

from optimum_mllm_prune.backbone.finding import image_encoder
from optimum_mllm_prune.calibration.engine import evaluating
from optimum_mllm_prune.calibration.shelf import Shelf
from optimum_mllm_prune.calibration.tower import Tower


# A tower that gives states of its layers, one whose output is written into, one with features for several layers.
FEW = ["llava_llama_gqa", "qwen2_5_vl", "qwen3_vl", "gemma3"]


@pytest.mark.parametrize("room", [0, 10**9])
@pytest.mark.parametrize("family", FEW)
def test_later_passes_give_the_same_without_it(family, room):
    model, runs = FAMILIES[family].build(dtype=torch.float32), []
    inputs = batch_of(family, model.config).inputs
    # Of a module inside: the tower's own forward is what is replaced.
    next(iter(image_encoder(model).children())).register_forward_hook(lambda *_: runs.append(1))
    tower = Tower(model, Shelf(room))
    with evaluating(model), torch.no_grad():
        expected, once = model(**inputs).logits, len(runs)
        with tower.once(0):
            first = model(**inputs).logits
        with tower.once(0):
            second = model(**inputs).logits
        with tower.once(1):
            other = model(**inputs).logits
        with tower.once(1):
            again = model(**inputs).logits
    assert len(runs) == 3 * once > 0
    assert all(torch.equal(logits, expected) for logits in (first, second, other, again))


def test_a_model_without_a_tower(monkeypatch):
    model = FAMILIES["llava_llama_gqa"].build(dtype=torch.float32)
    monkeypatch.setattr("optimum_mllm_prune.calibration.tower.image_encoder", lambda _: None)
    shelf = Shelf(10**9)
    with Tower(model, shelf).once(0), torch.no_grad():
        model(**batch_of("llava_llama_gqa", model.config).inputs)
    assert shelf.bytes_here == 0
