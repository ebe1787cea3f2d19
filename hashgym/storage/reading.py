"""Reading of files that may be damaged or malicious: arrays, and files that must fit in memory."""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hashgym.storage.errors import DataError

__all__ = ["MAX_WHOLE_BYTES", "check_stored", "map_array", "open_regular", "read_arrays", "read_bounded"]

MAX_BYTES = 2 << 30  # of an .npz file
MAX_WHOLE_BYTES = 2**30  # of a file that is read at once, such as a list of labels; annotations of COCO: 0.5 GB


def map_array(file: str | Path) -> NDArray[Any]:
    """Map the array in an ``.npy`` file, read-only; nothing is unpickled.

    Mapping compares the shape in the header with the size of the file, so a damaged header cannot exhaust the memory.

    Raises:
        DataError: if the file is missing, damaged, or not an array of numbers.
    """
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{file} is missing") from None
    except Exception as error:  # the parser of a damaged header raises many types
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file} is damaged, or not an array of numbers: {reason}") from error
    if not isinstance(array, np.ndarray):  # an .npz file under another name
        array.close()
        raise DataError(f"{file} is damaged, or not an array of numbers: it holds several arrays")
    return array


def read_arrays(file: str | Path) -> dict[str, NDArray[Any]]:
    """Read the arrays in an ``.npz`` file as ``np.savez`` writes it; nothing is unpickled.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it is damaged, not a regular file, or larger than 2 GB, or its arrays are larger than the file.
    """
    try:
        check_stored(file, MAX_BYTES)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # the parsers of damaged headers raise many types
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file} is damaged, or not a file of arrays: {reason}") from error


def check_stored(file: str | Path, most: int) -> None:
    """Check that reading a zip file takes at most ``most`` bytes of memory, and no more than its own size.

    Raises:
        ValueError: if it takes more, as a compressed one may, or is not a regular file.
        OSError: if it cannot be read; ``zipfile`` raises other errors for a damaged one.
    """
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > most:
        raise ValueError(f"it has {status.st_size:,} bytes, and at most {most:,} are read")
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its content is compressed")
        if sum(entry.file_size for entry in archive.infolist()) > status.st_size:
            raise ValueError("its content is larger than the file")


def read_bounded(path: Path, most: int = MAX_WHOLE_BYTES) -> bytes:
    """Read a file of at most ``most`` bytes.

    Raises:
        DataError: if it is larger; it is not read then.
        OSError: if it cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise DataError(f"{path} has more than {most:,} bytes: it is damaged, or another kind of file")
        return file.read()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Anything else, such as a pipe, could block forever.

    Raises:
        OSError: if it cannot be opened, or is not a regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")
