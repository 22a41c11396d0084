"""Removable units (heads, key-value groups, MLP channels) as rows and columns of named tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """A run of equal blocks, one a unit: unit `u` owns `[offset + u * block, offset + (u + 1) * block)`."""

    offset: int
    block: int


@dataclass(frozen=True)
class Axis:
    """One dimension of one tensor that goes by unit.

    Attributes:
        tensor: name in the state dict.
        dim: the dimension.
        size: its length.
        units: the number of units it holds.
        owned: how much of the length goes by unit; the rest stays (keys and values when only query heads go).
        segments: where the units lie; None while a fused tensor's layout is not yet known.
    """

    tensor: str
    dim: int
    size: int
    units: int
    owned: int
    segments: tuple[Segment, ...] | None = None

    @property
    def known_segments(self) -> tuple[Segment, ...]:
        """The segments. Raises ValueError while the layout is unknown."""
        if self.segments is None:
            raise ValueError(f"the layout of {self.tensor} is not known")
        return self.segments

    def size_with(self, units: int) -> int:
        """Length when only `units` units stay."""
        return self.size - self.owned // self.units * (self.units - units)

    def indices(self, units: Sequence[int]) -> Tensor:
        """Ascending int64 positions along the dimension that `units` own, and those that no unit owns."""
        segments = self.known_segments
        owned = torch.zeros(self.size, dtype=torch.bool)
        mine = torch.zeros(self.size, dtype=torch.bool)
        chosen = torch.zeros(self.units, dtype=torch.bool)
        chosen[torch.as_tensor(list(units), dtype=torch.long)] = True
        for segment in segments:
            end = segment.offset + self.units * segment.block
            owned[segment.offset : end] = True
            mine[segment.offset : end] = chosen.repeat_interleave(segment.block)
        return torch.nonzero(mine | ~owned).flatten()

    def sums(self, values: Tensor) -> Tensor:
        """Sum `values`, shaped like the tensor, over everything that each unit owns.

        Returns:
            fp32 tensor of shape (units,).
        """
        others = [dim for dim in range(values.ndim) if dim != self.dim]
        return self.by_unit(values.sum(dim=others, dtype=torch.float32) if others else values.float())

    def by_unit(self, along: Tensor) -> Tensor:
        """Sum fp32 values (size,), one for each position along the dimension, over each unit's positions: (units,)."""
        total = torch.zeros(self.units, dtype=torch.float32, device=along.device)
        for segment in self.known_segments:
            part = along[segment.offset : segment.offset + self.units * segment.block]
            total += part.view(self.units, segment.block).sum(dim=1)
        return total


@dataclass(frozen=True)
class Site:
    """One attention or MLP block: the tensors that write its units and the one linear map that reads them.

    Attributes:
        prefix: name of the module that holds the reader.
        layer: index of the decoder layer; None for a block outside the decoder that the same config key drives.
        writers: axes along which the units are made (q, k, v; gate, up; their biases).
        reader: the axis of `o_proj` or `down_proj`, dimension 1 of a Linear's weight.
    """

    prefix: str
    layer: int | None
    writers: tuple[Axis, ...]
    reader: Axis

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Every axis that goes by unit, the reader last."""
        return (*self.writers, self.reader)

    @property
    def reader_module(self) -> str:
        """Name of the Linear that reads the units."""
        return self.reader.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class Group:
    """All sites that one pair of config keys drives together.

    Attributes:
        kind: "heads" or "channels".
        keys: the config keys that say how many units there are, with their present values.
        units: units in each site (heads or key-value groups; channels).
        unit: what one unit is, in words.
        sites: one entry a block, decoder layers in order first.
        stride: how many units stay must be a multiple of this (query heads: as many in every group).
        fixed: keys that must be written down when the number of units changes (`head_dim`).
    """

    kind: str
    keys: dict[str, int]
    units: int
    unit: str
    sites: tuple[Site, ...]
    stride: int = 1
    fixed: dict[str, int] = field(default_factory=dict)

    def values(self, units: int) -> dict[str, int]:
        """What the config says when `units` units stay in every site."""
        return {key: value * units // self.units for key, value in self.keys.items()} | self.fixed

    def with_sites(self, sites: Sequence[Site]) -> "Group":
        """The same group over other sites."""
        return replace(self, sites=tuple(sites))


def layout_candidates(axis: Axis, parts: Sequence[int]) -> list[tuple[Segment, ...]]:
    """The ways in which fused projections are laid out along an axis, most usual first.

    Args:
        axis: the axis; its owned part starts at 0.
        parts: lengths of q, k and v where the three are fused; empty otherwise.
    """
    halves = (axis.owned // 2, axis.owned // 2) if axis.owned % (2 * axis.units) == 0 else ()
    found = []
    for lengths in (tuple(parts), halves, (axis.owned,)):
        if lengths and sum(lengths) == axis.owned and all(length % axis.units == 0 for length in lengths):
            offsets = [sum(lengths[:i]) for i in range(len(lengths))]
            found.append(tuple(Segment(o, n // axis.units) for o, n in zip(offsets, lengths, strict=True)))
    return list(dict.fromkeys(found))
