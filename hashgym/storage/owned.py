"""Ownership of files: hashgym deletes only folders with its marker, and replaces only files that it wrote.

A name proves nothing: a folder called ``2023`` or ``photos.partial`` may be the user's. So a folder gets a marker file
when it is created, and only marked folders are deleted. A file is replaced only if its content shows that hashgym
wrote it.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hashgym.storage.atomic import sync
from hashgym.storage.errors import DataError

__all__ = [
    "MARKER",
    "create",
    "is_empty",
    "is_owned",
    "mark",
    "new_folder",
    "publish",
    "remove",
    "require_replaceable",
]

MARKER = ".hashgym"
_TEXT = "hashgym created this folder and may delete it.\n"


def create(folder: str | Path) -> Path:
    """Create a folder with the marker, and its parents without it; an existing folder must be empty or marked.

    Raises:
        DataError: if the path exists and is something else.
        OSError: if it cannot be created.
    """
    path = Path(folder)
    if not is_owned(path):
        if os.path.lexists(path) and not is_empty(path):
            raise DataError(f"{path} exists already and was not written by hashgym: choose another name")
        path.mkdir(parents=True, exist_ok=True)
        mark(path)
    return path


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Create a folder as :func:`create` does, for work that fills it; if that fails and wrote nothing, delete it again.

    An existing folder that is marked stays as it is, also if it is empty.
    """
    existed = os.path.lexists(folder)
    path = create(folder)
    try:
        yield path
    except BaseException:
        if not existed and [entry.name for entry in path.iterdir()] == [MARKER]:
            remove(path)
        raise


def mark(folder: str | Path) -> None:
    """Put the marker into a folder that hashgym is known to have written, such as one of an older version."""
    (Path(folder) / MARKER).write_text(_TEXT, encoding="utf-8")


def is_owned(folder: str | Path) -> bool:
    """Return whether this is a folder (not a link to one) with the marker."""
    path = Path(folder)
    return path.is_dir() and not path.is_symlink() and (path / MARKER).is_file()


def is_empty(folder: str | Path) -> bool:
    """Return whether this is an empty folder, not a link to one."""
    path = Path(folder)
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def remove(folder: str | Path) -> None:
    """Delete a folder with the marker and everything in it; a missing folder is ignored.

    The marker is deleted last, so that an interrupted deletion can be repeated.

    Raises:
        DataError: if the folder has no marker and is not empty.
        OSError: if it cannot be deleted.
    """
    path = Path(folder)
    if not path.exists() and not path.is_symlink():
        return
    if not is_owned(path):
        if is_empty(path):
            path.rmdir()
            return
        raise DataError(f"{path} was not written by hashgym and is not deleted: remove it yourself if it is not needed")
    for entry in path.iterdir():
        if entry.name == MARKER:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (path / MARKER).unlink()
    path.rmdir()


def publish(work: Path, target: Path, *, replace: bool = False) -> None:
    """Rename a finished folder to its place, and sync.

    Args:
        work: the folder.
        target: its place, on the same disk.
        replace: delete a folder with the marker that is there, once the new one is in place.

    Raises:
        DataError: if the folder to replace has no marker.
        OSError: if the folder cannot be renamed, as onto an existing folder without ``replace``, which is kept.
    """
    if not (replace and target.exists()):
        work.rename(target)
        sync(target.parent)
        return
    if not is_owned(target):
        raise DataError(f"{target} was not written by hashgym and is not replaced: choose another name")
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    try:
        target.rename(old)
        work.rename(target)
    finally:  # also if it is interrupted between the two
        if old.exists() and not target.exists():
            old.rename(target)
    sync(target.parent)
    remove(old)


def require_replaceable(file: str | Path, what: str, is_ours: Callable[[Path], bool]) -> None:
    """Check, before work starts, that writing a file does not destroy a file that hashgym did not write.

    Args:
        file: the file to write.
        what: description of such files, with its article, for the message.
        is_ours: whether the same command wrote an existing file; never called with a folder or link.

    Raises:
        DataError: if the path exists and was not written by the same command.
    """
    path = Path(file)
    if os.path.lexists(path) and not (path.is_file() and not path.is_symlink() and is_ours(path)):
        raise DataError(f"{path} exists already and is not {what} of hashgym: choose another name, or remove it")
