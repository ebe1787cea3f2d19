"""What processes inherit that this one starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["environment_variables"]


@contextmanager
def environment_variables(values: Mapping[str, str], *, replace: bool = False) -> Iterator[None]:
    """Set environment variables for processes that are started within the block; afterwards they are as before.

    Args:
        values: by name.
        replace: whether to set also those that the user has set.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if replace or name not in os.environ})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
