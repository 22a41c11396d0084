"""The processes of a launch: calibration rows are dealt out to them, and what each one sums is added up."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed
from tqdm.auto import tqdm

from ..errors import UserInputError


Part = TypeVar("Part")


def launch(cpu: bool = False) -> PartialState:
    """The launch that this process is one of, perhaps the only one.

    accelerate remembers what it was told first; without a GPU it must be told, or it looks for one.
    """
    return PartialState(cpu=cpu or not torch.accelerator.is_available())


def dealt(parts: Sequence[Part]) -> Sequence[Part]:
    """Every n-th part, n being the number of processes: those of this one."""
    state = launch()
    return parts[state.process_index :: state.num_processes]


def added_up(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over all processes, each of which must call it with as many of the same shapes."""
    state = launch()
    if state.num_processes == 1:
        return
    for tensor in tensors:
        there = tensor.to(state.device).contiguous()
        distributed.all_reduce(there)
        tensor.copy_(there)


def total(number: float) -> float:
    """The sum of a number over all processes, each of which must call it."""
    sum_of_all = torch.tensor(number, dtype=torch.float64)
    added_up([sum_of_all])
    return sum_of_all.item()


def refuse_more_than(parts: int, what: str, mend: str) -> None:
    """Raise UserInputError where there are more processes than parts to deal out.

    Args:
        parts: how many there are.
        what: they are, in the plural.
        mend: what to do instead.
    """
    processes = launch().num_processes
    if processes > parts:
        raise UserInputError(f"{processes} processes cannot share {parts} {what}: {mend}.")


def bar(things: Iterable[Part] | None = None, **options: Any) -> tqdm:
    """A progress bar, which the first process alone shows."""
    return tqdm(things, disable=not launch().is_main_process, **options)
