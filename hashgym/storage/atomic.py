"""Atomic writing of files: under a temporary name beside the target, synced to the disk, and renamed."""

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

_ERRNOS = (getattr(errno, name, 0) for name in ("ENOSPC", "EDQUOT", "EFBIG"))
_FULL = {os.strerror(number): number for number in _ERRNOS if number}  # message -> number
_MESSAGE = re.compile("|".join([*map(re.escape, _FULL), r"\d+ requested and \d+ written"]))  # the last is NumPy's


class DiskFullError(OSError):
    """A file could not be written because the disk, a quota or the limit on a file's size is exhausted."""

    def __str__(self) -> str:
        return str(self.args[-1])


@contextmanager
def atomic_write(path: str | Path, *, new: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces the target when the block ends, and is discarded if the block raises.

    The content is written to ``.NAME.*.hashgym-tmp`` beside the target, synced to the disk, and renamed; then the
    folder is synced. So the target is either the complete old file or the complete new one, even if the process is
    killed or the machine stops; of several writers the last one wins. A writer keeps its temporary file locked, and
    removes those of killed writers of the same target.

    Args:
        path: the target; its folder is created, and removed again if the block raises.
        new: require that the target does not exist, neither now nor when the block ends, and that no other process is
            writing it with ``new``. The block may then contain all the work that leads to the file.

    Raises:
        DataError: with ``new``, if the target exists or another process is writing it.
        DiskFullError: if the content does not fit on the disk.
        OSError: if it cannot be written for another reason.
    """
    target = Path(path)
    if new and os.path.lexists(target):
        raise DataError(f"{target} exists already: remove it, or choose another --out")
    created = [folder for folder in target.parents if not os.path.lexists(folder)]
    target.parent.mkdir(parents=True, exist_ok=True)
    if clean(target) and new:
        raise DataError(f"another process is writing {target}: wait for it, stop it, or choose another --out")
    with explain_full_disk(target):
        temporary, file = _open_temporary(target)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if new and os.path.lexists(target):
                    raise DataError(
                        f"{target} was created in the meantime and is not overwritten: choose another --out"
                    )
                if os.name == "nt":  # open files cannot be renamed there
                    file.close()
                os.replace(temporary, target)  # still locked, so that no other writer removes it as abandoned
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
                for folder in created:  # the innermost first; one that is not empty by now stays
                    folder.rmdir()
            raise
        sync(target.parent)


def temporaries(path: str | Path) -> list[Path]:
    """Return the temporary files of running and killed writers of a file."""
    target = Path(path)
    named = re.compile(re.escape(_prefix(target)) + r"[0-9a-f]{16}\.hashgym-tmp")
    return [target.with_name(entry.name) for entry in os.scandir(target.parent) if named.fullmatch(entry.name)]


def clean(path: str | Path) -> bool:
    """Remove the temporary files of killed writers of a file; return whether another process is writing it now."""
    busy = False
    for temporary in temporaries(path):
        with suppress(OSError), temporary.open("r+b") as file:
            held = lock_open_file(file)
            if held:
                temporary.unlink()
            busy |= held is False
    return busy


def write_text(path: str | Path, text: str, errors: str = "strict") -> None:
    """Write a text file as UTF-8 with :func:`atomic_write`; line ends are not converted.

    Args:
        path: the file.
        text: its content.
        errors: as in ``str.encode``, for lone surrogates, which stand for bytes of file names that are not UTF-8.
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
    """Wait until the content of a file or folder is on the disk."""
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
    """Turn errors of a full disk into one that names the file and the remedy.

    Raises:
        DiskFullError: for any error in the block that a full disk, a quota or a limit on file sizes caused.
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
    """Return the full-disk error among an error and its causes; None if there is none.

    Libraries hide it: torch raises a RuntimeError while handling it, NumPy and FAISS only mention it in the message.
    """
    disk_error, seen = None, set()
    while error is not None and id(error) not in seen:  # gRPC's errors are their own cause
        seen.add(id(error))
        if isinstance(error, DiskFullError):
            return error
        if isinstance(error, OSError) and error.errno in _FULL.values():
            disk_error = error
        elif isinstance(error, (OSError, RuntimeError)) and (match := _MESSAGE.search(str(error))):
            disk_error = OSError(_FULL.get(match[0], errno.ENOSPC), match[0])
        error = error.__cause__ or error.__context__
    return disk_error


def _open_temporary(target: Path) -> tuple[Path, BinaryIO]:
    """Create and lock a temporary file for a target."""
    while True:
        temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.hashgym-tmp")
        file = temporary.open("xb")
        # Another writer may have removed it as abandoned before it was locked.
        if lock_open_file(file) is not False and temporary.exists():
            return temporary, file
        file.close()


def _prefix(target: Path) -> str:
    """Return the prefix of the names of a file's temporary files; a long name is cut, to stay within 255 bytes."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
    return f".{target.name[:40]}.{digest}."


keep_old_names(__name__)
