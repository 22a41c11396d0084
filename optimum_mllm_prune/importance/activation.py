"""Scores from forward activations at the inputs of `o_proj` and `down_proj`."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..calibration.batches import MODALITIES
from .observer import (
    TINY,
    ByModality,
    Statistics,
    Subject,
    apart,
    by_sample,
    column_norms,
    hook_readers,
    zeros,
)


class Activation(ByModality):
    """Size of a unit's output: L2 over its channels, mean over real tokens, L2 over calibration rows.

    Source: Muralidharan et al., Minitron (arXiv 2407.14679), section 2.2: mean over tokens, L2 over rows.

    Where modalities are weighted, the mean over a row's T tokens is sum_t w_t s_t / (T W), with W the mean over rows
    of sum_t w_t / T: one number for all rows, so that products of the modalities' sums say all that must be kept.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.products = zeros(subject, per_column=False, shape=(len(MODALITIES), len(MODALITIES)))
        self.shares = {kind: found.new_zeros(found.shape[:2]) for kind, found in self.products.items()}

    def attach(self) -> Sequence[RemovableHandle]:
        """One hook a reader."""
        return hook_readers(self.subject, self._observe)

    def accumulators(self) -> Iterable[Tensor]:
        """Of all kinds."""
        return [*self.products.values(), *self.shares.values()]

    def statistics(self) -> dict[str, Statistics]:
        """Sums over rows: "products" (sites, 3, 3, units) of the modalities' parts of a mean, "shares" (sites, 3)."""
        return {kind: {"products": products, "shares": self.shares[kind]} for kind, products in self.products.items()}

    @staticmethod
    def combined(statistics: Statistics, weights: Tensor, units: int) -> Tensor:
        """(sites, units); weights that are so many times larger change nothing."""
        shares = statistics["shares"] / statistics["shares"].sum(dim=1, keepdim=True).clamp(min=1)
        squares = torch.einsum("smnu,m,n->su", statistics["products"], weights, weights)
        return squares.sqrt() / (shares @ weights).clamp(min=TINY).unsqueeze(1)

    def _observe(self, kind: str, index: int, states: Tensor) -> None:
        states, modality = by_sample(states, self.modality_at(kind, index))
        units = self.products[kind].shape[-1]
        sizes = states.unflatten(-1, (units, -1)).norm(dim=-1)
        masks = torch.stack([modality == one for one in MODALITIES], dim=1).to(sizes)
        tokens = masks.sum(dim=(1, 2)).clamp(min=1)
        means = (masks @ sizes / tokens[:, None, None]).double()
        self.products[kind][index] += torch.einsum("rmu,rnu->mnu", means, means).cpu()
        self.shares[kind][index] += (masks.sum(dim=2) / tokens[:, None]).double().sum(dim=0).cpu()


class Wanda(ByModality):
    """Weight norm x input norm, summed over a unit's columns of the reader: sum_j ||W_:j||_2 ||x_j||_2.

    Source: Sun et al., Wanda (arXiv 2306.11695), equation 1, taken per input column as in its structured form. Where
    modalities are weighted, ||x_j||_2^2 is the sum over tokens of w_t x_tj^2.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.squares = zeros(subject, per_column=True)

    def attach(self) -> Sequence[RemovableHandle]:
        """One hook a reader."""
        return hook_readers(self.subject, self._observe)

    def accumulators(self) -> Iterable[Tensor]:
        """Of all kinds."""
        return self.squares.values()

    def statistics(self) -> dict[str, Statistics]:
        """ "squares" (sites, 3, columns): ||W_:j||_2^2 times the sum over tokens of x_j^2."""
        return {
            group.kind: {"squares": self.squares[group.kind] * column_norms(self.subject, group).square()}
            for group in self.subject.groups
        }

    @staticmethod
    def combined(statistics: Statistics, weights: Tensor, units: int) -> Tensor:
        """(sites, units)."""
        columns = torch.einsum("smc,m->sc", statistics["squares"], weights).sqrt()
        return columns.unflatten(-1, (units, -1)).sum(dim=-1)

    def _observe(self, kind: str, index: int, states: Tensor) -> None:
        for number, tokens in enumerate(apart(states, self.modality_at(kind, index))):
            self.squares[kind][index, number] += tokens.square().sum(dim=0, dtype=torch.float64).cpu()
