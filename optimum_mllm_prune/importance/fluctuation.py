"""How much the inputs of `o_proj` and `down_proj` vary: what is constant can be left out and made up for."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .observer import TINY, ByModality, Statistics, Subject, apart, column_norms, hook_readers, zeros


class Fluctuation(ByModality):
    """Variance of an input channel over real tokens times ||W_:j||_2^2, summed over a unit's columns of the reader.

    Source: An et al., FLAP (arXiv 2312.11983), its weighted input feature variance; divided by the number of tokens
    and not by one less, which ranks alike. FLAP standardizes scores so as to compare them across layers; here all
    layers lose as many units, so nothing is compared and nothing standardized.

    FLAP adds W x of the removed channels' means to the reader's bias. The repair covers that where the config has such
    biases: its fit has a constant input, and errs no more than the bias alone can.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.sums, self.squares = zeros(subject, per_column=True), zeros(subject, per_column=True)
        self.tokens = {kind: found.new_zeros(found.shape[:2]) for kind, found in self.sums.items()}

    def attach(self) -> Sequence[RemovableHandle]:
        """One hook a reader."""
        return hook_readers(self.subject, self._observe)

    def accumulators(self) -> Iterable[Tensor]:
        """Of all kinds."""
        return [*self.sums.values(), *self.squares.values(), *self.tokens.values()]

    def statistics(self) -> dict[str, Statistics]:
        """ "sums", "squares" (sites, 3, columns) of ||W_:j||_2 x_j; "tokens" (sites, 3)."""
        found = {}
        for group in self.subject.groups:
            norms = column_norms(self.subject, group)
            sums, squares = self.sums[group.kind] * norms, self.squares[group.kind] * norms.square()
            found[group.kind] = {"sums": sums, "squares": squares, "tokens": self.tokens[group.kind]}
        return found

    @staticmethod
    def combined(statistics: Statistics, weights: Tensor, units: int) -> Tensor:
        """(sites, units): the variance around the weighted mean."""
        tokens = (statistics["tokens"] @ weights).clamp(min=TINY).unsqueeze(1)
        sums, squares = (torch.einsum("smc,m->sc", statistics[name], weights) for name in ("sums", "squares"))
        variances = (squares / tokens - (sums / tokens).square()).clamp(min=0)
        return variances.unflatten(-1, (units, -1)).sum(dim=-1)

    def _observe(self, kind: str, index: int, states: Tensor) -> None:
        for number, tokens in enumerate(apart(states, self.modality_at(kind, index))):
            # In fp64 before anything is squared: what is far from zero and varies little is a difference of two sums.
            tokens = tokens.double()
            self.sums[kind][index, number] += tokens.sum(dim=0).cpu()
            self.squares[kind][index, number] += tokens.square().sum(dim=0).cpu()
            self.tokens[kind][index, number] += len(tokens)
