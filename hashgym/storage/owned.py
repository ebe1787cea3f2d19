"""What this program may delete or replace: folders that carry its marker, and files that it wrote.

Names prove nothing: a folder called ``2023`` or ``photos.partial`` may be the user's. So a folder gets a marker file
when it is created, and nothing is deleted that lacks one. A file is replaced only if its content shows who wrote it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from hashgym.storage.errors import DataError

__all__ = ["MARKER", "create", "is_empty", "is_owned", "mark", "remove", "require_replaceable"]

MARKER = ".hashgym"
_TEXT = "hashgym created this folder and may delete it.\n"


def create(folder: str | Path) -> Path:
    """Create a folder with the marker, and its parents without one; an empty or marked folder is taken as it is.

    Raises:
        DataError: if something else is there.
        OSError: if it cannot be created.
    """
    path = Path(folder)
    if not is_owned(path):
        if os.path.lexists(path) and not is_empty(path):
            raise DataError(f"{path} exists already and was not written by hashgym: choose another name")
        path.mkdir(parents=True, exist_ok=True)
        mark(path)
    return path


def mark(folder: str | Path) -> None:
    """Put the marker into a folder that is known to be ours, such as one that an older version wrote."""
    (Path(folder) / MARKER).write_text(_TEXT, encoding="utf-8")


def is_owned(folder: str | Path) -> bool:
    """Whether this is a folder, not a link to one, with the marker in it."""
    path = Path(folder)
    return path.is_dir() and not path.is_symlink() and (path / MARKER).is_file()


def is_empty(folder: str | Path) -> bool:
    """Whether this is a folder, not a link to one, with nothing in it."""
    path = Path(folder)
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def remove(folder: str | Path) -> None:
    """Delete a folder with the marker and all that is in it; does nothing where there is none.

    The marker goes last, so that an interrupted deletion can be repeated.

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


def require_replaceable(file: str | Path, what: str, is_ours: Callable[[Path], bool]) -> None:
    """Check, before work starts, that a file can be written without losing somebody else's.

    Args:
        file: the file to write.
        what: what such a file is, with its article, for the message.
        is_ours: whether an existing file was written by the same command; it is given no folder and no link.

    Raises:
        DataError: if something exists under that name that the same command did not write.
    """
    path = Path(file)
    if os.path.lexists(path) and not (path.is_file() and not path.is_symlink() and is_ours(path)):
        raise DataError(f"{path} exists already and is not {what} of hashgym: choose another name, or remove it")
