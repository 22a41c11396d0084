"""How much the inputs of `o_proj` and `down_proj` vary: what is constant can be left out and made up for."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .observer import Observer, Subject, by_sample, hook_readers


class Fluctuation(Observer):
    """Variance of an input channel over real tokens times ||W_:j||_2^2, summed over a unit's columns of the reader.

    Source: An et al., FLAP (arXiv 2312.11983), its weighted input feature variance; divided by the number of tokens
    and not by one less, which ranks alike. FLAP standardizes scores so as to compare them across layers; here all
    layers lose as many units, so nothing is compared and nothing standardized.

    FLAP adds W x of the removed channels' means to the reader's bias. The repair covers that where the config has such
    biases: its fit has a constant input, and errs no more than the bias alone can.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        # Sums of differences from the first batch's mean, in (sites, columns): small, so that little cancels.
        self.near: dict[tuple[str, int], Tensor] = {}
        self.sums, self.squares = (
            {g.kind: torch.zeros(len(g.sites), g.sites[0].reader.size, dtype=torch.float64) for g in subject.groups}
            for _ in range(2)
        )
        self.tokens = {g.kind: torch.zeros(len(g.sites), 1, dtype=torch.float64) for g in subject.groups}

    def attach(self) -> Sequence[RemovableHandle]:
        """One hook a reader."""
        return hook_readers(self.subject, self._observe)

    def scores(self) -> dict[str, Tensor]:
        """(sites, units) for each kind."""
        found = {}
        for group in self.subject.groups:
            weights = [self.subject.model.get_parameter(site.reader.tensor) for site in group.sites]
            columns = torch.stack([w.detach().float().norm(dim=0).square().cpu() for w in weights])
            tokens = self.tokens[group.kind].clamp(min=1)
            variances = self.squares[group.kind] / tokens - (self.sums[group.kind] / tokens).square()
            products = columns * variances.clamp(min=0).float()
            found[group.kind] = products.unflatten(-1, (group.units, -1)).sum(dim=-1)
        return found

    def _observe(self, kind: str, index: int, states: Tensor) -> None:
        states, real = by_sample(states, self.real)
        tokens = states[real]
        tokens = tokens - self.near.setdefault((kind, index), tokens.mean(dim=0))
        self.sums[kind][index] += tokens.sum(dim=0, dtype=torch.float64).cpu()
        self.squares[kind][index] += tokens.square().sum(dim=0, dtype=torch.float64).cpu()
        self.tokens[kind][index] += len(tokens)
