"""What a map gives is in the stream as often as is said, or is not simply added to it."""

import copy

import pytest
import torch
from families import FAMILIES
from importance.naive import batch_of

from optimum_mllm_prune.backbone import Backbone, NotExpressibleError
from optimum_mllm_prune.calibration.engine import evaluating
from optimum_mllm_prune.calibration.walk import Walk
from optimum_mllm_prune.repair.stream import share_in_stream


NOT_ADDED = {
    "llava_gemma2": "a norm stands between the MLP and the stream",
    "gemma3": "so it does here",
    "gemma4": "so it does here",
    "glm4v": "so it does here",
    "glm_ocr": "so it does here",
    "mllama": "rows that see no image are masked in its cross-attention layers",
    "llava_opt": "its MLP runs over all tokens of all rows in a single dimension",
}


def whole(family, model, layer):
    found = []
    handle = layer.register_forward_hook(lambda _, __, output: found.append(output))
    with torch.no_grad():
        model(**batch_of(family, model.config).inputs, use_cache=False)
    handle.remove()
    return found[0] if isinstance(found[0], torch.Tensor) else found[0][0]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_share_tells_what_another_weight_would_give(family):
    model = copy.deepcopy(FAMILIES[family].build())
    backbone = Backbone.of(model)
    try:
        site = next(site for site in backbone.channels.sites if site.layer == 1)
    except NotExpressibleError:
        pytest.skip("its MLP is not one of plain maps")
    layers, map = model.get_submodule(backbone.layers_prefix), model.get_submodule(site.reader_module)
    with evaluating(model), torch.no_grad():
        walk = Walk(model, layers, [batch_of(family, model.config)])
        walk.advance()
        share = share_in_stream(walk, map)
        x, given, leaving = walk.through(0, map)
    assert torch.allclose(leaving, whole(family, model, layers[1]), atol=1e-4)
    assert (share is None) == (family in NOT_ADDED)
    if share is None:
        return
    with torch.no_grad():
        map.weight += 0.1 * torch.randn(map.weight.shape, generator=torch.Generator().manual_seed(0))
    expected = leaving + share * (map(x) - given)
    assert torch.allclose(whole(family, model, layers[1]), expected, atol=1e-4)
