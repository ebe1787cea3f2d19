"""The on-disk cache: a dataset as a folder of ``.npy`` files and ``meta.json``.

``features.npy``, ``labels.npy``, ``query.npy``, ``database.npy``, ``train.npy``, where there are such data also
``regions.npy``, ``train_regions.npy``, ``boxes.npy``, ``train_boxes.npy``, ``thumbnails.npy``, ``center.npy`` and
``scale.npy``, and ``names.json`` (image
names, label names). ``meta.json`` has the format's version, each file's size, shape, type and SHA-256, the provenance
of the features, and a digest of itself. Arrays are mapped, so opening a cache of many gigabytes takes no memory;
nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.data.arrays import map_array
from hashgym.data.checksums import sha256
from hashgym.data.dataset import DataError, HashingDataset

__all__ = ["is_cache", "open_cache", "read_meta", "save", "seal", "sync", "verify"]

FORMAT, VERSION = "hashgym-cache", 1
MEND = "copy it again, or extract the features again"
META, NAMES = "meta.json", "names.json"
SMALL = 1 << 24  # bytes that are read so quickly that they are always compared with their checksum
REQUIRED = {"features": "float32", "labels": "uint8", "query": "int64", "database": "int64", "train": "int64"}
OPTIONAL = {
    "regions": "float32",
    "train_regions": "float32",
    "thumbnails": "uint8",
    "center": "float32",
    "scale": "float32",
    "boxes": "float32",
    "train_boxes": "float32",
}
ARRAYS = REQUIRED | OPTIONAL


def is_cache(path: str | Path) -> bool:
    """Whether ``path`` is a folder that looks like a cache."""
    return (Path(path) / META).is_file()


def save(dataset: HashingDataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a dataset to the folder ``path``.

    Everything is written and synced beside ``path`` and renamed at the end: at no moment is there half a cache under
    that name, nor is an old one lost before the new one is complete.

    Raises:
        DataError: if ``path`` exists, unless it is a cache and ``overwrite`` is true.
        OSError: if it cannot be written.
    """
    target = Path(path)
    if target.exists() and not (overwrite and is_cache(target)):
        raise DataError(f"{target} exists already: remove it, or choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    work = target.with_name(f".{target.name}.{mark}.partial")
    work.mkdir()
    try:
        for key in ARRAYS:
            if (array := getattr(dataset, key)) is not None:
                np.save(work / f"{key}.npy", np.asarray(array), allow_pickle=False)
        seal(work, dataset.name, dataset.names, dataset.label_names, dataset.provenance)
        if target.exists():
            old = target.with_name(f".{target.name}.{mark}.old")
            target.rename(old)
            work.rename(target)
            shutil.rmtree(old)
        else:
            work.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def seal(
    folder: Path,
    name: str,
    names: Sequence[str],
    label_names: Sequence[str],
    provenance: Mapping[str, Any],
    columns: Sequence[int] | None = None,
) -> None:
    """Turn a folder of arrays into a cache: add the names and, last and atomically, ``meta.json``; sync everything.

    ``columns`` are the labels that count in the split; all where None.
    """
    _write_json(folder / NAMES, {"names": list(names), "label_names": list(label_names)})
    files: dict[str, Any] = {}
    for key in ARRAYS:
        file = folder / f"{key}.npy"
        if file.exists():
            array = map_array(file)
            files[file.name] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    files[NAMES] = {}
    for filename, entry in files.items():
        sync(folder / filename)
        entry |= {"bytes": (folder / filename).stat().st_size, "sha256": sha256(folder / filename)}
    images, dim = files["features.npy"]["shape"]
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "images": images,
        "dim": dim,
        "labels": len(label_names),
        "columns": list(range(len(label_names)) if columns is None else columns),
        "files": files,
        "provenance": dict(provenance),
    }
    _write_json(folder / META, meta | {"digest": _digest(meta)})
    sync(folder)


def read_meta(path: str | Path) -> dict[str, Any]:
    """What ``meta.json`` of a cache says, checked against its own digest.

    Raises:
        DataError: if there is no cache at ``path``, it was written in another format, or ``meta.json`` is damaged.
    """
    file = Path(path) / META
    meta = _read_json(file, missing=f"{path} is no cache of features: it has no {META}; `hashgym features` writes one")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(f"{file} is not of a cache of features; `hashgym features` writes one")
    if meta.get("version") != VERSION:
        raise DataError(
            f"{path} is a cache of version {meta.get('version')!r}, this hashgym reads version {VERSION}: "
            "extract the features again, or use the hashgym that wrote them"
        )
    if meta.pop("digest", None) != _digest(meta) or not _sensible(meta):
        raise DataError(f"{file} is damaged or was edited; {MEND}")
    return meta


def open_cache(path: str | Path, verify: bool = False, *, all_labels: bool = False) -> HashingDataset:
    """Open a cache, its arrays mapped read-only. Files of up to 16 MB are compared with their checksums.

    Args:
        path: the cache's folder.
        verify: also read larger files and compare their checksums.
        all_labels: keep the labels that do not count in the stored split too, so that another one can be drawn.

    Raises:
        DataError: if a file is missing, truncated, of another shape or type than it was written with or no array of
            numbers, if a checksum is wrong, and for all that :class:`HashingDataset` refuses.
    """
    folder = Path(path)
    meta = _verified(folder, math.inf if verify else SMALL)
    files = meta["files"]
    if absent := [name for name in (*(f"{key}.npy" for key in REQUIRED), NAMES) if name not in files]:
        raise DataError(f"{folder} holds no {', '.join(absent)}; extract the features again")
    arrays = {key: _open_array(folder, key, files[f"{key}.npy"]) for key in ARRAYS if f"{key}.npy" in files}
    _check_size(folder, NAMES, files[NAMES])
    names = _read_json(folder / NAMES)
    if not isinstance(names, dict) or not all(
        isinstance(names.get(key), list) and all(isinstance(name, str) for name in names[key])
        for key in ("names", "label_names")
    ):
        raise DataError(f"{folder / NAMES} is damaged; {MEND}")
    label_names, columns = names["label_names"], meta["columns"]
    if not set(columns) <= set(range(len(label_names))):
        raise DataError(f"{folder / META} names labels that are not there; {MEND}")
    if not all_labels and len(columns) < len(label_names):
        arrays["labels"] = np.ascontiguousarray(arrays["labels"][:, columns])
        label_names = [label_names[column] for column in columns]
    return HashingDataset(
        name=meta["name"],
        names=tuple(names["names"]),
        label_names=tuple(label_names),
        provenance=meta["provenance"],
        **arrays,
    )


def verify(path: str | Path) -> None:
    """Read every file of a cache and compare it with its checksum.

    Raises:
        DataError: naming every file that is missing or damaged.
    """
    _verified(Path(path))


def _sensible(meta: Mapping[str, Any]) -> bool:
    """Whether ``meta.json`` has what is looked for: a digest vouches for what was written, not for who wrote it."""
    kinds = {"name": str, "files": dict, "columns": list, "provenance": dict}
    return (
        all(isinstance(meta.get(key), kind) for key, kind in kinds.items())
        and all(
            isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() and (name == NAMES or "shape" in entry)
            for name, entry in meta["files"].items()
        )
        and all(type(column) is int for column in meta["columns"])
    )


def _verified(folder: Path, largest: float = math.inf) -> dict[str, Any]:
    """``meta.json``, once the files of up to ``largest`` bytes are as it says."""
    meta = read_meta(folder)
    files = {name: entry for name, entry in meta["files"].items() if entry["bytes"] <= largest}
    found = {name: _state(folder / name, entry) for name, entry in files.items()}
    if wrong := [f"{name} {state}" for name, state in found.items() if state]:
        raise DataError(f"{folder} is damaged: {', '.join(wrong)}; {MEND}")
    return meta


def _state(file: Path, entry: Mapping[str, Any]) -> str:
    """What is wrong with a file of a cache, in words; empty where nothing is."""
    try:
        size = file.stat().st_size
        if size != entry["bytes"]:
            return f"has {size} of {entry['bytes']} bytes"
        return "" if sha256(file) == entry["sha256"] else "has changed since it was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


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


def _check_size(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    file = folder / name
    if not file.is_file():
        raise DataError(f"{name} is missing from {folder}; {MEND}")
    if (size := file.stat().st_size) != entry["bytes"]:
        raise DataError(f"{name} in {folder} has {size} of {entry['bytes']} bytes; {MEND}")


def _open_array(folder: Path, key: str, entry: Mapping[str, Any]) -> NDArray[Any]:
    name = f"{key}.npy"
    _check_size(folder, name, entry)
    array = map_array(folder / name)
    if array.dtype != np.dtype(ARRAYS[key]) or list(array.shape) != entry["shape"]:
        raise DataError(
            f"{name} in {folder} is {array.dtype} {list(array.shape)}, "
            f"{ARRAYS[key]} {entry['shape']} was written; {MEND}"
        )
    return array


def _digest(meta: Mapping[str, Any]) -> str:
    canonical = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _write_json(file: Path, content: Any) -> None:
    temporary = file.with_name(f"{file.name}.new")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1 if file.name == META else None)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def _read_json(file: Path, missing: str | None = None) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(missing or f"{file} is missing; {MEND}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error}; {MEND}") from error
