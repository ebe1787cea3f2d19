"""Pickles of dicts of NumPy arrays, read without unpickling them.

CIFAR's Python batches and some files of network weights are pickles of dicts, lists, numbers, strings and NumPy arrays.
A pickle is a program, which unpickling runs. This module only parses the instructions, supports the few that such a
dict needs, and raises an error for any other: the calls that rebuild an array are recognised by name and emulated;
nothing is ever imported or called.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.storage.errors import DataError
from hashgym.storage.reading import read_bounded

__all__ = ["parse"]

_MARK = object()
_DTYPES = {"u1": np.dtype(np.uint8), "|u1": np.dtype(np.uint8), "f4": np.dtype("<f4"), "<f4": np.dtype("<f4")}
_MENTIONED = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = (
    *("BININT", "BININT1", "BININT2"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
)


@dataclass(frozen=True)
class _Name:
    """A function or class that the file names; never looked up."""

    kind: str


@dataclass
class _Array:
    """The stand-in of an array whose content is read later."""

    value: NDArray[Any] | None = None


def parse(path: Path) -> dict[str, Any]:
    """Return the dict in a file; its arrays are uint8 or float32, its keys text.

    Raises:
        DataError: if the file is damaged, or has content other than dicts, lists, numbers, text and such arrays.
    """
    try:
        return _arrays_of(_run(read_bounded(path)), {})
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise DataError(f"{path} is damaged, or not a pickled dict of arrays: {error}") from None


def _arrays_of(content: dict[Any, Any], done: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return a dict with arrays in place of their stand-ins, also in the dicts that it holds.

    A dict that occurs several times is converted once, by its identity in ``done``: a small file can name dicts so
    often that converting every occurrence would never end.
    """
    if id(content) in done:
        return done[id(content)]
    plain = done[id(content)] = {}
    for key, value in content.items():
        inner = _arrays_of(value, done) if isinstance(value, dict) else value
        plain[str(key)] = inner.value if isinstance(inner, _Array) else inner
    return plain


def _run(program: bytes) -> dict[Any, Any]:
    """Interpret the instructions of pickle protocols 2 and 3."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def pop(count: int | None = None) -> list[Any]:
        """Pop the top ``count`` items, or all above the last mark, and the mark."""
        if count is None:
            above = next((i for i, item in enumerate(reversed(stack)) if item is _MARK), None)
            if above is None:
                raise ValueError("a mark is missing on the stack")
            start = len(stack) - 1 - above
            items = stack[start + 1 :]
        else:
            start = len(stack) - count
            items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name == "PROTO":
            continue
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(pop(int(name[5:]) if name[5:] else None)))
        elif name in ("APPEND", "APPENDS"):
            items = pop(1 if name == "APPEND" else None)
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = pop(2 if name == "SETITEM" else None)
            if not all(isinstance(key, (str, bytes)) for key in items[::2]):  # hashing nested tuples can take forever
                raise ValueError("it has keys that are not strings")
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL" and argument in _MENTIONED:
            stack.append(_Name(_MENTIONED[argument]))
        elif name == "REDUCE":
            stack.append(_call(*pop(2)))
        elif name == "BUILD":
            (state,) = pop(1)
            if isinstance(stack[-1], _Array):
                stack[-1].value = _array(state)
            elif not isinstance(stack[-1], np.dtype):
                raise ValueError("it sets attributes of an object that is not an array")
            elif state[1] not in ("<", "|"):
                raise ValueError(f"an array has the byte order {str(state[1])[:9]}")
        elif name == "STOP" and isinstance(stack[-1], dict):
            return stack[-1]
        else:
            raise ValueError(f"unexpected instruction {name} {str(argument or '')[:80]}")
    raise ValueError("it is cut off")


def _call(function: Any, arguments: Any) -> Any:
    """Return the result of a known call, emulated; nothing is called."""
    kind = function.kind if isinstance(function, _Name) else None
    if kind == "encode":
        text, encoding = arguments
        if encoding == "latin1":
            return text.encode("latin-1")
    elif kind == "dtype" and isinstance(arguments[0], str) and arguments[0] in _DTYPES:  # hashes nothing nested
        return _DTYPES[arguments[0]]
    elif kind == "array":
        return _Array()
    raise ValueError(f"unexpected call: {kind or type(function).__name__}")


def _array(state: Any) -> NDArray[Any]:
    """Return the array of NumPy's array state: version, shape, dtype, column order, bytes."""
    _, shape, dtype, columns_first, data = state
    octets = data.encode("latin-1") if isinstance(data, str) else data
    if not isinstance(dtype, np.dtype) or not isinstance(octets, bytes):
        raise ValueError("an array has no type or no bytes")
    if len(octets) != math.prod(shape) * dtype.itemsize:
        raise ValueError("the bytes of the array do not have its shape")
    return np.frombuffer(octets, dtype).reshape(shape, order="F" if columns_first else "C")
