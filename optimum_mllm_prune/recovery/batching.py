"""Rows to training batches: the collator, and a sampler that keeps rows with and without images apart."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import ProcessorMixin

from ..calibration.batches import make_batch
from ..calibration.row_forms import Row
from ..calibration.rows import Rows


class NumberedRows(Sequence[tuple[int, Row]]):
    """Rows with their positions, by which a cache finds what the teacher said of them."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[int, Row]:
        return position, self.rows[position]


class RowCollator:
    """Numbered rows to one batch: what the processor makes of them, `labels`, `modality` and `row_number` (rows,)."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor

    def __call__(self, numbered: Sequence[tuple[int, Row]]) -> dict[str, Any]:
        batch = make_batch(self.processor, [row for _, row in numbered])
        numbers = torch.tensor([number for number, _ in numbered])
        return {**batch.inputs, "labels": batch.labels, "modality": batch.modality, "row_number": numbers}


class HomogeneousSampler(Sampler[int]):
    """Random order in which every batch is of rows with images, or of rows without: processors refuse a mixture.

    Args:
        with_images: a flag for each row.
        batch_size: rows of a batch on one process. Rows that fill no batch of their kind are left out of that epoch,
            others in the next.
        generator: as of torch's RandomSampler; None takes a seed from the global one.
    """

    def __init__(self, with_images: Sequence[bool], batch_size: int, generator: torch.Generator | None = None) -> None:
        self.kinds = [[i for i, flag in enumerate(with_images) if flag == kind] for kind in (True, False)]
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return sum(len(kind) // self.batch_size * self.batch_size for kind in self.kinds)

    def __iter__(self) -> Iterator[int]:
        generator = self.generator
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        blocks = [block for kind in self.kinds for block in self._blocks(kind, generator)]
        for i in torch.randperm(len(blocks), generator=generator).tolist():
            yield from blocks[i]

    def _blocks(self, kind: list[int], generator: torch.Generator) -> list[list[int]]:
        order = [kind[i] for i in torch.randperm(len(kind), generator=generator).tolist()]
        whole = len(order) // self.batch_size * self.batch_size
        return [order[i : i + self.batch_size] for i in range(0, whole, self.batch_size)]
