"""How fast models generate: in turns, so that what disturbs the machine disturbs all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.generation import BaseStreamer

from ...checkpoint import free_memory
from ...errors import is_out_of_memory
from .decoding import generate


@dataclass(frozen=True)
class Timing:
    """Repeats of one measurement."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Timing":
        """Median and range of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Speed:
    """Of one model at one batch size.

    Attributes:
        first_token_seconds: from the call to the first token of every row: prefill, and what `generate` prepares.
        decode_tokens_per_second: tokens of all rows after the first, by the time from the first to the last.
        first_token_cpu_seconds: the same in CPU seconds of this process, which other processes disturb less.
        decode_tokens_per_cpu_second: likewise.
    """

    first_token_seconds: Timing
    decode_tokens_per_second: Timing
    first_token_cpu_seconds: Timing
    decode_tokens_per_cpu_second: Timing


@dataclass(frozen=True)
class Runner:
    """A model and how to make its inputs for a number of rows."""

    model: PreTrainedModel
    inputs: Callable[[int], Mapping[str, Tensor]]


Run = tuple[list[float], list[float]]
"""Wall-clock and CPU times in seconds: at the call, and as each token came."""


def measure_speeds(
    runners: Mapping[str, Runner], batch_sizes: Sequence[int], new_tokens: int, repeats: int
) -> dict[str, dict[int, Speed | None]]:
    """Time every model at every batch size, one run of each in turn, after one run that does not count.

    Args:
        runners: models by name.
        batch_sizes: rows generated together.
        new_tokens: tokens of each row, at least 2.
        repeats: runs of each that count.

    Returns:
        By name and batch size; None where memory did not suffice.
    """
    found: dict[str, dict[int, Speed | None]] = {name: {} for name in runners}
    total = len(runners) * len(batch_sizes) * (1 + repeats)
    with tqdm(total=total, desc="Measuring speed", unit="run", leave=False) as bar:
        for batch_size in batch_sizes:
            runs = _in_turns(runners, batch_size, new_tokens, 1 + repeats, bar)
            for name in runners:
                found[name][batch_size] = _speed(runs[name][1:], batch_size) if name in runs else None
    return found


def _in_turns(
    runners: Mapping[str, Runner], batch_size: int, new_tokens: int, turns: int, bar: tqdm
) -> dict[str, list[Run]]:
    """The runs of every model for which memory suffices."""
    runs: dict[str, list[Run]] = {name: [] for name in runners}
    for turn in range(turns):
        # Whoever comes first in one turn comes last in the next.
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            run = unless_out_of_memory(lambda name=name: time_run(runners[name], batch_size, new_tokens))
            bar.update()
            if run is None:
                del runs[name]
            else:
                runs[name].append(run)
    return runs


def time_run(runner: Runner, batch_size: int, new_tokens: int) -> Run:
    """Generate once and note the time of every token."""
    inputs, watch = runner.inputs(batch_size), Stopwatch()
    if runner.model.device.type == "cuda":
        torch.cuda.synchronize()
    watch.stamp()
    generate(runner.model, inputs, new_tokens, streamer=watch)
    return watch.wall, watch.cpu


def unless_out_of_memory(work: Callable[[], Run]) -> Run | None:
    """What `work` returns; None where memory did not suffice, which is then freed."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory()
    return None


class Stopwatch(BaseStreamer):
    """Notes when tokens come. They come copied to the CPU, so a GPU has done its work by then."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._prompt_came = False

    def stamp(self) -> None:
        """Note the time."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def put(self, value: Tensor) -> None:
        """Take the prompt, which comes first, or one token of every row."""
        if self._prompt_came:
            self.stamp()
        self._prompt_came = True

    def end(self) -> None:
        """Nothing is left to do."""


def _speed(runs: Sequence[Run], batch_size: int) -> Speed:
    first, rate = [], []
    for clock in (0, 1):
        times = [run[clock] for run in runs]
        first.append(Timing.of([stamps[1] - stamps[0] for stamps in times]))
        rate.append(Timing.of([batch_size * (len(stamps) - 2) / (stamps[-1] - stamps[1]) for stamps in times]))
    return Speed(first[0], rate[0], first[1], rate[1])
