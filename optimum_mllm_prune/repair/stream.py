"""Whether what a map gives is simply added to the residual stream that its layer gives, found by switching it off."""

import torch
from torch import nn

from ..calibration.walk import Walk


def share_in_stream(walk: Walk, map: nn.Linear) -> float | None:
    """How often the map's output is in what the present layer gives: 1, or less where residuals are scaled.

    None where it is not simply added, as where a norm comes between; then no target for the stream is one for the map.
    """
    _, given, leaving = walk.through(0, map)
    if given.shape != leaving.shape:
        return None
    handle = map.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    try:
        _, _, without = walk.through(0, map)
    finally:
        handle.remove()
    given, added = given.double(), leaving.double() - without.double()
    share = ((added * given).sum() / given.square().sum().clamp(min=1e-300)).item()
    rounding = 8 * torch.finfo(leaving.dtype).eps * leaving.double().abs().max()
    return share if share and (added - share * given).abs().max() <= rounding else None
