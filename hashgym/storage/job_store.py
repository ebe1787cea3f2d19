"""The working folder of a job over many images, which can be killed at any moment and resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.moved import keep_old_names
from hashgym.storage import owned
from hashgym.storage.atomic import DiskFullError, atomic_write, explain_full_disk, full_disk_error, sync
from hashgym.storage.errors import DataError
from hashgym.storage.locks import lock_open_file
from hashgym.storage.reading import MAX_WHOLE_BYTES, map_array
from hashgym.storage.sealed import digest

__all__ = ["JobStore", "remove_journal"]

JOURNAL = "journal.jsonl"
ROWS = 256  # read at once, which bounds the memory
CLOSED = {"closed": True}
Arrays = dict[str, tuple[tuple[int, ...], str]]
Block = tuple[str, int, int, str]  # array, first row, row after the last, SHA-256 of the bytes

_NO_JOURNAL = "{} is damaged, or not of `{}`: choose another --out, or remove {} if it was an unfinished job"
_log = logging.getLogger(__name__)  # warnings go to stderr, unless the calling program configures logging


class JobStore:
    """A folder with arrays of full size, and a journal: one line for the job, then one for every finished batch.

    The line of a batch is written once its rows are on the disk, so the journal is right whenever the process ends. It
    has a checksum of every block of rows, which is verified when the job is resumed: a batch whose rows or line were
    damaged is computed again. Rows are written through files rather than maps, whose pages would count as memory of the
    job.

    Args:
        folder: created if it is missing, else the job in it is resumed.
        images: number of rows of every array.
        arrays: shape and type of a row of every array.
        subsets: for an array with rows of some images only, the indices of these images, ascending.
        job: the settings of the job, JSON-serialisable; a job with other settings cannot resume it.
        command: the command that creates such folders, for messages.

    Attributes:
        finished: batch -> its unreadable images, as [index, reason].
        closed: whether rows are being left out (:meth:`keep`), after which no batch can be written.

    Raises:
        DataError: on entering, if the folder belongs to another job, is damaged, in use or cannot be written, or if the
            disk is too small.
        DiskFullError: on leaving, if the disk became full.
    """

    def __init__(
        self,
        folder: Path,
        images: int,
        arrays: Arrays,
        job: dict[str, Any],
        command: str = "hashgym features",
        subsets: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> None:
        self.folder, self.images, self.arrays, self.command = folder, images, arrays, command
        self.job = json.loads(json.dumps(job))
        self.subsets = {} if subsets is None else subsets
        self.files = {key: folder / f"{key}.npy" for key in arrays}
        self.offsets: dict[str, int] = {}
        self.finished: dict[int, list[Any]] = {}
        self.closed = False
        self._blocks: list[Block] = []  # written since the last batch was finished

    def __enter__(self) -> JobStore:
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
                raise DataError(f"another process is working in {self.folder}: wait for it, or stop it")
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
        """Write ``values`` (len(rows), ...) to the rows of these images of an array; all of them have a row in it."""
        places = np.searchsorted(self.subsets[key], rows) if key in self.subsets else rows
        with self.files[key].open("r+b") as file:
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(places) != 1) + 1):
                if not len(run):
                    continue
                first, last, content = int(rows[run[0]]), int(rows[run[-1]]), values[run].tobytes()
                file.seek(self.offsets[key] + int(places[run[0]]) * values[0].nbytes)
                file.write(content)
                self._blocks.append((key, first, last + 1, hashlib.sha256(content).hexdigest()))

    def finish(self, batch: int, bad: list[Any]) -> None:
        """Record a batch as finished, once its rows are on the disk."""
        for file in self.files.values():
            sync(file)
        self._append({"batch": batch, "bad": bad, "blocks": self._blocks})
        self._blocks = []
        self.finished[batch] = bad

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Leave out the rows of all other images. No batch can be written afterwards."""
        if len(kept) < self.images:
            if not self.closed:
                self._append(CLOSED)
            for key, file in self.files.items():
                subset = self.subsets.get(key)
                _compact(file, kept if subset is None else np.flatnonzero(np.isin(subset, kept)))

    def publish(self, target: Path, parts: dict[str, NDArray[Any]], seal: Callable[[Path], None]) -> None:
        """Add small arrays, let ``seal`` complete the folder and sync it, and rename it to ``target``."""
        for key, array in parts.items():
            np.save(self.folder / f"{key}.npy", array, allow_pickle=False)
        seal(self.folder)
        if os.path.lexists(target):
            raise DataError(
                f"{target} was created in the meantime and is not overwritten; the finished work is in {self.folder}"
            )
        owned.publish(self.folder, target)
        remove_journal(target)

    def _create(self) -> None:
        needed = sum(
            len(self._images_in(key)) * int(np.prod(shape)) * np.dtype(kind).itemsize
            for key, (shape, kind) in self.arrays.items()
        )
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder.parent).free
        if free < needed + (1 << 20):
            raise DataError(
                f"the result takes {needed / 1e6:,.0f} MB, and {self.folder.parent} has {free / 1e6:,.0f} MB free: "
                "choose an --out on a larger disk"
            )
        # Renamed when complete, so that a killed process leaves no incomplete job; the marker is locked until then.
        self._remove_abandoned_setups()
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
                # Another process created it first: only one of the two gets the lock.

    def _remove_abandoned_setups(self) -> None:
        """Remove folders that killed processes were setting up."""
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
            rows = len(self._images_in(key))
            np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(kind), shape=(rows, *shape))
            if hasattr(os, "posix_fallocate"):  # reserve the space now rather than run out of it hours later
                with file.open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
        (setup / JOURNAL).write_bytes(_line(self.job))
        for file in [*setup.iterdir(), setup]:
            sync(file)

    def _read_journal(self) -> list[dict[str, Any] | None]:
        """Read the lines after that of the job, None for damaged ones; cut off the last line if it is incomplete.

        Raises:
            DataError: if the journal is damaged or that of another job.
        """
        if os.fstat(self.journal.fileno()).st_size > MAX_WHOLE_BYTES:
            raise DataError(_NO_JOURNAL.format(self.folder / JOURNAL, self.command, self.folder))
        content = self.journal.read()
        complete = content[: content.rfind(b"\n") + 1]
        first, *lines = [_parsed(line) for line in complete.splitlines()] or [None]
        if first is None:
            raise DataError(_NO_JOURNAL.format(self.folder / JOURNAL, self.command, self.folder))
        if different := [key for key in {**first, **self.job} if first.get(key) != self.job.get(key)]:
            raise DataError(
                f"{self.folder} holds another, unfinished job (other {', '.join(different)}): finish that one, "
                "remove the folder to abandon it, or choose another --out"
            )
        self.journal.truncate(len(complete))  # not earlier: only now is it known to be the journal of this job
        self.journal.seek(len(complete))
        return lines

    def _resume(self) -> None:
        lines = self._read_journal()
        self.offsets = {key: _offset(file, self.folder) for key, file in self.files.items()}
        batches = {line["batch"]: line for line in lines if line is not None and line != CLOSED}
        self.closed = lines[-1:] == [CLOSED]
        bad = {index for line in batches.values() for index, _ in line["bad"]} if self.closed else set()
        kept = np.setdiff1d(np.arange(self.images), list(bad))
        rows = self._check_arrays(kept)
        damaged = self._damaged({batch: line.get("blocks", []) for batch, line in batches.items()}, rows)
        if damaged_count := len(damaged) + lines.count(None):
            if any(len(rows[key]) != len(self._images_in(key)) for key in rows):
                raise DataError(f"{self.folder} is damaged in finished rows: remove it and start again")
            _log.warning("%s: %d finished batches were damaged and are computed again", self.folder, damaged_count)
            self.closed = False
        # Batches with unreadable images are computed again, as these may have been repaired, unless the rows are gone.
        self.finished = {
            batch: line["bad"]
            for batch, line in batches.items()
            if (self.closed or not line["bad"]) and batch not in damaged
        }

    def _images_in(self, key: str) -> NDArray[np.int64]:
        """Return the images that have a row in an array."""
        return self.subsets[key] if key in self.subsets else np.arange(self.images)

    def _check_arrays(self, kept: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Return the images of the rows of every array, all or only those kept.

        Raises:
            DataError: for an array of another shape or type.
        """
        rows = {}
        for key, (shape, kind) in self.arrays.items():
            array = map_array(self.files[key])
            is_valid = array.shape[1:] == shape and array.dtype == kind and array.flags.c_contiguous
            every = self._images_in(key)
            some = np.intersect1d(every, kept)
            if not is_valid or len(array) not in (len(every), len(some)):
                raise DataError(f"{self.files[key]} is damaged: remove {self.folder} and start again")
            rows[key] = every if len(array) == len(every) else some
        return rows

    def _damaged(self, batches: dict[int, list[Block]], rows: dict[str, NDArray[np.int64]]) -> set[int]:
        """Return the batches with a block that differs from its checksum; ``rows`` are the rows that each array has."""
        damaged = set()
        for key, (shape, kind) in self.arrays.items():
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            with self.files[key].open("rb") as file:
                for batch, blocks in batches.items():
                    for _, start, stop, checksum in (block for block in blocks if block[0] == key):
                        first, last = np.searchsorted(rows[key], [start, stop])
                        file.seek(self.offsets[key] + int(first) * size)
                        if hashlib.sha256(file.read(int(last - first) * size)).hexdigest() != checksum:
                            damaged.add(batch)
        return damaged

    def _append(self, entry: dict[str, Any]) -> None:
        self.journal.write(_line(entry))
        self.journal.flush()
        os.fsync(self.journal.fileno())


def remove_journal(target: Path) -> None:
    """Remove the journal from a finished folder; a run that is killed at its very end leaves it there."""
    if owned.is_owned(target):
        (target / JOURNAL).unlink(missing_ok=True)


def _line(entry: dict[str, Any]) -> bytes:
    """Return a line of the journal: JSON with a digest of itself."""
    entry = json.loads(json.dumps(entry))
    return json.dumps(entry | {"digest": digest(entry)}).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Parse a line of the journal; None for a damaged one. Lines of older versions have no digest and no blocks."""
    try:
        entry = json.loads(line)
        claimed = entry.pop("digest", None)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None
    is_valid = (
        claimed == digest(entry) if claimed else entry == CLOSED or "images" in entry or set(entry) == {"batch", "bad"}
    )
    return entry if is_valid else None


def _offset(file: Path, folder: Path) -> int:
    """Return the offset of the first row of the array in ``file``."""
    try:
        return int(map_array(file).offset)  # type: ignore[attr-defined]
    except DataError as error:
        raise DataError(f"{error}; remove {folder} and start again") from error


def _compact(file: Path, kept: NDArray[np.int64]) -> None:
    """Keep only some rows of an array; does nothing if that was done before."""
    array = map_array(file)
    if len(array) == len(kept):
        return
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
    with atomic_write(file) as stream:
        np.lib.format.write_array_header_1_0(stream, header | {"shape": (len(kept), *array.shape[1:])})
        for start in range(0, len(kept), ROWS):
            # Mapped again for every block, which releases the pages of the last one.
            stream.write(map_array(file)[kept[start : start + ROWS]].tobytes())


keep_old_names(__name__)
