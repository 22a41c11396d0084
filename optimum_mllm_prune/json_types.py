"""Whether data out of JSON has the types that a dataclass declares, and how to call these types in a message."""

from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
_PLURALS = {str: "texts", int: "whole numbers", float: "numbers"}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type: a JSON type, `list[...]`, `dict[str, ...]`, a union of these, or `Any`."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def in_words(kind: Any) -> str:
    """What a type is called: "a list of whole numbers"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(in_words(one) for one in inner)
    if origin in (list, dict):
        plural = _plural(inner[-1])
        return ("a list" if origin is list else "an object") + (f" of {plural}" if plural else "")
    return _WORDS[kind]


def _plural(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"lists of {_plural(get_args(kind)[0])}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_plural(one) for one in get_args(kind) if one is not NoneType)
    return _PLURALS.get(kind, "")
