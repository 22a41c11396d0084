"""Scores from forward activations at the inputs of `o_proj` and `down_proj`."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .observer import Observer, Subject, by_sample, hook_readers


class Activation(Observer):
    """Size of a unit's output: L2 over its channels, mean over real tokens, L2 over calibration rows.

    Source: Muralidharan et al., Minitron (arXiv 2407.14679), section 2.2: mean over tokens, L2 over rows.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.squares = _zeros(subject, per_column=False)

    def attach(self) -> Sequence[RemovableHandle]:
        """One hook a reader."""
        return hook_readers(self.subject, self._observe)

    def scores(self) -> dict[str, Tensor]:
        """(sites, units) for each kind."""
        return {kind: squares.sqrt().float() for kind, squares in self.squares.items()}

    def _observe(self, kind: str, index: int, states: Tensor) -> None:
        states, real = by_sample(states, self.real)
        units = self.squares[kind].shape[1]
        sizes = states.unflatten(-1, (units, -1)).norm(dim=-1)
        means = (sizes * real.unsqueeze(-1)).sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)
        self.squares[kind][index] += means.double().square().sum(dim=0).cpu()


class Wanda(Observer):
    """Weight norm x input norm, summed over a unit's columns of the reader: sum_j ||W_:j||_2 ||x_j||_2.

    Source: Sun et al., Wanda (arXiv 2306.11695), equation 1, taken per input column as in its structured form.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.squares = _zeros(subject, per_column=True)

    def attach(self) -> Sequence[RemovableHandle]:
        """One hook a reader."""
        return hook_readers(self.subject, self._observe)

    def scores(self) -> dict[str, Tensor]:
        """(sites, units) for each kind."""
        found = {}
        for group in self.subject.groups:
            weights = [self.subject.model.get_parameter(site.reader.tensor) for site in group.sites]
            columns = torch.stack([w.detach().float().norm(dim=0).cpu() for w in weights])
            products = columns * self.squares[group.kind].sqrt().float()
            found[group.kind] = products.unflatten(-1, (group.units, -1)).sum(dim=-1)
        return found

    def _observe(self, kind: str, index: int, states: Tensor) -> None:
        states, real = by_sample(states, self.real)
        self.squares[kind][index] += states[real].square().sum(dim=0, dtype=torch.float64).cpu()


def _zeros(subject: Subject, per_column: bool) -> dict[str, Tensor]:
    return {
        group.kind: torch.zeros(
            len(group.sites), group.sites[0].reader.size if per_column else group.units, dtype=torch.float64
        )
        for group in subject.groups
    }
