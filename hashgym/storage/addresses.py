"""Addresses of servers in messages."""

from __future__ import annotations

import re

__all__ = ["without_password"]


def without_password(text: str) -> str:
    """Replace the user and password of every URL in a message by ``***``."""
    return re.sub(r"(?<=://)[^\s'\"]*@", "***@", text)
