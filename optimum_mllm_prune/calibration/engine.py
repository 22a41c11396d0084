"""The passes over calibration batches, with observers attached."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from .batches import Batch
from .processes import bar


# A power of two, so that only the exponents of gradients move.
FLOAT16_LOSS_SCALE = 8192.0


class Attachable(Protocol):
    """What the engine asks of an observer."""

    backward: bool
    """Whether it listens to gradients."""

    def begin(self, batch: Batch, again: bool = False) -> None:
        """Told of each batch before it runs, and whether it was told of it before."""

    def attach(self) -> Sequence[RemovableHandle]:
        """Put the hooks in place."""

    def end(self) -> None:
        """Told when all batches have run."""

    def accumulators(self) -> Iterable[Tensor]:
        """What adds up over batches."""


def run_calibration(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    observers: Sequence[Attachable],
    layers: nn.ModuleList,
    backward: bool,
    total: int | None = None,
    gradient_checkpointing: bool = False,
    skipped: int = 0,
    after: Callable[[int], None] | None = None,
) -> None:
    """Run every batch through `model` in eval mode; hooks and gradient flags are as before when it returns.

    Args:
        model: the model; its weights do not change.
        batches: calibration batches, moved to the model's device one at a time.
        observers: what listens.
        layers: the decoder layers.
        backward: whether the answer loss, times `loss_scale(model)`, is also differentiated.
        total: number of batches, for the progress bar.
        gradient_checkpointing: recompute each decoder layer's activations in the backward pass.
        skipped: so many of the first batches do not run.
        after: told, after each batch that does, how many there were so far.
    """
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        if backward:
            stack.enter_context(frozen(model))
        if backward and gradient_checkpointing:
            stack.enter_context(_checkpointed(model, layers))
        stack.enter_context(attached(observers))
        for number, batch in enumerate(bar(batches, total=total, desc="Calibrating", unit="batch"), 1):
            if number <= skipped:
                continue
            batch = batch.to(model.device, model.dtype)
            begin(observers, batch)
            _pass(model, batch, backward)
            if after is not None:
                after(number)
    for observer in observers:
        observer.end()


@contextmanager
def attached(observers: Sequence[Attachable]) -> Iterator[None]:
    """Inside, the observers' hooks are in place."""
    with ExitStack() as stack:
        for observer in observers:
            for handle in observer.attach():
                stack.callback(handle.remove)
        yield


def begin(observers: Sequence[Attachable], batch: Batch, again: bool = False) -> None:
    """Tell all observers of the batch that runs next, and whether it ran before."""
    for observer in observers:
        observer.begin(batch, again)


def answer_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean cross entropy over the batch's answer tokens, in fp32."""
    logits, tokens, _ = answer_logits(model, batch)
    return cross_entropy(logits.float(), tokens)


def answer_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What the model foretells of the answer tokens.

    Where the architecture allows, the head is applied only from the first answer token on: the logits of a long prompt
    are never made.

    Returns:
        Logits (tokens, vocabulary) in the model's format, the answer tokens (tokens,) and the row of each (tokens,).
    """
    targets = batch.labels[:, 1:]
    first = int((targets != -100).any(dim=0).nonzero()[0])
    kept = targets.shape[1] - first + 1
    logits = model(**batch.inputs, use_cache=False, **_logits_to_keep(model, kept)).logits[:, -kept:-1]
    answered = targets[:, first:] != -100
    return logits[answered], targets[:, first:][answered], answered.nonzero()[:, 0]


def loss_scale(model: PreTrainedModel) -> float:
    """What the answer loss is multiplied by in backward passes: in float16 most gradients would be rounded to zero.

    Source: Micikevicius et al., Mixed Precision Training (arXiv 1710.03740), section 3.2.
    """
    return FLOAT16_LOSS_SCALE if model.dtype == torch.float16 else 1.0


def _pass(model: PreTrainedModel, batch: Batch, backward: bool) -> None:
    if backward:
        with torch.enable_grad():
            (answer_loss(model, batch) * loss_scale(model)).backward()
    else:
        with torch.no_grad():
            model(**batch.inputs, use_cache=False, **_logits_to_keep(model, 1))


def _logits_to_keep(model: PreTrainedModel, count: int) -> dict[str, Any]:
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return {"logits_to_keep": count}
    return {}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode in here; afterwards every module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient but those that observers switch on."""
    # By name: a weight that is fetched and let go is another object each time.
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None


@contextmanager
def _checkpointed(model: PreTrainedModel, layers: nn.ModuleList) -> Iterator[None]:
    """Gradient checkpointing in eval mode: only the layers themselves, not their dropouts, count as training."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    # It also makes all embeddings require gradients, the vision tower's too, and disabling would not undo that.
    model.disable_input_require_grads()
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        model.gradient_checkpointing_disable()
