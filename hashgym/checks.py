"""Checks of arguments and arrays, and parts of messages: suggestions for misspelt names, numbers with their noun."""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection, Iterable, Iterator
from dataclasses import fields
from difflib import get_close_matches
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "check_choice",
    "check_integer",
    "check_number",
    "closest",
    "counted",
    "finite_rows",
    "first_not_finite",
    "is_integer",
    "plain_numbers",
    "row_blocks",
    "several",
]

BLOCK = 1 << 24  # numbers read at once, so that a mapped file is never in memory at full size


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer, of Python or NumPy; False for booleans."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_integer(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return the value as an int.

    Args:
        name: name of the argument, for the message.
        value: the argument.
        least: minimum.
        most: maximum, or None.

    Raises:
        ValueError: for a value out of range, or of another type than int and NumPy's integers, such as float or bool.
    """
    if not is_integer(value):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")
    return int(value)


def plain_numbers(arguments: Any) -> None:
    """Replace NumPy scalars, which overflow, among the fields of a dataclass by Python's numbers."""
    for field in fields(arguments):
        if isinstance(value := getattr(arguments, field.name), np.generic):
            object.__setattr__(arguments, field.name, value.item())


def several(given: Any, one: type | tuple[type, ...]) -> tuple[Any, ...]:
    """Return one thing or several as a tuple; a text alone is not taken apart into characters.

    Args:
        given: a thing, or things.
        one: the type of a thing.
    """
    return (given,) if isinstance(given, one) else tuple(given)


def check_choice(name: str, value: Any, known: Collection[str]) -> None:
    """Check that an argument is one of the names that are known.

    Raises:
        ValueError: with all of them, and the one that may have been meant.
    """
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}{closest(value, known)}")


def check_number(name: str, value: Any, least: float | None = None) -> float:
    """Return the value as a float.

    Args:
        name: name of the argument, for the message.
        value: the argument.
        least: minimum, or None.

    Raises:
        ValueError: for a value that is not a finite real number, of Python or NumPy, in that range.
    """
    if not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r:.60}")
    if not math.isfinite(value) or (least is not None and value < least):
        wanted = "finite" if least is None else f"a finite number of at least {least}"
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return float(value)


def closest(name: object, known: Iterable[str]) -> str:
    """Return the part of an error message that suggests a name: `` (did you mean 'itq'?)``, or "" if none is close."""
    lower = {each.lower(): each for each in known}
    matches = get_close_matches(str(name).lower(), lower, n=1)
    return f" (did you mean {lower[matches[0]]!r}?)" if matches else ""


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, such as "1 picture" or "2,000 pictures".

    Args:
        number: the number.
        one: the singular.
        many: the plural; ``one`` with an "s" by default.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def finite_rows(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows of an array (n, ...) hold neither NaN nor infinity, bool (n,)."""
    if array.dtype == np.float16:  # by the exponent: five times as fast as isfinite, and activations are large
        exponent = np.uint16(0x7C00)
        finite = (array.view(np.uint16) & exponent) != exponent
    else:
        finite = np.isfinite(array)
    return finite.all(axis=tuple(range(1, array.ndim)))


def first_not_finite(array: NDArray[Any]) -> int | None:
    """Return the first row that holds NaN or infinity, or None; the array is read in blocks."""
    for rows in row_blocks(array):
        finite = finite_rows(array[rows])
        if not finite.all():
            return rows.start + int(np.argmin(finite))
    return None


def row_blocks(array: NDArray[Any]) -> Iterator[slice]:
    """Yield rows to read together. Pages of a mapped file are released afterwards, so it is never all in memory."""
    count = max(1, BLOCK // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), count):
        yield slice(start, start + count)
        if isinstance(array.base, mmap.mmap) and not array.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
            array.base.madvise(mmap.MADV_DONTNEED)
