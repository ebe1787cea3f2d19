"""Text that is safe to show in a terminal, and paths that are safe to paste into a shell."""

from __future__ import annotations

import os
import shlex
import unicodedata

__all__ = ["printable", "quote"]

# Control characters, invisible marks and those that reverse the direction of text, surrogates (bytes of a file name
# that are not UTF-8), private and unassigned characters, and separators of lines.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # Persian, Hindi and emoji are spelled with them


def printable(text: str, *, lines: bool = False) -> str:
    """Replace characters that cannot be shown or that control the terminal by U+FFFD; the length stays the same.

    Args:
        text: such as the name of a file, which may hold any byte.
        lines: keep line breaks.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_visible(c) or (lines and c == "\n") else "\N{REPLACEMENT CHARACTER}" for c in text)


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in _HIDDEN or character in _JOINERS


def quote(path: object) -> str:
    """Return a path as an argument that can be pasted into a POSIX shell, whatever characters it has."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    if text.startswith("-"):
        text = f"./{text}"
    if text == printable(text):
        return shlex.quote(text)
    escaped = (chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in os.fsencode(text))
    return f"$'{''.join(escaped)}'"
