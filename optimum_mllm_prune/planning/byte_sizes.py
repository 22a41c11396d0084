"""Sizes in bytes, read and written: GB is 10^9 and GiB is 2^30."""

import re

from ..errors import UserInputError


_UNITS = {"": 1} | {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
_UNITS |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}
_DRAWN = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*([kmgt]i?b)?", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of a size such as 6GB, 7.5 GiB, 800MB or 6000000000; capitals do not matter.

    Raises:
        UserInputError: it cannot be read, or is less than one byte.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    size = round(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if size < 1:
        raise UserInputError(
            f"'{text}' is not a size: write 6GB (a GB is 10^9 bytes), 6GiB (a GiB is 2^30) or a number of bytes."
        )
    return size


def unit_of(largest: float) -> tuple[float, str]:
    """The unit in which sizes up to so many bytes are best drawn: its bytes and its name."""
    return next((unit for unit in _DRAWN if largest >= unit[0]), _DRAWN[-1])


def in_gigabytes(size: float) -> str:
    """A size in words: gigabytes of 10^9 bytes from 0.1 of them up, megabytes below."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
