"""The on-disk cache: a dataset as a folder of ``.npy`` files and ``meta.json``.

``features.npy``, ``labels.npy``, ``query.npy``, ``database.npy``, ``train.npy``, if the dataset has them also
``regions.npy``, ``train_regions.npy``, ``boxes.npy``, ``train_boxes.npy``, ``thumbnails.npy``, ``center.npy``,
``scale.npy``, ``views.npy`` and ``viewed.npy``, and ``names.json`` (image names, label names). ``meta.json`` has the
version of the format, the size, shape, type and SHA-256 of each file, the provenance of the features, and a digest of
itself. Arrays are mapped, so opening a cache of many gigabytes takes no memory; nothing is ever unpickled.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.data.dataset import HashingDataset
from hashgym.storage import owned
from hashgym.storage.errors import DataError
from hashgym.storage.job_store import JOURNAL
from hashgym.storage.reading import map_array
from hashgym.storage.sealed import FolderFormat, Verify, read_json, write_json

__all__ = ["is_cache", "open_cache", "read_meta", "save", "seal", "verify", "version"]

CACHE = FolderFormat(
    "hashgym-cache",
    1,
    description="a cache of features",
    command="hashgym features",
    remedy="copy it again, or extract the features again",
    fields={"name": str, "columns": list, "provenance": dict},
)
NAMES = "names.json"
MAPS = ("float16", "float32", "uint8")
REQUIRED: dict[str, tuple[str, ...]] = {  # names of arrays, and the types that they may have
    "features": MAPS,
    "labels": ("uint8",),
    "query": ("int64",),
    "database": ("int64",),
    "train": ("int64",),
}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "regions": ("float32",),
    "train_regions": ("float32",),
    "thumbnails": ("uint8",),
    "center": ("float32",),
    "scale": ("float32",),
    "boxes": ("float32",),
    "train_boxes": ("float32",),
    "views": MAPS,
    "viewed": ("int64",),
}
ARRAYS: Mapping[str, tuple[str, ...]] = {**REQUIRED, **OPTIONAL}


def is_cache(path: str | Path) -> bool:
    """Return whether ``path`` is a folder that looks like a cache."""
    return (Path(path) / CACHE.manifest).is_file()


def version(path: str | Path) -> tuple[Any, ...]:
    """Return what tells a cache from another one, in another place or written later; empty for other paths."""
    if not is_cache(path):
        return ()
    folder = Path(path).resolve()
    written = (folder / CACHE.manifest).stat()
    return str(folder), written.st_ino, written.st_mtime_ns


def save(dataset: HashingDataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a dataset to the folder ``path``.

    The files are written and synced to a folder beside ``path`` that is renamed at the end: there is never an
    incomplete cache under that name, and an old one is kept until the new one is complete.

    Raises:
        DataError: if ``path`` exists, unless it is a cache without foreign files and ``overwrite`` is true.
        OSError: if it cannot be written.
    """
    target = Path(path)
    if os.path.lexists(target) and not (overwrite and CACHE.matches(target) and not target.is_symlink()):
        raise DataError(f"{target} exists already: remove it, or choose another name")
    if target.exists() and (foreign := _foreign(target)):
        raise DataError(
            f"{target} is not overwritten, as hashgym did not write {', '.join(foreign[:3])} in it: move that "
            "elsewhere, or choose another name"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    work = owned.create(target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial"))
    try:
        for key in ARRAYS:
            if (array := getattr(dataset, key)) is not None:
                np.save(work / f"{key}.npy", np.asarray(array), allow_pickle=False)
        seal(work, dataset.name, dataset.names, dataset.label_names, dataset.provenance)
        if target.exists():
            owned.mark(target)  # it has only files of hashgym, as checked above
        owned.publish(work, target, replace=True)
    finally:
        with suppress(OSError):
            owned.remove(work)


def _foreign(folder: Path) -> list[str]:
    """Return the names of files in a cache that are not part of it."""
    # A job that was killed at its very end leaves its journal.
    ours = {owned.MARKER, CACHE.manifest, NAMES, JOURNAL, *(f"{key}.npy" for key in ARRAYS)}
    return sorted(path.name for path in folder.iterdir() if path.name not in ours or not path.is_file())


def seal(
    folder: Path,
    name: str,
    names: Sequence[str],
    label_names: Sequence[str],
    provenance: Mapping[str, Any],
    columns: Sequence[int] | None = None,
) -> None:
    """Turn a folder of arrays into a cache: add the names and, last and atomically, ``meta.json``; sync everything.

    ``columns`` are the labels that define similarity in the split; None for all.
    """
    write_json(folder / NAMES, {"names": list(names), "label_names": list(label_names)})
    images, *shape = map_array(folder / "features.npy").shape
    CACHE.seal(
        folder,
        [*(f"{key}.npy" for key in ARRAYS if (folder / f"{key}.npy").exists()), NAMES],
        name=name,
        images=images,
        dim=math.prod(shape),
        labels=len(label_names),
        columns=list(range(len(label_names)) if columns is None else columns),
        provenance=dict(provenance),
    )


def read_meta(path: str | Path) -> dict[str, Any]:
    """Return the ``meta.json`` of a cache, checked against its own digest.

    Raises:
        DataError: if there is no cache at ``path``, it has another format, or ``meta.json`` is damaged.
    """
    return CACHE.read(path)


def open_cache(path: str | Path, verify: Verify = "once", *, all_labels: bool = False) -> HashingDataset:
    """Open a cache, with arrays mapped read-only. The checksums of files of up to 16 MB are verified each time.

    Args:
        path: the cache's folder.
        verify: whether the checksums of larger files are verified: ``"once"`` on this machine, and again after a file
            has changed (see ``hashgym.storage.checksums.has_checksum``); True each time; False never.
        all_labels: also keep the labels that the stored split ignores, so that another one can be drawn.

    Raises:
        DataError: if a file is missing, truncated, of another shape or type than it was written with or not an array of
            numbers, if a checksum is wrong, or if the content is invalid for :class:`HashingDataset`.
    """
    folder = Path(path)
    meta = CACHE.read(folder)
    CACHE.verify(folder, meta, large_files=verify)
    if absent := [name for name in (*(f"{key}.npy" for key in REQUIRED), NAMES) if name not in meta["files"]]:
        raise DataError(f"{folder} has no {', '.join(absent)}; {CACHE.remedy}")
    arrays = {key: _open_array(folder, meta, key) for key in ARRAYS if f"{key}.npy" in meta["files"]}
    names = read_json(folder / NAMES, CACHE.remedy)
    if not isinstance(names, dict) or not all(
        isinstance(names.get(key), list) and all(isinstance(name, str) for name in names[key])
        for key in ("names", "label_names")
    ):
        raise DataError(f"{folder / NAMES} is damaged; {CACHE.remedy}")
    label_names, columns = names["label_names"], meta["columns"]
    if not all(type(column) is int and 0 <= column < len(label_names) for column in columns):
        raise DataError(f"{folder / CACHE.manifest} names labels that do not exist; {CACHE.remedy}")
    if not all_labels and len(columns) < len(label_names):
        arrays["labels"] = np.ascontiguousarray(arrays["labels"][:, columns])
        label_names = [label_names[column] for column in columns]
    return HashingDataset(
        name=meta["name"],
        names=tuple(names["names"]),
        label_names=tuple(label_names),
        provenance=meta["provenance"],
        checksums={key: meta["files"][f"{key}.npy"]["sha256"] for key in arrays},
        **arrays,
    )


def verify(path: str | Path) -> None:
    """Verify the checksums of all files of a cache.

    Raises:
        DataError: naming every file that is missing or damaged.
    """
    CACHE.verify(path, CACHE.read(path), large_files=True)


def _open_array(folder: Path, meta: Mapping[str, Any], key: str) -> NDArray[Any]:
    array = CACHE.open_array(folder, meta, f"{key}.npy")
    if array.dtype.name not in ARRAYS[key]:
        kinds = " or ".join(ARRAYS[key])
        raise DataError(f"{key}.npy in {folder} is {array.dtype}, but must be {kinds}; {CACHE.remedy}")
    return array
