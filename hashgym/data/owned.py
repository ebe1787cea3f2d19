"""Folders that this program may delete: those that carry its marker.

Names prove nothing: a folder called ``2023`` or ``photos.partial`` may be the user's. So a folder gets a marker file
when it is created, and nothing is deleted that lacks one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from hashgym.data.dataset import DataError

__all__ = ["MARKER", "create", "is_owned", "remove"]

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
        if path.is_symlink() or (path.exists() and not path.is_dir()) or (path.is_dir() and any(path.iterdir())):
            raise DataError(f"{path} exists already and was not written by hashgym: choose another name")
        path.mkdir(parents=True, exist_ok=True)
        (path / MARKER).write_text(_TEXT, encoding="utf-8")
    return path


def is_owned(folder: str | Path) -> bool:
    """Whether this is a folder, not a link to one, with the marker in it."""
    path = Path(folder)
    return path.is_dir() and not path.is_symlink() and (path / MARKER).is_file()


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
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
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
