"""Where a job over many images keeps its work until it is finished: a folder that survives being killed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.storage import owned
from hashgym.storage.atomic import DiskFullError, atomic_write, explain_full_disk, full_disk_error, sync
from hashgym.storage.errors import DataError
from hashgym.storage.locks import lock_open_file
from hashgym.storage.reading import MAX_WHOLE_BYTES, map_array
from hashgym.storage.sealed import digest

__all__ = ["Store", "tidy"]

JOURNAL = "journal.jsonl"
ROWS = 256  # read at once, so that memory stays flat
CLOSED = {"closed": True}
Arrays = dict[str, tuple[tuple[int, ...], str]]
Block = tuple[str, int, int, str]  # array, first row, row after the last, SHA-256 of the bytes

_NO_JOURNAL = "{} is damaged, or not of `{}`: choose another --out; or remove {} if it was an unfinished job"
_log = logging.getLogger(__name__)  # what is no error goes to stderr, unless the program that uses us says otherwise


class Store:
    """A folder of arrays of their full size, and a journal: a line for the job, then one for every finished batch.

    A batch's line is written when its rows are on the disk, so what the journal says is true whenever the process
    ends. It has a checksum of every block of rows, which is compared when the job is taken up again: a batch whose
    rows or line were damaged is done again. Rows are written through files, not maps, whose pages would count as the
    job's memory.

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
        DiskFullError: on leaving, if the disk became full.
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
        self._blocks: list[Block] = []  # written since the last batch was finished

    def __enter__(self) -> Store:
        try:
            if not os.path.lexists(self.folder):
                with explain_full_disk(self.folder):
                    self._create()
            if not (self.folder / JOURNAL).is_file():
                raise DataError(f"{self.folder} is not a job of `{self.command}`: remove it, or choose another --out")
            self.journal = (self.folder / JOURNAL).open("r+b")
        except DiskFullError:
            raise
        except OSError as error:
            raise DataError(f"{self.folder} cannot be used: {error}") from error
        try:
            if lock_open_file(self.journal) is False:
                raise DataError(f"another process is at work in {self.folder}: wait for it, or stop it")
            self._resume()
        except BaseException:
            self.journal.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.journal.close()
        finally:
            if error is not None and full_disk_error(error):
                with explain_full_disk(self.folder):
                    raise error

    def write(self, key: str, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Put ``values`` (len(rows), ...) into the rows of an array."""
        with self.files[key].open("r+b") as file:
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                first, content = int(rows[run[0]]), values[run].tobytes()
                file.seek(self.offsets[key] + first * values[0].nbytes)
                file.write(content)
                self._blocks.append((key, first, first + len(run), hashlib.sha256(content).hexdigest()))

    def finish(self, batch: int, bad: list[Any]) -> None:
        """Note a batch as finished, once its rows are on the disk."""
        for file in self.files.values():
            sync(file)
        self._note({"batch": batch, "bad": bad, "blocks": self._blocks})
        self._blocks = []
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
        if os.path.lexists(target):
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
        # Renamed when complete, so that a kill leaves no half; the marker is locked meanwhile.
        self._remove_abandoned()
        setup = owned.create(self.folder.with_name(f".{self.folder.name}.{secrets.token_hex(8)}.new"))
        with (setup / owned.MARKER).open("r+b") as marker:
            lock_open_file(marker)
            try:
                self._fill(setup)
                setup.rename(self.folder)
            except BaseException:
                owned.remove(setup)
                if not (self.folder / JOURNAL).is_file():
                    raise
                # Another process was quicker: only one of the two will get the lock.

    def _remove_abandoned(self) -> None:
        """Remove the folders that killed processes were setting up."""
        prefix = f".{self.folder.name}."
        for path in [path for path in self.folder.parent.iterdir() if path.name.startswith(prefix)]:
            if path.suffix == ".new" and owned.is_owned(path):
                with suppress(OSError), (path / owned.MARKER).open("r+b") as marker:
                    if lock_open_file(marker):
                        owned.remove(path)

    def _fill(self, setup: Path) -> None:
        """Write empty arrays and a journal without batches."""
        for key, (shape, kind) in self.arrays.items():
            file = setup / f"{key}.npy"
            np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(kind), shape=(self.images, *shape))
            if hasattr(os, "posix_fallocate"):  # take the space now rather than fail for want of it hours later
                with file.open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
        (setup / JOURNAL).write_bytes(_line(self.job))
        for file in [*setup.iterdir(), setup]:
            sync(file)

    def _resume(self) -> None:
        if os.fstat(self.journal.fileno()).st_size > MAX_WHOLE_BYTES:
            raise DataError(_NO_JOURNAL.format(self.folder / JOURNAL, self.command, self.folder))
        content = self.journal.read()
        whole = content[: content.rfind(b"\n") + 1]  # the last line may have been cut off
        first, *lines = [_parsed(line) for line in whole.splitlines()] or [None]
        if first is None:
            raise DataError(_NO_JOURNAL.format(self.folder / JOURNAL, self.command, self.folder))
        if different := [key for key in self.job if first.get(key) != self.job[key]]:
            raise DataError(
                f"{self.folder} holds another, unfinished job (other {', '.join(different)}): run that one to its end, "
                "remove the folder to give it up, or choose another --out"
            )
        self.journal.truncate(len(whole))  # only now is it known to be ours
        self.journal.seek(len(whole))
        self.offsets = {key: _offset(file, self.folder) for key, file in self.files.items()}
        batches = {line["batch"]: line for line in lines if line is not None and line != CLOSED}
        self.closed = lines[-1:] == [CLOSED]
        bad = {index for line in batches.values() for index, _ in line["bad"]} if self.closed else set()
        kept = np.setdiff1d(np.arange(self.images), list(bad))
        lengths = self._check_arrays(len(kept))
        rows = {key: np.arange(self.images) if lengths[key] == self.images else kept for key in self.arrays}
        damaged = self._damaged({batch: line.get("blocks", []) for batch, line in batches.items()}, rows)
        if again := len(damaged) + lines.count(None):
            if set(lengths.values()) != {self.images}:
                raise DataError(f"{self.folder} is damaged in finished rows: remove it and start again")
            _log.warning("%s: %d finished batches were damaged and are done again", self.folder, again)
            self.closed = False
        # Bad images get another chance, as they may have been repaired, unless their rows are gone already.
        self.finished = {
            batch: line["bad"]
            for batch, line in batches.items()
            if (self.closed or not line["bad"]) and batch not in damaged
        }

    def _check_arrays(self, kept: int) -> dict[str, int]:
        """Rows of every array: all of them, or only those that are kept. Raises DataError for another shape or type."""
        found = {}
        for key, (shape, kind) in self.arrays.items():
            array = map_array(self.files[key])
            sound = array.shape[1:] == shape and array.dtype == kind and array.flags.c_contiguous
            if not sound or len(array) not in (self.images, kept):
                raise DataError(f"{self.files[key]} is damaged: remove {self.folder} and start again")
            found[key] = len(array)
        return found

    def _damaged(self, batches: dict[int, list[Block]], rows: dict[str, NDArray[np.int64]]) -> set[int]:
        """Batches with blocks that are not on the disk as they were written; ``rows`` are those that an array has."""
        found = set()
        for key, (shape, kind) in self.arrays.items():
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            with self.files[key].open("rb") as file:
                for batch, blocks in batches.items():
                    for _, start, stop, checksum in (block for block in blocks if block[0] == key):
                        first, last = np.searchsorted(rows[key], [start, stop])
                        file.seek(self.offsets[key] + int(first) * size)
                        if hashlib.sha256(file.read(int(last - first) * size)).hexdigest() != checksum:
                            found.add(batch)
        return found

    def _note(self, entry: dict[str, Any]) -> None:
        self.journal.write(_line(entry))
        self.journal.flush()
        os.fsync(self.journal.fileno())


def tidy(target: Path) -> None:
    """Remove the journal from a finished folder: a run that is killed at its very end leaves it there."""
    if owned.is_owned(target):
        (target / JOURNAL).unlink(missing_ok=True)


def _line(entry: dict[str, Any]) -> bytes:
    """A line of the journal: JSON with a digest of itself."""
    entry = json.loads(json.dumps(entry))
    return json.dumps(entry | {"digest": digest(entry)}).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What a line of the journal says; None for a damaged one. Older versions wrote them without digest and blocks."""
    try:
        entry = json.loads(line)
        claimed = entry.pop("digest", None)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None
    known = (
        claimed == digest(entry) if claimed else entry == CLOSED or "images" in entry or set(entry) == {"batch", "bad"}
    )
    return entry if known else None


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
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
    with atomic_write(file) as stream:
        np.lib.format.write_array_header_1_0(stream, header | {"shape": (len(kept), *array.shape[1:])})
        for start in range(0, len(kept), ROWS):
            # Mapped anew for every block, so that its pages are given back.
            stream.write(map_array(file)[kept[start : start + ROWS]].tobytes())
