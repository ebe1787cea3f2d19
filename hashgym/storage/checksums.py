"""Checksums of files, and notes of those that were verified before."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hashgym.storage import user_cache
from hashgym.storage.atomic import write_text

__all__ = ["has_checksum", "sha256"]


def sha256(path: Path, tick: Callable[[], None] = lambda: None) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks; ``tick`` is called after each block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            tick()
    return digest.hexdigest()


def has_checksum(path: Path, checksum: str, *, again: bool = False, tick: Callable[[], None] = lambda: None) -> bool:
    """Return whether a file has this SHA-256. It is computed once on each machine, and again when the file has changed.

    A note with the size, times and inode of a verified file is kept in the user's cache folder
    (:mod:`hashgym.storage.user_cache`), and the file is not read again while these stay the same. If the note cannot be
    written, the file is read every time.

    Args:
        path: the file.
        checksum: in hexadecimal.
        again: ignore the note and read the file.
        tick: called after each block that is read.

    Raises:
        OSError: if the file cannot be read.
    """
    state, note = [*_state(path), checksum], _note(path)
    if not again and note is not None:
        with suppress(OSError, ValueError):
            if json.loads(note.read_text("utf-8")) == state:
                return True
    if sha256(path, tick) != checksum:
        return False
    if note is not None and [*_state(path), checksum] == state:
        with suppress(OSError):
            write_text(note, json.dumps(state))
    return True


def _state(path: Path) -> list[str | int]:
    """Return the path of a file, and the values of its status that change when it is changed or replaced."""
    stat = path.stat()
    times = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev
    return [platform.node(), os.path.realpath(path), *times]


def _note(path: Path) -> Path | None:
    """Return the path of a file's note; None if the user has no cache folder."""
    folder = user_cache.folder()
    if folder is None:
        return None
    name = hashlib.sha256(os.fsencode(f"{platform.node()}:{os.path.realpath(path)}")).hexdigest()
    return folder / "verified" / f"{name}.json"
