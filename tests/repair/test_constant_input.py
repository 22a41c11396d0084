"""What the removed inputs gave on average is in the reach of a fit with a bias: it errs no more than FLAP's bias."""

from functools import cache

import pytest
import torch
from families import FAMILIES
from importance.naive import batch_of, seen, subject_of

from optimum_mllm_prune.repair.least_squares import RIDGES, Moments, ridge_solution


FAMILY = "llava_llama_biased"


READERS = ["0.self_attn.o_proj", "0.mlp.down_proj", "2.self_attn.o_proj", "2.mlp.down_proj"]


@cache
def inputs_and_outputs():
    """The model, and of each map inputs and outputs at the real tokens of many rows: (tokens, width) each."""
    model = FAMILIES[FAMILY].build()
    names = [f"{subject_of(model).layers_prefix}.{name}" for name in READERS]
    found = {name: [] for name in names}
    for seed in range(20):
        batch = batch_of(FAMILY, model.config, seed)
        for name, states in seen(model, batch, names).items():
            found[name].append([side[batch.modality != 0] for side in states])
    return model, {name: [torch.cat(side) for side in zip(*pairs, strict=True)] for name, pairs in found.items()}


@pytest.mark.parametrize("number", range(len(READERS)), ids=READERS)
def test_it_errs_no_more_than_the_bias_that_flap_adds(number):
    model, found = inputs_and_outputs()
    name, (x, y) = list(found.items())[number]
    assert len(x) > 2 * x.shape[1]
    weight, bias = (tensor.detach().double() for tensor in model.get_submodule(name).parameters())
    removed = torch.arange(x.shape[1]) % 3 == 0
    cut = torch.cat([weight[:, ~removed], bias.unsqueeze(1)], dim=1)
    moments = Moments.of(cut)
    moments.add(torch.cat([x[:, ~removed], x.new_ones(len(x), 1)], dim=1), y)
    flap = torch.cat(
        [weight[:, ~removed], (bias + weight[:, removed] @ x[:, removed].mean(dim=0)).unsqueeze(1)], dim=1
    )
    fitted = moments.error(ridge_solution(moments, RIDGES[0]))
    assert fitted < moments.error(flap - cut) < moments.error()
    # The figures are those of the tokens themselves.
    error = (x[:, ~removed] @ flap[:, :-1].T + flap[:, -1] - y).square().sum() / y.square().sum()
    assert moments.error(flap - cut) == pytest.approx(error.item(), rel=1e-3)
