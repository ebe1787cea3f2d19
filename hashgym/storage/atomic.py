"""Files that are whole at every moment: written beside their place, synced, and renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hashgym.moved import keep_old_names
from hashgym.storage.errors import DataError
from hashgym.storage.locks import lock_open_file

__all__ = [
    "DiskFullError",
    "atomic_write",
    "clean",
    "explain_full_disk",
    "full_disk_error",
    "move",
    "sync",
    "temporaries",
    "write_text",
]

_NAMES = ("ENOSPC", "EDQUOT", "EFBIG")
_FULL = {os.strerror(number): number for number in (getattr(errno, name, 0) for name in _NAMES) if number}
_SAID = re.compile("|".join([*map(re.escape, _FULL), r"\d+ requested and \d+ written"]))  # the last is NumPy's


class DiskFullError(OSError):
    """A file could not be written because the disk, a quota or the limit on a file's size is exhausted."""

    def __str__(self) -> str:
        return str(self.args[-1])


@contextmanager
def atomic_write(path: str | Path, *, new: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its place when the block ends, and not at all if the block raises.

    The content is written to ``.NAME.*.hashgym-tmp`` beside the file, synced to the disk, and renamed; then the folder
    is synced. So the file is the old or the new one, whole, whenever the process is killed or the machine stops, and of
    several writers the last one wins. A killed writer's temporary file is removed by the next writer of the same file:
    a living one keeps its own locked.

    Args:
        path: of the file; its folder is created.
        new: the file must not exist, neither now nor when the block ends, and nobody else may be writing it with
            ``new``. So the block may be all the work that leads to the file.

    Raises:
        DataError: with ``new``, if the file exists or another process is writing it.
        DiskFullError: if it does not fit on the disk.
        OSError: if it cannot be written for another reason.
    """
    target = Path(path)
    if new and os.path.lexists(target):
        raise DataError(f"{target} exists already: remove it, or choose another --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    if clean(target) and new:
        raise DataError(f"another process is writing {target}: wait for it, or stop it, or choose another --out")
    with explain_full_disk(target):
        temporary, file = _begin(target)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if new and os.path.lexists(target):
                    raise DataError(f"{target} appeared meanwhile and is left as it is: choose another --out")
                if os.name == "nt":  # which does not rename open files
                    file.close()
                os.replace(temporary, target)  # while it is locked, so that no other writer takes it for abandoned
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync(target.parent)


def temporaries(path: str | Path) -> list[Path]:
    """The temporary files of those who write a file, or were killed while they did."""
    target = Path(path)
    named = re.compile(re.escape(_prefix(target)) + r"[0-9a-f]{16}\.hashgym-tmp")
    return [target.with_name(entry.name) for entry in os.scandir(target.parent) if named.fullmatch(entry.name)]


def clean(path: str | Path) -> bool:
    """Remove what killed writers of a file left; returns whether somebody is writing it now."""
    busy = False
    for temporary in temporaries(path):
        with suppress(OSError), temporary.open("r+b") as file:
            held = lock_open_file(file)
            if held:
                temporary.unlink()
            busy |= held is False
    return busy


def write_text(path: str | Path, text: str, errors: str = "strict") -> None:
    """Write a text file as UTF-8 with :func:`atomic_write`; line ends stay as they are.

    Args:
        path: of the file.
        text: its content.
        errors: what becomes of lone surrogates, which stand for bytes of names that are not UTF-8; see ``str.encode``.
    """
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", errors))


def move(file: Path, target: Path) -> None:
    """Sync a finished file and rename it to a path on the same disk, in place of a file there; the caller syncs the
    folder.
    """
    sync(file)
    os.replace(file, target)


def sync(path: Path) -> None:
    """Wait until a file's or a folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def explain_full_disk(path: str | Path) -> Iterator[None]:
    """Turn the errors of a full disk into one that names the file and says what to do.

    Raises:
        DiskFullError: for whatever error a full disk, a quota or a limit on the size of files caused in the block.
    """
    try:
        yield
    except Exception as error:
        if (cause := full_disk_error(error)) is None:
            raise
        if isinstance(cause, DiskFullError):
            raise cause from None
        number = cause.errno or errno.ENOSPC
        raise DiskFullError(
            number,
            f"{path} cannot be written: {os.strerror(number).lower()}. What was finished before is unchanged. "
            "Free space there, or raise the quota or limit, and run the same command again",
        ) from error


def full_disk_error(error: BaseException | None) -> OSError | None:
    """The error in a chain of causes that says that the disk is full; None if there is none.

    Libraries hide it: torch raises a RuntimeError while it handles it, NumPy and FAISS put it into words alone.
    """
    found = None
    while error is not None:
        if isinstance(error, DiskFullError):
            return error
        if isinstance(error, OSError) and error.errno in _FULL.values():
            found = error
        elif isinstance(error, (OSError, RuntimeError)) and (said := _SAID.search(str(error))):
            found = OSError(_FULL.get(said[0], errno.ENOSPC), said[0])
        error = error.__cause__ or error.__context__
    return found


def _begin(target: Path) -> tuple[Path, BinaryIO]:
    """Create a temporary file for a target, and lock it."""
    while True:
        temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.hashgym-tmp")
        file = temporary.open("xb")
        # Another writer may have taken it for abandoned before it was locked.
        if lock_open_file(file) is not False and temporary.exists():
            return temporary, file
        file.close()


def _prefix(target: Path) -> str:
    """What the names of a file's temporary files begin with; a long name is cut, to stay within 255 bytes."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
    return f".{target.name[:40]}.{digest}."


keep_old_names(__name__)
