"""Arrays from files that may be damaged, or made to do harm."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.data.dataset import DataError

__all__ = ["map_array", "read_arrays"]


def map_array(file: str | Path) -> NDArray[Any]:
    """The array in an ``.npy`` file, mapped read-only; nothing is unpickled.

    Mapping compares the shape that the header names with the file's size, so a damaged one cannot ask for memory that
    there is not.

    Raises:
        DataError: if the file is missing, damaged, or no array of numbers.
    """
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{file} is missing") from None
    except Exception as error:  # the parser of a damaged header raises many types
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file} is damaged, or no array of numbers: {reason}") from error
    if not isinstance(array, np.ndarray):  # an .npz by another name
        array.close()
        raise DataError(f"{file} is damaged, or no array of numbers: it holds several arrays")
    return array


def read_arrays(file: str | Path) -> dict[str, NDArray[Any]]:
    """The arrays in an ``.npz`` file as ``np.savez`` writes it, in memory; nothing is unpickled.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it is damaged, or its arrays are larger than the file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("its arrays are compressed")  # so that unpacking could take any amount of memory
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # the parsers of damaged headers raise many types
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file} is damaged, or no file of arrays: {reason}") from error
