"""DataError, and descriptions of values for error messages."""

from __future__ import annotations

from typing import Any

__all__ = ["DataError", "describe"]


class DataError(ValueError):
    """Raised for data that cannot be used; the message names the problem and the remedy."""


def describe(value: Any) -> str:
    """Describe a value for an error message, in few words: an array by type and shape."""
    kind = type(value).__name__
    if hasattr(value, "shape"):
        return f"{kind} {getattr(value, 'dtype', '')} {tuple(value.shape)}".replace("  ", " ")
    if isinstance(value, (list, tuple, dict, set, frozenset, range)):
        return f"{kind} of {len(value):,}"
    return "None" if value is None else f"{kind} {str(value) if isinstance(value, type) else repr(value):.60}"
