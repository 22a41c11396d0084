"""Seconds of each stage of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings(dict[str, float]):
    """Name of a stage to the wall-clock seconds spent in it so far."""

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """What runs inside is added to a stage, unless it raises."""
        start = time.perf_counter()
        yield
        self[stage] = self.get(stage, 0.0) + time.perf_counter() - start
