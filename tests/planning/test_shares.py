"""The split between heads and MLP that leaves the least error, against all splits of LLaVA-1.5-7B by hand."""

import pytest
import torch
from backbone.llava_7b import BACKBONE_PARAMETERS, llava_7b

from optimum_mllm_prune.configuration import PruningConfig
from optimum_mllm_prune.importance import Scores
from optimum_mllm_prune.planning import account


LAYERS, HEADS, CHANNELS = 32, 32, 11008
HEAD = 4 * 4096 * 128 * LAYERS
CHANNEL = 3 * 4096 * LAYERS


def scores_of(dear, seed=0):
    """Errors that rise unit by unit in an order of chance, those of `dear` ten times as high."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for kind, units in (("heads", HEADS), ("channels", CHANNELS)):
        order = torch.rand(LAYERS, units, generator=random).argsort(dim=1)
        errors = torch.rand(LAYERS, units, generator=random).cumsum(dim=1) / units * (1.0 if kind == dear else 0.1)
        tensors[kind] = torch.zeros_like(errors).scatter(1, order, errors)
    return Scores(tensors)


def error(scores, kind, removed):
    if not removed:
        return 0.0
    return sum(row.sort().values[removed - 1].item() for row in scores.tensors[kind]) / LAYERS


@pytest.mark.parametrize("dear", ["heads", "channels"])
@pytest.mark.parametrize("ratio", [0.15, pytest.param(0.4, marks=pytest.mark.slow)])
def test_all_splits(dear, ratio):
    scores = scores_of(dear)
    made = account(llava_7b(), PruningConfig(importance="reconstruction", ratio=ratio), scores)
    remove, errors = ratio * BACKBONE_PARAMETERS, {}
    for heads in range(1, HEADS + 1):
        left = remove - (HEADS - heads) * HEAD
        channels = 64 * round((CHANNELS - left / CHANNEL) / 64)
        if left >= -HEAD / 2 and channels >= 32:
            channels = min(channels, CHANNELS)
            errors[heads, channels] = error(scores, "heads", HEADS - heads) + error(
                scores, "channels", CHANNELS - channels
            )
    best = min(errors, key=errors.get)
    assert (made.sizes.heads or HEADS, made.sizes.channels or CHANNELS) == best
    assert made.notes[-1].endswith(f"of {len(errors)} splits the one with the least error, {errors[best]:.4f}")
    assert (best[0] == HEADS) == (dear == "heads")


def test_without_scores_both_lose_the_same_share():
    wish = {"importance": "reconstruction", "ratio": 0.3}
    auto, even = (account(llava_7b(), PruningConfig(**wish, head_share=share)) for share in ("auto", 1.0))
    assert auto.sizes == even.sizes
