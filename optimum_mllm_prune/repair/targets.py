"""What a pruned map can be asked to give: the original's outputs, as far as they stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbone import Backbone
from ..calibration.walk import Walk
from ..planning import PruningPlan
from ..surgery.slicing import all_cuts


class Targets:
    """Outputs of the original's maps, and its residual stream, without what a plan removes of them.

    Args:
        original: the whole model.
        backbone: of it.
        plan: what is removed.
    """

    def __init__(self, original: PreTrainedModel, backbone: Backbone, plan: PruningPlan) -> None:
        self._outputs = {
            tensor: next((axis.indices(left) for axis, left in cuts if axis.dim == 0), None)
            for tensor, cuts in all_cuts(original, backbone, plan).items()
            if tensor.endswith(".weight")
        }
        hidden = backbone.hidden if plan.removed_hidden else None
        self._stream = torch.tensor(plan.kept_hidden(hidden.size)) if hidden else None
        projector = hidden.projector if hidden else None
        self.projectors = [site.reader_module for site in projector.sites] if projector else []

    def of_outputs(self, map: str, outputs: Tensor) -> Tensor:
        """What stays of the outputs (..., d) of the map of that name."""
        return _kept(outputs, self._outputs.get(f"{map}.weight"))

    def of_stream(self, states: Tensor) -> Tensor:
        """What stays of states (..., hidden_size)."""
        return _kept(states, self._stream)


def _kept(states: Tensor, places: Tensor | None) -> Tensor:
    return states if places is None else states.index_select(-1, places.to(states.device))


def together(walk: Walk, maps: Sequence[nn.Linear]) -> Iterator[tuple[list[nn.Linear], bool]]:
    """Maps of the walk's present layer in the order they run in, those together that read the same.

    With each whether inputs and outputs are one for each token: an expert sees some of them only. Maps that do not run
    with the first batch are left out.
    """
    met, tokens = walk.met(0, maps), walk.batches[0].modality.shape
    for _, group in groupby(met, key=lambda map: (id(met[map][0]), map.bias is None)):
        alike = list(group)
        sides = [met[alike[0]][0], *(met[map][1] for map in alike)]
        yield alike, all(side is not None and side.shape[:2] == tokens for side in sides)
