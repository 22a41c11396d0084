"""Scores of a trained model in float16 and bfloat16 against those in float32."""

from functools import cache
from pathlib import Path

import pytest
import scenes
import torch
from families import FAMILIES
from importance import naive
from transformers import AutoModelForImageTextToText, AutoProcessor

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.calibration import engine
from optimum_mllm_prune.calibration.engine import loss_scale
from optimum_mllm_prune.configuration import PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.importance import taylor, taylor_second
from optimum_mllm_prune.importance.scoring import score


MODEL = Path(__file__).parents[2] / "examples" / "digit_scenes" / "llava"
SHARE = 0.15


@cache
def rows():
    return list(scenes.build(train=10, test=7, seed=3)["train"])


def model_in(dtype):
    return AutoModelForImageTextToText.from_pretrained(MODEL, dtype=dtype).eval()


def scored(model, name):
    processor = AutoProcessor.from_pretrained(MODEL)
    config = PruningConfig(ratio=SHARE, importance=name)
    return score(model, processor, Backbone.of(model), config, rows())[0].tensors


@cache
def scores_of(dtype, name):
    return scored(model_in(dtype), name)


def weakest(scores):
    """For each layer the set of units that would go."""
    return [set(row[: int(scores.shape[1] * SHARE)].tolist()) for row in scores.argsort(dim=1)]


def rank_correlation(one, other):
    ranks = [scores.argsort(dim=1).argsort(dim=1).float().flatten() for scores in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["taylor", "taylor_group"])
def test_half_precision_ranks_as_float32_does(name, dtype):
    half, full = scores_of(dtype, name), scores_of("float32", name)
    for kind in ("heads", "channels"):
        assert (half[kind] > 0).all()
        assert rank_correlation(half[kind], full[kind]) > 0.98
        torch.testing.assert_close(half[kind].median(), full[kind].median(), rtol=0.05, atol=0)
    pairs = zip(weakest(half["channels"]), weakest(full["channels"]), strict=True)
    assert sum(len(a & b) for a, b in pairs) >= 0.95 * sum(map(len, weakest(full["channels"])))


def test_only_float16_needs_a_larger_loss():
    model = torch.nn.Linear(2, 2)
    scales = {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        model.dtype = dtype
        scales[dtype] = loss_scale(model)
    assert scales == {torch.float16: 2.0**13, torch.bfloat16: 1.0, torch.float32: 1.0}


@pytest.mark.parametrize("name", ["taylor", "taylor_group", "taylor_second", "taylor_mixed"])
def test_how_much_larger_the_loss_is_does_not_matter(name, monkeypatch):
    model = FAMILIES["llava_llama_gqa"].build()
    batches = naive.row_by_row(naive.batch_of("llava_llama_gqa", model.config))
    plain = naive.calibrated(naive.subject_of(model), "width", name, batches)
    for module in (engine, taylor, taylor_second):
        monkeypatch.setattr(module, "loss_scale", lambda _: 2.0**13)
    scaled = naive.calibrated(naive.subject_of(model), "width", name, batches)
    for kind, found in plain.items():
        torch.testing.assert_close(scaled[kind], found, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("dtype", "mend"),
    [("float16", "load the model with dtype bfloat16 or float32"), ("float32", "check the model's weights")],
)
@pytest.mark.parametrize("name", ["taylor", "wanda", "magnitude_l2"])
def test_scores_that_are_not_finite_are_refused(name, dtype, mend):
    model = model_in(dtype)
    with torch.no_grad():
        model.model.language_model.layers[3].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(UserInputError, match=rf"importance '\w+' is not finite in {dtype}: {mend}\.") as refused:
        scored(model, name)
    assert "\n" not in str(refused.value)
