"""Calibration layer by layer: of offloaded weights those of one decoder layer at a time are in memory."""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from .batches import Batch
from .engine import Attachable, attached, begin, evaluating, run_calibration
from .processes import bar
from .progress import Progress, restore, state_of
from .walk import Walk


def run_layer_by_layer(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    observers: Sequence[Attachable],
    layers: nn.ModuleList,
    progress: Progress,
) -> None:
    """As `run_calibration` without gradients, but every layer sees all batches before the next one sees any.

    Each layer's weights are fetched once. Kept are what the present layer gives of all batches, and their images as
    the vision tower sees them. Where a later layer looks at more of earlier ones than their output, whole passes are
    made instead, each of which fetches all weights.

    Args:
        model: its weights do not change.
        batches: calibration batches; all are moved to the model's device.
        observers: what listens, at decoder layers and inside them and nowhere else. Each is told of a batch anew at
            every layer.
        layers: the decoder layers.
        progress: keeps what was found, with what the last layer that is done gave of all batches.
    """
    made = [batch.to(model.device, model.dtype) for batch in batches]
    with evaluating(model), torch.no_grad():
        walk = Walk(model, layers, made)
        if not walk.skips:
            run_calibration(model, made, observers, layers, backward=False, total=len(made))
            return
        found = progress.of("layers")
        if found is not None:
            restore(observers, found)
            walk.go_on(found)
        with attached(observers):
            for layer in bar(range(walk.layer, len(layers)), desc="Calibrating", unit="layer"):
                walk.advance(begin=partial(begin, observers))
                progress.keep("layers", state_of(observers) | walk.state(), finished=layer + 1 == len(layers))
    for observer in observers:
        observer.end()
