"""A setting as YAML reads it, brought to the type that its argument is declared with."""

import types
from enum import Enum
from typing import Any, get_args

from ..errors import UserInputError


# What an argument of these types is, the widest first; of others, such as dicts, transformers judges itself.
_WORDS = {str: "a word", float: "a number", int: "a whole number", bool: "true or false"}


def of_its_type(key: str, value: Any, declared: Any) -> Any:
    """The value of an argument.

    Args:
        key: its name.
        value: as it was given. YAML reads `1e-4` as a text and `no` as False.
        declared: its type.

    Raises:
        UserInputError: it is of another type.
    """
    kinds = set(get_args(declared) or (declared,))
    if value is None and types.NoneType in kinds:
        return value
    if value is False and any(_is_choice(kind) for kind in kinds):
        return "no"
    wanted = next((kind for kind in _WORDS if kind in kinds), None)
    if wanted is None or kinds - {*_WORDS, types.NoneType} or (bool in kinds and isinstance(value, bool)):
        return value
    try:
        return _converted(value, wanted)
    except (TypeError, ValueError):
        raise UserInputError(f"'{key}' must be {_WORDS[wanted]}, got '{value}'.") from None


def _is_choice(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _converted(value: Any, wanted: type) -> Any:
    """Raises TypeError or ValueError where it cannot be."""
    if wanted is str:
        return str(value)
    if isinstance(value, bool) or wanted is bool:
        raise TypeError
    number = float(value)
    if wanted is int and not number.is_integer():
        raise ValueError
    return wanted(value if isinstance(value, int) else number)
