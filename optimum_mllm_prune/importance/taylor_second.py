"""Taylor scores with the second order, its Hessian taken as the diagonal of the Fisher information.

Source: Ma et al., LLM-Pruner (arXiv 2305.11627), equations 3-5. H_kk is the mean over rows of g_n^2, where g_n is the
gradient of row n's own loss, the mean over its answer tokens. So each batch must be one row, and rows count alike.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..backbone import Axis
from ..calibration.batches import Batch
from ..calibration.engine import loss_scale
from ..calibration.processes import added_up, total
from .observer import Block, Observer, Subject, blocks, zeros
from .taylor import hook_weights


class TaylorSecond(Observer):
    """Sum of w^2 mean_n(g_n^2) over the coupled group.

    As with `Taylor`, each gradient is reduced to its units' sums and freed as soon as it is complete.
    """

    backward = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.rows = torch.zeros((), dtype=torch.float64)
        self.sums = zeros(subject, per_column=False, shape=())

    def begin(self, batch: Batch, again: bool = False) -> None:
        """Counts the batch, which stands for one row."""
        super().begin(batch, again)
        self.rows += 0 if again else 1

    def accumulators(self) -> Iterable[Tensor]:
        """Of all kinds, and the number of rows."""
        return *self.sums.values(), self.rows

    def attach(self) -> Sequence[RemovableHandle]:
        """One hook on every parameter that belongs to a unit; those parameters start to require gradients."""
        return hook_weights(self.subject, blocks(self.subject), self._reduce)

    def scores(self) -> dict[str, Tensor]:
        """(sites, units) for each kind."""
        divisor = max(self.rows.item(), 1.0) * loss_scale(self.subject.model) ** 2
        return {kind: (sums / divisor).float() for kind, sums in self.sums.items()}

    def _reduce(self, kind: str, index: int, axis: Axis) -> Callable[[Tensor], None]:
        def reduce(weight: Tensor) -> None:
            product = weight.grad.float().mul_(weight.detach()).square_()
            weight.grad = None
            self.sums[kind][index] += axis.sums(product).cpu().double()

        return reduce


class TaylorMixed(Observer):
    """Sum of |w g - 1/2 w^2 mean_n(g_n^2)| over the coupled group, g the mean of the rows' gradients.

    The absolute value is taken of means over all rows, so that two fp32 numbers a weight must be kept until the last
    row. They are kept for one decoder layer at a time, whose weights alone are differentiated, and all rows are run
    again for the next one: memory is bounded by a layer, and time is so many forward passes as there are layers and
    half as many whole backward passes. Of a launch, the processes' sums are added up before a layer is done.

    Where |w g| is much smaller than 1 the second order hardly counts, and it ranks as `Taylor` does on one batch of
    rows with equally long answers.
    """

    backward = True
    joint = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.part: list[Block] = []
        self.parts = _parts(subject)
        self.passes = len(self.parts)
        self.rows = 0
        self.means: dict[tuple[str, int, Axis], tuple[Tensor, Tensor]] = {}
        self.sums = zeros(subject, per_column=False, shape=())
        self.done = torch.zeros((), dtype=torch.float64)

    def begin(self, batch: Batch, again: bool = False) -> None:
        """Counts the batch, which stands for one row."""
        super().begin(batch, again)
        self.rows += 1

    def accumulators(self) -> Iterable[Tensor]:
        """Of all kinds, and the number of layers that are done."""
        return *self.sums.values(), self.done

    def attach(self) -> Sequence[RemovableHandle]:
        """One hook on every parameter of the next layer's units, which starts to require gradients."""
        self.part = self.parts[int(self.done)]
        # With rows that pass a layer by, as cross-attention is without an image, the loss depends on none of them.
        start = self.subject.model.get_output_embeddings().register_forward_hook(_differentiable)
        return [start, *hook_weights(self.subject, self.part, self._add)]

    def scores(self) -> dict[str, Tensor]:
        """(sites, units) for each kind."""
        return {kind: sums.float() for kind, sums in self.sums.items()}

    def _add(self, kind: str, index: int, axis: Axis) -> Callable[[Tensor], None]:
        def add(weight: Tensor) -> None:
            gradient = weight.grad.float().div_(loss_scale(self.subject.model))
            weight.grad = None
            first, second = self._sums_of(kind, index, axis)
            first += gradient
            second.addcmul_(gradient, gradient)

        return add

    def end(self) -> None:
        """Reduce what was kept of the present layer to its units' sums, and free it."""
        super().end()
        rows = max(total(self.rows), 1.0)
        for kind, index, site in self.part:
            for axis in site.axes:
                first, second = self._sums_of(kind, index, axis)
                added_up([first, second])
                weight = self.subject.model.get_parameter(axis.tensor).detach().float()
                terms = (weight * first - weight.square().mul_(second).div_(2)).div_(rows).abs_()
                self.sums[kind][index] += axis.sums(terms).cpu().double()
        self.means, self.rows = {}, 0
        self.done += 1

    def _sums_of(self, kind: str, index: int, axis: Axis) -> tuple[Tensor, Tensor]:
        """Of a weight's gradients and of their squares over the rows so far, fp32 in its shape."""
        if (kind, index, axis) not in self.means:
            weight = self.subject.model.get_parameter(axis.tensor)
            zero = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
            self.means[kind, index, axis] = (zero, zero.clone())
        return self.means[kind, index, axis]


def _parts(subject: Subject) -> list[list[Block]]:
    """The blocks of each decoder layer; those outside the decoder go with the first."""
    found: dict[int, list[Block]] = {}
    for block in blocks(subject):
        found.setdefault(block[2].layer or 0, []).append(block)
    return list(found.values())


def _differentiable(_: torch.nn.Module, __: tuple, output: Tensor) -> Tensor:
    return output if output.requires_grad else output.requires_grad_(True)
