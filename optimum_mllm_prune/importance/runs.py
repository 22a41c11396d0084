"""Runs of neighbouring layers, scored as wholes: how they lie in a tensor."""

import torch
from torch import Tensor


# What such scores are called among the others.
RUNS = "layer_runs"


def runs_within(num_layers: int) -> Tensor:
    """bool (layers, layers): where [l, n - 1] is a run, one of n layers from l on."""
    return torch.ones(num_layers, num_layers, dtype=torch.bool).tril().flipud()
