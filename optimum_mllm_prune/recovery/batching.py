"""Rows to training batches: the collator, and a sampler that keeps rows with and without images apart."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from optimum.utils import logging
from torch.utils.data import Sampler
from transformers import ProcessorMixin

from ..calibration.batches import make_batch
from ..calibration.row_forms import Row
from ..calibration.rows import Rows, as_rows
from ..errors import UserInputError


logger = logging.get_logger("optimum.mllm_prune.recovery")


class NumberedRows(Sequence[tuple[int, Row]]):
    """Rows with their positions, by which a cache finds what the teacher said of them."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    @cached_property
    def with_images(self) -> list[bool]:
        """A flag for each row; reads every row, so it is asked once."""
        return self.rows.have_images()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[int, Row]:
        return position, self.rows[position]


def numbered(dataset: Any) -> NumberedRows | dict[str, NumberedRows] | None:
    """The same rows with their positions; of several by name each for itself, and None of none."""
    if dataset is None or isinstance(dataset, NumberedRows):
        return dataset
    if type(dataset) is dict:
        return {name: numbered(one) for name, one in dataset.items()}
    return NumberedRows(as_rows(dataset))


class RowCollator:
    """Numbered rows to one batch: what the processor makes of them, `labels`, `modality` and `row_number` (rows,)."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor

    def __call__(self, numbered: Sequence[tuple[int, Row]]) -> dict[str, Any]:
        """One batch; raises UserInputError as `make_batch` does."""
        batch = make_batch(self.processor, [row for _, row in numbered])
        numbers = torch.tensor([number for number, _ in numbered])
        return {**batch.inputs, "labels": batch.labels, "modality": batch.modality, "row_number": numbers}


class HomogeneousSampler(Sampler[int]):
    """Every batch is of rows with images, or of rows without, because processors refuse a mixture.

    Args:
        with_images: a flag for each row.
        batch_size: rows of a batch on one process. Rows that fill no batch of their kind are left out of that epoch,
            others in the next.
        seed: of the order, which is another in every epoch and the same on every process and after a restart; None
            keeps the rows' own.

    Raises:
        UserInputError: there are too few rows for a single batch.
    """

    def __init__(self, with_images: Sequence[bool], batch_size: int, seed: int | None) -> None:
        self.kinds = [[i for i, flag in enumerate(with_images) if flag == kind] for kind in (True, False)]
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        if not len(self):
            raise UserInputError(
                f"{len(self.kinds[0])} rows with images and {len(self.kinds[1])} without fill no batch of "
                f"{batch_size}, which cannot mix them: set a smaller batch size."
            )
        left_out = len(with_images) - len(self)
        if left_out:
            logger.warning(
                f"{left_out} of {len(with_images)} rows are left out of each pass: batches of {batch_size} do not mix "
                "rows with and without images, and these fill none."
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(len(kind) // self.batch_size * self.batch_size for kind in self.kinds)

    def __iter__(self) -> Iterator[int]:
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed + self.epoch)
        blocks = [block for kind in self.kinds for block in self._blocks(kind, generator)]
        for i in _order(len(blocks), generator):
            yield from blocks[i]

    def _blocks(self, kind: list[int], generator: torch.Generator | None) -> list[list[int]]:
        order = [kind[i] for i in _order(len(kind), generator)]
        whole = len(order) // self.batch_size * self.batch_size
        return [order[i : i + self.batch_size] for i in range(0, whole, self.batch_size)]


def _order(number: int, generator: torch.Generator | None) -> list[int]:
    return list(range(number)) if generator is None else torch.randperm(number, generator=generator).tolist()
