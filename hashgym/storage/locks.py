"""Locks that keep other processes out. They are locks of the operating system and end with their process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hashgym.storage.errors import DataError

__all__ = ["lock_folder", "lock_open_file"]


@contextmanager
def lock_folder(folder: str | Path, busy: str, *, file: str | None = None) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; never waits.

    Without ``file`` the folder itself is locked: nothing is written into it, and the lock holds among the processes of
    one machine. On a system without such locks the folder is not locked.

    Args:
        folder: must exist.
        busy: message of the error if another process has the folder.
        file: name of a file in the folder to lock instead. It is created empty if it is missing and is not removed; the
            lock holds on Windows too, and among all machines of a network file system. The thread that has the lock may
            lock the folder again.

    Raises:
        DataError: if another process (with ``file``, or thread) has the folder, or ``file`` is not a lock file.
        OSError: if the folder cannot be opened, or the file not be created.
    """
    if file is not None:
        with _lock_file(Path(folder) / file, busy):
            yield
    elif os.name == "nt":  # folders cannot be opened there
        yield
    else:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if lock_open_file(descriptor) is False:
                raise DataError(busy)
            yield
        finally:
            os.close(descriptor)


def lock_open_file(file: IO[Any] | int) -> bool | None:
    """Lock an open file, or the descriptor of a file or folder, until it is closed; never waits.

    Returns:
        True if it is locked now, False if it was locked already, None if the system has no such locks.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


@contextmanager
def _lock_file(path: Path, busy: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or path.stat().st_size):
        # Locking would empty it.
        raise DataError(f"{path} was not written by hashgym: move it elsewhere, or choose another --out")
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise DataError(busy) from None
    try:
        yield
    finally:
        lock.release()
