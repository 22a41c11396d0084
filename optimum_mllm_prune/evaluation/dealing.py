"""Rows in batches, dealt out to the processes of a launch."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..calibration.rows import Rows


Result = TypeVar("Result")


def by_batches(
    rows: Rows, batch_size: int, work: Callable[[list[int]], list[Result]], description: str
) -> list[Result]:
    """One result for each row, in their order; every process of a launch must call it and gets all of them.

    Batches are the same whatever the number of processes, rows with images apart from those without.

    Args:
        rows: all of them, on every process.
        batch_size: rows of a batch.
        work: positions of the rows of one batch to their results.
        description: of the progress bar.
    """
    state = PartialState()
    batches = _batches(rows, batch_size)
    own = batches[state.process_index :: state.num_processes]
    done: list[tuple[int, Result]] = []
    for batch in tqdm(own, desc=description, unit="batch", leave=False, disable=not state.is_main_process):
        done += zip(batch, work(batch), strict=True)
    everything = gather_object(done) if state.num_processes > 1 else done
    return [result for _, result in sorted(everything, key=lambda pair: pair[0])]


def _batches(rows: Rows, batch_size: int) -> list[list[int]]:
    flags = rows.have_images()
    kinds = [[position for position, flag in enumerate(flags) if flag == kind] for kind in (True, False)]
    return [kind[start : start + batch_size] for kind in kinds for start in range(0, len(kind), batch_size)]
