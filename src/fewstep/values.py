"""Values as host programs have them (numpy, pandas, torch, JSON, forms) → plain Python, or as they are.

Nothing is rounded, parsed or guessed: a whole number is what `operator.index` takes, a number what
`float` takes and no text, and no boolean is either. What is neither comes back as it was, for the check
that follows to refuse. Neither numpy, pandas nor torch is imported.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any


def whole(value: Any) -> Any:
    """Return an `int` for whatever is a whole number: numpy's, or of an array or tensor without sides."""
    if type(value) is int or _is_boolean(value) or _sides(value):
        return value
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return value


def real(value: Any) -> Any:
    """Return a `float` for whatever is a number."""
    if (
        type(value) is float
        or _is_boolean(value)
        or isinstance(value, str | bytes | bytearray)
        or _sides(value)
    ):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return value


def text(value: Any) -> Any:
    """Return a plain `str` for a string of any class: numpy's, a member of an enumeration."""
    return str.__str__(value) if isinstance(value, str) else value


def members(value: Any) -> list[Any] | None:
    """Return what a list has in it; also a tuple, a range, a 1-D array or tensor, a column, a dict's values.

    None for what is one value, has no order, or could be read only once.
    """
    if (
        isinstance(value, str | bytes | bytearray | Mapping | Set | Iterator)
        or getattr(value, "ndim", 1) != 1
    ):
        return None
    if isinstance(value, Sequence) or (hasattr(value, "__len__") and hasattr(value, "__iter__")):
        return list(value)
    return None


def shown(value: Any, length: int = 120) -> str:
    """Return a value for an error message: one line, cut."""
    line = " ".join(repr(value).split())
    return line if len(line) <= length else f"{line[:length]}…"


def whole_advice(name: str, value: Any) -> str:
    """Return what to type for a float that is a whole number, to be put behind a sentence; "" for others."""
    number = value if type(whole(value)) is int else real(value)
    near = isinstance(number, float) and number.is_integer() and number >= 1
    return f"; type {name}={int(number)}" if near else ""


def _is_boolean(value: Any) -> bool:
    dtype = str(getattr(value, "dtype", "")).rpartition(".")[2]
    return isinstance(value, bool) or dtype in ("bool", "boolean")


def _sides(value: Any) -> bool:
    """Return whether it is an array or a column, though maybe of one number."""
    return getattr(value, "ndim", 0) != 0
