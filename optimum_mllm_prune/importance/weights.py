"""Scores from the weights alone: magnitude, and chance."""

from typing import Literal

import torch
from torch import Tensor

from ..backbone import Group
from .observer import Observer, Subject


class LayerMagnitude(Observer):
    """Sum of |w| over all weights of a layer."""

    def scores(self) -> dict[str, Tensor]:
        """{"layers": (layers,)}."""
        norms = [
            sum(p.detach().abs().sum(dtype=torch.float32).cpu() for p in layer.parameters())
            for layer in self.subject.layers
        ]
        return {"layers": torch.stack(norms)}


class UnitMagnitude(Observer):
    """L1 or L2 norm of all weights that belong to a unit: its rows in the writers, its columns in the reader.

    Args:
        subject: what is scored.
        norm: "l1" or "l2".
    """

    def __init__(self, subject: Subject, norm: Literal["l1", "l2"]) -> None:
        super().__init__(subject)
        self.norm = norm

    def scores(self) -> dict[str, Tensor]:
        """(sites, units) for each kind."""
        return {group.kind: self._group(group) for group in self.subject.groups}

    def _group(self, group: Group) -> Tensor:
        rows = []
        for site in group.sites:
            total = torch.zeros(group.units)
            for axis in site.axes:
                weight = self.subject.model.get_parameter(axis.tensor).detach().float()
                total += axis.sums(weight.abs() if self.norm == "l1" else weight.square()).cpu()
            rows.append(total if self.norm == "l1" else total.sqrt())
        return torch.stack(rows)


class RandomLayers(Observer):
    """Uniform random scores for layers, from the seed."""

    def scores(self) -> dict[str, Tensor]:
        """{"layers": (layers,)}."""
        return {"layers": torch.rand(len(self.subject.layers), generator=_generator(self.subject.seed))}


class RandomUnits(Observer):
    """Uniform random scores for heads and channels, from the seed."""

    def scores(self) -> dict[str, Tensor]:
        """(sites, units) for each kind."""
        generator = _generator(self.subject.seed)
        return {g.kind: torch.rand(len(g.sites), g.units, generator=generator) for g in self.subject.groups}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
