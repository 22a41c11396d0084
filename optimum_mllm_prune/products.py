"""Matrix products in float32 of numbers that may be less precise."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def as_precise_as(numbers: Tensor) -> Iterator[None]:
    """Inside, a GPU multiplies float32 matrices as precisely as these numbers are, and sums in float32.

    The 8 significant bits of bfloat16 and the 11 of float16 are exact in TF32, which has 11 and float32's exponents,
    and which tensor cores multiply about eight times as fast as float32. Elsewhere nothing changes.

    Args:
        numbers: what the matrices are made of.
    """
    if not numbers.is_cuda or numbers.dtype not in (torch.bfloat16, torch.float16):
        yield
        return
    # Two names of the same setting; that of torch before 2.9 must not be mixed with the later one.
    settings = torch.backends.cuda.matmul
    name, value = ("fp32_precision", "tf32") if hasattr(settings, "fp32_precision") else ("allow_tf32", True)
    before = getattr(settings, name)
    setattr(settings, name, value)
    try:
        yield
    finally:
        setattr(settings, name, before)
