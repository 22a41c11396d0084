"""Scores of the residual stream's dimensions: one each, since they are the same in every layer.

Where a projector's inner channels are sized by the same config key, these are scored beside them by their weights:
they are the subject's groups, and as many of them go.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbone import kind_of_norm
from ..backbone.norms import NormKind
from .observer import Subject, by_sample
from .weights import RandomUnits, UnitMagnitude


class HiddenActivation(UnitMagnitude):
    """Size of a dimension at the outputs of the norms: mean of |x| over real tokens, L2 over calibration rows, summed
    over the norms.

    Source: Muralidharan et al., Minitron (arXiv 2407.14679), section 2.2, embedding channels.

    Beside it each dimension's part in what the norms divide by: the mean over real tokens of x^2 / mean(x^2).

    A projector's inner channels are scored by their weights, which retained more on the digit scenes than the size of
    what they give.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject, "l2")
        self.by_norm = torch.zeros(len(subject.hidden.norms), subject.hidden.size, dtype=torch.float64)
        self.energy = torch.zeros_like(self.by_norm)

    def attach(self) -> Sequence[RemovableHandle]:
        """One hook a norm."""
        norms = [self.subject.model.get_submodule(name) for name in self.subject.hidden.norms]
        kinds = [kind_of_norm(norm) for norm in norms]
        hooks = [self._hook(index, kind) for index, kind in enumerate(kinds)]
        return [norm.register_forward_hook(hook, with_kwargs=True) for norm, hook in zip(norms, hooks, strict=True)]

    def accumulators(self) -> Iterable[Tensor]:
        """Of all norms."""
        return self.by_norm, self.energy

    def scores(self) -> dict[str, Tensor]:
        """{"hidden": (hidden,), "hidden_energy": (norms, hidden)}, and "projector" (sites, units) where there is one.

        Of a module that does not norm, all energies are 0.
        """
        mean = self.energy.mean(dim=1, keepdim=True)
        energy = (self.energy / mean.clamp(min=torch.finfo(torch.float64).tiny)).float()
        return {"hidden": self.by_norm.sqrt().sum(dim=0).float(), "hidden_energy": energy} | super().scores()

    def _hook(self, index: int, kind: NormKind | None) -> Callable[[nn.Module, tuple, dict, Tensor], None]:
        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if kind is not None:
                entering, here = by_sample((*args, *kwargs.values())[0], self.real)
                row = entering[here]
                squares = (row - row.mean(dim=1, keepdim=True) if kind.centres else row).square()
                shares = squares / squares.mean(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
                self.energy[index] += shares.sum(dim=0, dtype=torch.float64).cpu()
            states, real = by_sample(output, self.real)
            means = (states.abs() * real.unsqueeze(-1)).sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)
            self.by_norm[index] += means.double().square().sum(dim=0).cpu()

        return after


class HiddenMagnitude(UnitMagnitude):
    """L2 norm of all weights that belong to a dimension, whatever reads or writes it; a tied tensor counts once."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject, "l2")

    def scores(self) -> dict[str, Tensor]:
        """{"hidden": (hidden,)}, and "projector" (sites, units) where there is one."""
        distinct = {(id(self.subject.model.get_parameter(a.tensor)), a.dim): a for a in self.subject.hidden.axes}
        squares = [self._along(axis).cpu() for axis in distinct.values()]
        return {"hidden": torch.stack(squares).sum(dim=0).sqrt()} | super().scores()


class RandomHidden(RandomUnits):
    """Uniform random scores, from the seed."""

    def scores(self) -> dict[str, Tensor]:
        """{"hidden": (hidden,)}, and "projector" (sites, units) where there is one."""
        generator = torch.Generator().manual_seed(self.subject.seed + 1)
        return {"hidden": torch.rand(self.subject.hidden.size, generator=generator)} | super().scores()
