"""First-order Taylor scores: how much the answer loss would move if a unit were set to zero.

Source: Ma et al., LLM-Pruner (arXiv 2305.11627), equations 3-5; over the answer tokens of multimodal rows as in Huang
et al. (arXiv 2507.20749), section 3.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..backbone import Axis
from ..calibration.batches import Batch
from ..calibration.engine import loss_scale
from ..calibration.processes import added_up, launch, total
from .observer import Block, ByModality, Observer, Statistics, Subject, apart, blocks, hook_readers, zeros


class _OfTheAnswerLoss(Observer):
    """Sums over batches, each weighted by its answer tokens, so that every answer token counts the same."""

    backward = True
    sums: dict[str, Tensor]

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.weight = 0.0
        self.total = torch.zeros((), dtype=torch.float64)

    def begin(self, batch: Batch, again: bool = False) -> None:
        """Counts the batch's answer tokens."""
        super().begin(batch, again)
        self.weight = batch.answer_tokens
        self.total += 0 if again else self.weight

    def accumulators(self) -> Iterable[Tensor]:
        """Of all kinds, and their weight."""
        return *self.sums.values(), self.total

    @property
    def divisor(self) -> float:
        """What turns sums of weighted batches into means of the loss itself."""
        return max(self.total.item(), 1.0) * loss_scale(self.subject.model)


class Taylor(_OfTheAnswerLoss):
    """Sum of |w g| over the coupled group, g the gradient of the mean loss over answer tokens.

    Over several batches: the mean of the batches' sums, weighted by their answer tokens. It still depends on how rows
    are batched, because gradients of one batch cancel before |w g| is taken and those of two batches do not.

    Each gradient is reduced to its units' sums and freed as soon as it is complete, so that the memory above that of
    the activations is one parameter and not one model.

    Of a launch of several processes, each sees some rows of every batch, and gradients are added up before |w g| is
    taken.
    """

    joint = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.sums = zeros(subject, per_column=False, shape=())
        self.own = 1.0

    def begin(self, batch: Batch, again: bool = False) -> None:
        """Counts the answer tokens of the whole batch, of which this process may see a part."""
        Observer.begin(self, batch, again)
        self.weight = total(batch.answer_tokens)
        self.own = batch.answer_tokens / max(self.weight, 1.0)
        self.total += 0 if again else self.weight

    def attach(self) -> Sequence[RemovableHandle]:
        """One hook on every parameter that belongs to a unit; those parameters start to require gradients."""
        return hook_weights(self.subject, blocks(self.subject), self._reduce)

    def scores(self) -> dict[str, Tensor]:
        """(sites, units) for each kind."""
        return {kind: (sums / self.divisor).float() for kind, sums in self.sums.items()}

    def _reduce(self, kind: str, index: int, axis: Axis) -> Callable[[Tensor], None]:
        def reduce(weight: Tensor) -> None:
            product = _of_all(weight.grad, self.own).mul_(weight.detach()).abs_()
            weight.grad = None
            self.sums[kind][index] += self.weight * axis.sums(product).cpu().double()

        return reduce


def _of_all(gradient: Tensor, share: float) -> Tensor:
    """The gradient of the batch's mean loss in fp32, from those of the processes' parts, each of which has a share."""
    gradient = gradient.float()
    if launch().num_processes > 1:
        gradient = gradient * share
        added_up([gradient])
    return gradient


def hook_weights(
    subject: Subject, some: Iterable[Block], reduce: Callable[[str, int, Axis], Callable[[Tensor], None]]
) -> list[RemovableHandle]:
    """Let the weights of some blocks require gradients, and call what `reduce` gives with each that has its own.

    Offloaded weights are left out, unless they are in memory just now.
    """
    handles = []
    for kind, index, site in some:
        for axis in site.axes:
            weight = subject.model.get_parameter(axis.tensor)
            if weight.is_meta:
                continue
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(reduce(kind, index, axis)))
    return handles


class TaylorGroup(_OfTheAnswerLoss, ByModality):
    """|sum of x dL/dx| over the real tokens and channels of a unit, x the input of `o_proj` or `down_proj`.

    Equals |sum of w g| over the unit's columns of that projection, with all weights frozen: no weight gradient is ever
    allocated. L is the mean loss over all answer tokens, however the rows are batched. Where modalities are weighted,
    so is each token's term of the sum; L stays what it is.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.sums = zeros(subject, per_column=False)

    def attach(self) -> Sequence[RemovableHandle]:
        """A tap before every reader, and gradients that start at the token embeddings."""
        embeddings = self.subject.model.get_input_embeddings()
        start = embeddings.register_forward_hook(lambda _, __, output: output.requires_grad_(True))
        return [start, *hook_readers(self.subject, self._tap)]

    def statistics(self) -> dict[str, Statistics]:
        """ "sums" (sites, 3, units) with their signs."""
        return {kind: {"sums": sums / self.divisor} for kind, sums in self.sums.items()}

    @staticmethod
    def combined(statistics: Statistics, weights: Tensor, units: int) -> Tensor:
        """(sites, units)."""
        return torch.einsum("smu,m->su", statistics["sums"], weights).abs()

    def _tap(self, kind: str, index: int, states: Tensor) -> Tensor:
        def add(products: Tensor) -> None:
            units = self.sums[kind].shape[-1]
            for number, tokens in enumerate(apart(products, self.modality_at(kind, index))):
                columns = tokens.sum(dim=0, dtype=torch.float64)
                self.sums[kind][index, number] += self.weight * columns.unflatten(-1, (units, -1)).sum(dim=-1).cpu()

        # Outside the decoder nothing before the tap needs a gradient, so the tap starts one.
        return _Tap.apply(states if states.requires_grad else states.detach().requires_grad_(True), add)


class _Tap(torch.autograd.Function):
    """Passes its input on; in backward hands input * gradient, fp32 in the input's shape, to a function."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, add: Callable[[Tensor], None]) -> Tensor:
        ctx.save_for_backward(states)
        ctx.add = add
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (states,) = ctx.saved_tensors
        ctx.add(states.float() * gradient.float())
        return gradient, None
