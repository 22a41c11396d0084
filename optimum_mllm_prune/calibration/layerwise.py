"""Calibration layer by layer: of offloaded weights those of one decoder layer at a time are in memory."""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbone.weights import in_memory
from ..errors import UserInputError
from .batches import Batch
from .engine import Attachable, answer_loss, attached, begin, evaluating, frozen, loss_scale, run_calibration
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
    """As `run_calibration`, but every layer sees all batches before the next one sees any; so on the way back as well.

    Each layer's weights are fetched once, and where an observer listens to gradients twice. Kept are what the present
    layer gives of all batches, for gradients what every layer gives, and their images as the vision tower sees them;
    on disk, what takes too much memory. Where a later layer looks at more of earlier ones than their output, whole
    passes are made instead, each of which fetches all weights.

    Args:
        model: its weights do not change.
        batches: calibration batches; all are moved to the model's device.
        observers: what listens, at decoder layers and inside them and nowhere else. Each is told of a batch anew at
            every layer.
        layers: the decoder layers.
        progress: keeps what was found, with what the last layer that is done gave of all batches.

    Raises:
        UserInputError: gradients are wanted where a later layer looks at more of earlier ones than their output.
    """
    made = [batch.to(model.device, model.dtype) for batch in batches]
    back = [observer for observer in observers if observer.backward]
    with evaluating(model), torch.no_grad():
        walk = Walk(model, layers, made, way_back=bool(back))
        if walk.skips:
            _forward(walk, [observer for observer in observers if not observer.backward], progress, resumable=not back)
            if back:
                _backward(walk, back, progress)
        elif back:
            raise UserInputError(
                "gradients of a model with offloaded weights need decoder layers that look at nothing but the one "
                "before: load the whole model, or choose an importance without gradients."
            )
        else:
            run_calibration(model, made, observers, layers, backward=False, total=len(made))
            return
    for observer in observers:
        observer.end()


def _forward(walk: Walk, observers: Sequence[Attachable], progress: Progress, resumable: bool) -> None:
    found = progress.of("layers") if resumable else None
    if found is not None:
        restore(observers, found)
        walk.go_on(found)
    with attached(observers):
        for layer in bar(range(walk.layer, len(walk.layers)), desc="Calibrating", unit="layer"):
            walk.advance(begin=partial(begin, observers))
            if resumable:
                finished = layer + 1 == len(walk.layers)
                progress.keep("layers", lambda: state_of(observers) | walk.state(), finished)


def _backward(walk: Walk, observers: Sequence[Attachable], progress: Progress) -> None:
    """Back from the last layer: the gradient of the answer loss with respect to what each layer gives is all that the
    one before it needs to know, beside what it was given."""
    found, numbers = progress.of("layers back"), range(len(walk.batches))
    left = len(walk.layers) if found is None else int(found["layer"])
    for number in numbers:
        gradient = _of_the_loss(walk, number) if found is None else found[_gradient(number)].to(walk.model.device)
        walk.shelf.put(_gradient(number), gradient)
    if found is not None:
        restore(observers, found)
    while walk.layer > left:
        walk.go_back()
    with frozen(walk.model), torch.enable_grad():
        for layer in bar(reversed(range(left)), total=left, desc="Differentiating", unit="layer"):
            walk.go_back()
            with in_memory(walk.layers[layer]), attached(observers):
                for number in numbers:
                    begin(observers, walk.batches[number], again=layer + 1 < len(walk.layers))
                    _differentiate(walk, number)
            if layer:
                progress.keep("layers back", lambda: state_of(observers) | _way_back(walk))


def _way_back(walk: Walk) -> dict[str, Tensor]:
    """Where a walk is, and the gradients with respect to what its present layer is given."""
    names = [_gradient(number) for number in range(len(walk.batches))]
    return {"layer": torch.tensor(walk.layer)} | {name: walk.shelf.get(name) for name in names}


def _of_the_loss(walk: Walk, number: int) -> Tensor:
    """The gradient of a batch's answer loss, scaled, with respect to what the last layer gives."""
    with frozen(walk.model), torch.enable_grad():
        stream = walk.stream(number).detach().requires_grad_()
        with walk.beginning_skipped(number, stream):
            loss = answer_loss(walk.model, walk.batches[number])
        return torch.autograd.grad(loss * loss_scale(walk.model), stream)[0]


def _differentiate(walk: Walk, number: int) -> None:
    """From the gradient with respect to what the present layer gives to that of what it is given."""
    leaf, given = walk.differentiable(number)
    # In the first layer nothing may be listened to.
    if given.requires_grad:
        given.backward(walk.shelf.get(_gradient(number)))
    if leaf is not None:
        walk.shelf.put(_gradient(number), leaf.grad)


def _gradient(number: int) -> str:
    return f"gradient {number}"
