"""Where a job over many images keeps its work until it is finished: a folder that survives being killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.data.arrays import map_array
from hashgym.data.dataset import DataError
from hashgym.data.sealed import sync

__all__ = ["Store", "tidy"]

JOURNAL = "journal.jsonl"
CLOSED = {"closed": True}
Arrays = dict[str, tuple[tuple[int, ...], str]]


class Store:
    """A folder of arrays of their full size, and a journal: a line for the job, then one for every finished batch.

    A batch's line is written when its rows are on the disk, so what the journal says is true whenever the process
    ends. Rows are written through files, not maps, whose pages would count as the job's memory.

    Args:
        folder: made where it does not exist yet, taken up again where it does.
        images: rows of every array.
        arrays: shape and type of a row of every array.
        job: what is done, ready for JSON; only the same job may take the folder up again.
        command: what makes such folders, for messages.

    Attributes:
        finished: batch -> its bad images, as [index, reason].

    Raises:
        DataError: on entering, if the folder is another job's, damaged, in use or cannot be written, or if the disk is
            too small.
    """

    def __init__(
        self, folder: Path, images: int, arrays: Arrays, job: dict[str, Any], command: str = "hashgym features"
    ) -> None:
        self.folder, self.images, self.arrays, self.command = folder, images, arrays, command
        self.job = json.loads(json.dumps(job))
        self.files = {key: folder / f"{key}.npy" for key in arrays}
        self.offsets: dict[str, int] = {}
        self.finished: dict[int, list[Any]] = {}
        self.closed = False

    def __enter__(self) -> Store:
        try:
            if not self.folder.exists():
                self._create()
            if not (self.folder / JOURNAL).is_file():
                raise DataError(f"{self.folder} is not a job of `{self.command}`: remove it, or choose another --out")
            self.journal = (self.folder / JOURNAL).open("r+b")
        except OSError as error:
            raise DataError(f"{self.folder} cannot be used: {error}") from error
        try:
            _lock(self.journal, self.folder)
            self._resume()
        except BaseException:
            self.journal.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.journal.close()

    def write(self, key: str, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Put ``values`` (len(rows), ...) into the rows of an array."""
        with self.files[key].open("r+b") as file:
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                file.seek(self.offsets[key] + int(rows[run[0]]) * values[0].nbytes)
                file.write(values[run].tobytes())

    def finish(self, batch: int, bad: list[Any]) -> None:
        """Note a batch as finished, once its rows are on the disk."""
        for file in self.files.values():
            sync(file)
        self._note({"batch": batch, "bad": bad})
        self.finished[batch] = bad

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Leave out all other rows. From here on no batch can be written."""
        if len(kept) < self.images:
            if not self.closed:
                self._note(CLOSED)
            for file in self.files.values():
                _compact(file, kept)

    def publish(self, target: Path, parts: dict[str, NDArray[Any]], seal: Callable[[Path], None]) -> None:
        """Add small arrays, let ``seal`` complete the folder and sync it, and rename it to ``target``."""
        for key, array in parts.items():
            np.save(self.folder / f"{key}.npy", array, allow_pickle=False)
        seal(self.folder)
        if target.exists():
            raise DataError(f"{target} appeared meanwhile; the finished work is in {self.folder}")
        self.folder.rename(target)
        sync(target.parent)
        tidy(target)

    def _create(self) -> None:
        rows = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in self.arrays.values())
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder.parent).free
        if free < (needed := self.images * rows) + (1 << 20):
            raise DataError(
                f"what is made takes {needed / 1e6:,.0f} MB, and {self.folder.parent} has {free / 1e6:,.0f} MB free: "
                "choose an --out on a larger disk"
            )
        setup = self.folder.with_name(f".{self.folder.name}.new")  # renamed when complete, so a kill leaves no half
        shutil.rmtree(setup, ignore_errors=True)
        setup.mkdir()
        for key, (shape, kind) in self.arrays.items():
            file = setup / f"{key}.npy"
            np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(kind), shape=(self.images, *shape))
            if hasattr(os, "posix_fallocate"):  # take the space now rather than fail for want of it hours later
                with file.open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
        (setup / JOURNAL).write_text(json.dumps(self.job) + "\n", "utf-8")
        for file in [*setup.iterdir(), setup]:
            sync(file)
        setup.rename(self.folder)

    def _resume(self) -> None:
        content = self.journal.read()
        whole = content[: content.rfind(b"\n") + 1]  # the last line may have been cut off
        self.journal.truncate(len(whole))
        self.journal.seek(len(whole))
        try:
            found, *entries = [json.loads(line) for line in whole.splitlines()]
            different = [key for key in self.job if found.get(key) != self.job[key]]
            self.closed = entries[-1:] == [CLOSED]
            finished = {entry["batch"]: entry["bad"] for entry in (entries[:-1] if self.closed else entries)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self.folder / JOURNAL} is damaged: remove {self.folder} and start again") from error
        if different:
            raise DataError(
                f"{self.folder} holds another, unfinished job (other {', '.join(different)}): run that one to its end, "
                "remove the folder to give it up, or choose another --out"
            )
        # Bad images get another chance, as they may have been mended, unless their rows are gone already.
        self.finished = {batch: bad for batch, bad in finished.items() if self.closed or not bad}
        self.offsets = {key: _offset(file, self.folder) for key, file in self.files.items()}

    def _note(self, entry: dict[str, Any]) -> None:
        self.journal.write(json.dumps(entry).encode() + b"\n")
        self.journal.flush()
        os.fsync(self.journal.fileno())


def tidy(target: Path) -> None:
    """Remove the journal from a finished folder: a run that is killed at its very end leaves it there."""
    (target / JOURNAL).unlink(missing_ok=True)


def _lock(journal: IO[bytes], folder: Path) -> None:
    """Keep other processes out until the file is closed, where the system can."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process is at work in {folder}: wait for it, or stop it") from None


def _offset(file: Path, folder: Path) -> int:
    """Where the array in ``file`` begins."""
    try:
        return int(map_array(file).offset)  # type: ignore[attr-defined]
    except DataError as error:
        raise DataError(f"{error}; remove {folder} and start again") from error


def _compact(file: Path, kept: NDArray[np.int64]) -> None:
    """Keep only some rows of an array; does nothing where that was done before."""

    array = map_array(file)
    if len(array) == len(kept):
        return
    small = file.with_name(f"{file.name}.new")
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
    with small.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header | {"shape": (len(kept), *array.shape[1:])})
        for start in range(0, len(kept), 256):
            # Mapped anew for every block, so that its pages are given back.
            stream.write(map_array(file)[kept[start : start + 256]].tobytes())
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(small, file)
