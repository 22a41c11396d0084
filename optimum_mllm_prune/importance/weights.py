"""Scores from the weights alone: magnitude, and chance."""

from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm
from tqdm.auto import tqdm

from ..backbone import Axis, Group, in_memory, weight_of
from .observer import Observer, Subject


class LayerMagnitude(Observer):
    """Sum of |w| over all weights of a layer."""

    def scores(self) -> dict[str, Tensor]:
        """{"layers": (layers,)}."""
        norms = []
        for layer in self.subject.layers:
            with in_memory(layer):
                norms.append(sum(p.detach().abs().sum(dtype=torch.float32).cpu() for p in layer.parameters()))
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
        for site in tqdm(group.sites, desc=f"Scoring {group.kind}", unit="block", leave=False):
            total = torch.zeros(group.units)
            for axis in site.axes:
                total += axis.by_unit(self._along(axis)).cpu()
            rows.append(total if self.norm == "l1" else total.sqrt())
        return torch.stack(rows)

    def _along(self, axis: Axis) -> Tensor:
        """Sum of |w| or w^2 at each position along an axis, fp32 without a copy of the weight: (size,)."""
        weight = weight_of(self.subject.model, axis.tensor)
        others = [dim for dim in range(weight.ndim) if dim != axis.dim]
        order = 1 if self.norm == "l1" else 2
        norms = vector_norm(weight, order, dim=others, dtype=torch.float32) if others else weight.float().abs()
        return norms if order == 1 else norms.square()


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
