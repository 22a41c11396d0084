"""The angle by which a run of neighbouring layers turns the residual stream."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.hooks import RemovableHandle

from ..calibration.batches import Batch
from ..calibration.stream import entering, leaving
from .observer import Observer, Subject, by_sample
from .runs import RUNS, runs_within


class AngularDistance(Observer):
    """Mean over real tokens of (1 / pi) arccos(cos(h, h')), h the stream entering a run of layers, h' leaving it.

    Source: Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers (arXiv 2403.17887), whose layers go as
    one run: of all runs of n layers the one with the least distance. They take the last token of a text alone, which
    has seen all others. Here every real token counts: answers are read from image tokens, whose stream must not turn
    either, and of a batch of conversations more is known so from as many rows.

    Taken with hooks on the layers, in fp32. In memory stand the streams entering all layers for one batch.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        layers = len(subject.layers)
        self.total = torch.zeros(layers, layers, dtype=torch.float64)
        self.tokens = torch.zeros((), dtype=torch.float64)
        self.entered: list[Tensor] = []

    def begin(self, batch: Batch, again: bool = False) -> None:
        """Counts the batch's real tokens."""
        super().begin(batch, again)
        self.tokens += self.real.sum().cpu()

    def attach(self) -> Sequence[RemovableHandle]:
        """Two hooks a layer."""
        before = [layer.register_forward_pre_hook(self._enter, with_kwargs=True) for layer in self.subject.layers]
        after = [layer.register_forward_hook(self._leave(index)) for index, layer in enumerate(self.subject.layers)]
        return [*before, *after]

    def accumulators(self) -> Iterable[Tensor]:
        """Of all runs."""
        return self.total, self.tokens

    def scores(self) -> dict[str, Tensor]:
        """In [0, 1]: "layer_runs" (layers, layers), whose entry [l, n - 1] is of the n layers from l on, NaN where
        there are not so many; "layers" (layers,), of runs of one."""
        runs = (self.total / self.tokens.clamp(min=1)).float()
        runs[~runs_within(len(runs))] = math.nan
        return {"layers": runs[:, 0].clone(), RUNS: runs}

    def _enter(self, _: nn.Module, args: tuple, kwargs: dict) -> None:
        self.entered.append(self._directions(entering(args, kwargs)))

    def _leave(self, last: int) -> Callable[[nn.Module, Any, Any], None]:
        def after(_: nn.Module, __: Any, output: Any) -> None:
            left = self._directions(leaving(output))
            for first, entered in enumerate(self.entered):
                self.total[first, last - first] += _turns(entered.to(left.device), left).double().sum().cpu()
            if last == len(self.total) - 1:
                self.entered.clear()

        return after

    def _directions(self, states: Tensor) -> Tensor:
        """Unit vectors at real tokens, (tokens, hidden) fp32."""
        states, real = by_sample(states, self.real)
        return normalize(states[real], dim=-1)


def _turns(one: Tensor, other: Tensor) -> Tensor:
    """Angles between unit vectors (tokens, hidden) in half turns: (tokens,).

    As 2 atan2(|a - b|, |a + b|): the arccos of an fp32 cosine is blind below some 3e-4.
    """
    return 2 / math.pi * torch.atan2((one - other).norm(dim=-1), (one + other).norm(dim=-1))
