"""Addresses of servers in messages."""

from __future__ import annotations

import re

__all__ = ["without_password"]


def without_password(text: str) -> str:
    """A message with ``***`` in place of the user and password of every URL in it."""
    return re.sub(r"(?<=://)[^\s'\"]*@", "***@", text)
