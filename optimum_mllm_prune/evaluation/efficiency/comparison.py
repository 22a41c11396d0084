"""What pruning gains in speed, and what it could gain at the most."""

from dataclasses import dataclass

from .cost import Cost
from .speed import Speed


@dataclass(frozen=True)
class SpeedUp:
    """Of a model over the baseline.

    Attributes:
        measured: ratio of medians, greater than 1 where the model is faster.
        measured_cpu: the same in CPU seconds, which says something only where the model is on the CPU.
        ideal: what the ratio would be if nothing but operations (prefill) or bytes read (decoding) took time; None
            where these are not known.
    """

    measured: float
    measured_cpu: float
    ideal: float | None

    @property
    def share(self) -> float | None:
        """Measured / ideal."""
        return None if self.ideal is None else self.measured / self.ideal


@dataclass(frozen=True)
class Comparison:
    """Of a model with the baseline at one batch size."""

    prefill: SpeedUp
    decode: SpeedUp


def compare(
    costs: tuple[Cost, Cost], speeds: tuple[Speed | None, Speed | None], batch_size: int, new_tokens: int
) -> Comparison | None:
    """Compare two models, the baseline first.

    The ideal of the prefill is the ratio of operations, that of decoding the ratio of bytes that a step reads: weights
    once, and every row's keys and values (Pope et al. 2022, https://arxiv.org/abs/2211.05102, section 2).

    Returns:
        None where one of the two was not timed.
    """
    before, after = speeds
    if before is None or after is None:
        return None
    read, read_after = (cost.decode_bytes(batch_size, new_tokens) for cost in costs)
    return Comparison(
        prefill=SpeedUp(
            measured=before.first_token_seconds.median / after.first_token_seconds.median,
            measured_cpu=before.first_token_cpu_seconds.median / after.first_token_cpu_seconds.median,
            ideal=costs[0].prefill_flops / costs[1].prefill_flops,
        ),
        decode=SpeedUp(
            measured=after.decode_tokens_per_second.median / before.decode_tokens_per_second.median,
            measured_cpu=after.decode_tokens_per_cpu_second.median / before.decode_tokens_per_cpu_second.median,
            ideal=None if read is None or read_after is None else read / read_after,
        ),
    )
