"""Convert a user's arrays to a dataset: features of any real type, labels in any of the usual forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import is_integer
from hashgym.data import splits
from hashgym.storage.errors import DataError, describe

__all__ = ["fields_of"]

_LISTS = (list, tuple, set, frozenset, np.ndarray)
LABEL_FORMS = (
    "classes (n,) of strings or integers, multi-hot (n, L) of 0 and 1, a list of lists of names (['cat', 'dog'], []), "
    "or None"
)


def fields_of(
    features: Any,
    labels: Any,
    *,
    name: str,
    names: Any,
    label_names: Any,
    queries: Any,
    train: Any,
    database: Any,
    seed: int,
    regions: Any,
    train_regions: Any,
) -> dict[str, Any]:
    """Return the fields of a :class:`HashingDataset`; arguments and errors as for its ``from_arrays``."""
    if not isinstance(name, str):
        raise DataError(f"name must be a string, got {describe(name)}")
    if not is_integer(seed) or seed < 0:
        raise DataError(f"seed must be an integer of at least 0, got {describe(seed)}")
    numbers = _maps(features)
    if numbers is None:
        numbers = _numbers("features", features, 2)
    n = len(numbers)
    known = _strings("label_names", label_names)
    if len(set(known)) < len(known):
        repeated = next(label for label in known if known.count(label) > 1)
        raise DataError(f"label_names must be different, got {repeated!r} more than once")
    table, columns = _labels(labels, n, known)
    names = _strings("names", names) or tuple(str(i) for i in range(n))
    if len(names) != n:
        raise DataError(f"{len(names):,} names for {n:,} images: give every image one")
    digest = blake2b(numbers.data, digest_size=8)
    digest.update(np.ascontiguousarray(table).data)
    return {
        "name": name,
        "features": numbers,
        "labels": table,
        "names": names,
        "label_names": columns,
        "regions": None if regions is None else _numbers("regions", regions, 3),
        "train_regions": None if train_regions is None else _numbers("train_regions", train_regions, 3),
    } | _split(
        table, columns, names, queries, train, database, seed, {"features": "arrays", "arrays": digest.hexdigest()}
    )


def _maps(given: Any) -> NDArray[Any] | None:
    """Return pixels, uint8 (n, 3, H, W), or activations, float16 or float32 (n, C, H, W); None for anything else."""
    if not hasattr(given, "dtype") or np.ndim(given) != 4 or isinstance(given, np.ma.MaskedArray):
        return None
    try:
        maps = np.asanyarray(given)  # a memory map stays one
    except (TypeError, RuntimeError):  # a tensor on another device or with a gradient
        return None
    maps = maps if maps.flags.c_contiguous else np.ascontiguousarray(maps)
    is_valid = maps.shape[1] == 3 if maps.dtype == np.uint8 else maps.dtype in (np.float16, np.float32)
    return maps if is_valid and maps.size else None


def _numbers(what: str, given: Any, ndim: int) -> NDArray[np.float32]:
    """Convert features to float32, (n, D) or, for regions, (n, R, D)."""
    shape = "(n, D)" if ndim == 2 else "(n, R, D)"
    if isinstance(given, (str, bytes, Mapping)):
        raise DataError(f"{what} must be real numbers of shape {shape}, got {describe(given)}")
    _no_mask(what, given)
    try:
        array = np.asarray(given)
    except Exception as error:  # rows of different lengths, tensors on another device or with a gradient
        raise DataError(
            f"{what} must be real numbers of shape {shape}, got {describe(given)}: make an array of them first, with "
            "rows of one length; for a tensor use tensor.detach().cpu().numpy()"
        ) from error
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{what} must be real numbers of shape {shape}, got {describe(given if array.ndim == 0 else array)}"
            + ("; for a sparse matrix use matrix.toarray()" if hasattr(given, "toarray") else "")
            + ("; for a table of numbers use table.to_numpy('float32')" if array.dtype == object and array.ndim else "")
        )
    if array.ndim != ndim or 0 in array.shape:
        remedy = ""
        if ndim == 2 and array.ndim == 1:
            remedy = "; for a single image use features[None]"
        elif ndim == 2 and array.ndim > 2:
            remedy = (
                "; `hashgym features` extracts features of pictures, features.reshape(len(features), -1) uses their "
                "pixels; to train a network on pixels give uint8 (n, 3, H, W)"
            )
        raise DataError(f"{what} must have shape {shape}, not empty, got {describe(array)}{remedy}")
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(array, np.float32)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        beyond = np.isfinite(array) & ~np.isfinite(numbers)
        if beyond.any():
            row = int(np.argwhere(beyond)[0][0])
            raise DataError(
                f"{what} of row {row} are beyond float32, {array[row][beyond[row]].flat[0]}: divide all by a constant"
            )
    return numbers


def _no_mask(what: str, given: Any) -> None:
    """Raise DataError for a masked array with masked entries, which NumPy would treat as data."""
    if isinstance(given, np.ma.MaskedArray) and (masked := np.ma.getmaskarray(given)).any():
        row = int(np.argwhere(masked)[0][0])
        raise DataError(f"{what} of row {row} are masked: fill them, {what}.filled(...), or leave the row out")


def _labels(given: Any, n: int, names: tuple[str, ...]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Convert labels to multi-hot uint8 (n, L), with their L names."""
    if given is None:
        if names:
            raise DataError(f"there are {len(names)} label_names and no labels: give labels={LABEL_FORMS}")
        return np.zeros((n, 0), np.uint8), ()
    if isinstance(given, (str, bytes, Mapping, set, frozenset)) or not hasattr(given, "__len__"):
        raise _wrong_labels(given)
    if hasattr(given, "toarray"):
        raise DataError(f"labels are {describe(given)}, a sparse matrix: give labels.toarray()")
    if len(given) != n:
        raise DataError(f"{len(given):,} labels for {n:,} images: give every image its own")
    _no_mask("labels", given)
    rows = list(given) if not hasattr(given, "__array__") else np.asarray(given)
    if isinstance(rows, list) or (rows.ndim == 1 and rows.dtype == object):
        several = [isinstance(row, _LISTS) for row in rows]
        if not any(several):
            table, columns = _classes(_of_one_type(rows), names)
        elif not all(several):
            at = several.index(not several[0])
            raise DataError(f"labels mix lists and single labels, as rows 0 and {at}: make all of them lists")
        elif all(isinstance(label, str) for row in rows for label in row):
            table, columns = _named(rows, names)
        elif any(isinstance(row, (set, frozenset)) for row in rows) or len({len(row) for row in rows}) > 1:
            raise DataError("lists of labels must hold names: write numbers as strings, ['3', '7'], or give multi-hot")
        else:
            table, columns = _multi_hot(np.asarray([list(row) for row in rows]), names, given)
    elif rows.ndim == 1:
        table, columns = _classes(rows, names)
    elif rows.ndim == 2:
        texts = rows.dtype.kind in "UO" and all(isinstance(label, str) for label in rows.flat)
        table, columns = _named(rows, names) if texts and rows.size else _multi_hot(rows, names, given)
    else:
        raise _wrong_labels(given)
    if columns and not table.any():
        raise DataError("no image has a label: labels=None makes a dataset without labels")
    return table, columns


def _of_one_type(rows: Any) -> NDArray[Any]:
    """Convert single labels of one type to an array; NumPy would turn numbers among strings into strings."""
    for kind in (str, (bool, np.bool_), (int, np.integer), (float, int, np.floating, np.integer)):
        if all(isinstance(label, kind) for label in rows):
            return np.asarray(rows if isinstance(rows, list) else rows.tolist())
    first = type(rows[0])
    row, label = next(
        (i, label) for i, label in enumerate(rows) if type(label) is not first or not isinstance(label, (str, int))
    )
    raise DataError(
        f"labels must all be strings or all be integers: row {row} holds {describe(label)}. For an image without a "
        "label give lists of names, [] for that image"
    )


def _classes(classes: NDArray[Any], names: tuple[str, ...]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Convert one class per image to multi-hot."""
    if classes.dtype.kind == "f":
        integral = np.isfinite(classes) & (classes == np.round(classes))
        if not integral.all():
            row = int(np.argmin(integral))
            raise DataError(f"a class must be a string or a whole number: the label of row {row} is {classes[row]}")
        if (large := np.abs(classes) >= 2**53).any():
            row = int(np.argmax(large))
            raise DataError(
                f"a class that is a float must be below 2**53 in size, the label of row {row} is {classes[row]}: give "
                "integers or strings"
            )
        classes = classes.astype(np.int64)
    if classes.dtype.kind not in "Ubiu":
        raise _wrong_labels(classes)
    values, column = np.unique(classes, return_inverse=True)
    if len(values) == len(classes) > 1:
        raise DataError(
            f"each of the {len(classes):,} images has a class of its own, so that no two are similar: "
            "give classes that images share, or labels=None"
        )
    if not names:
        columns = tuple(str(value) for value in values.tolist())
    elif classes.dtype.kind == "U":
        columns, column = names, _columns(values.tolist(), names)[column]
    else:
        if values[0] < 0 or values[-1] >= len(names):
            raise DataError(f"classes go from {values[0]} to {values[-1]}, label_names name 0 to {len(names) - 1}")
        columns, column = names, values.astype(np.int64)[column]
    table = np.zeros((len(classes), len(columns)), np.uint8)
    table[np.arange(len(classes)), column] = 1
    return table, columns


def _named(rows: Any, names: tuple[str, ...]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Convert lists of names to multi-hot."""
    columns = names or tuple(sorted({str(label) for row in rows for label in row}))
    known = {name: column for column, name in enumerate(columns)}
    _columns(sorted({label for row in rows for label in row}), columns)
    table = np.zeros((len(rows), len(columns)), np.uint8)
    for image, row in enumerate(rows):
        table[image, [known[label] for label in row]] = 1
    return table, columns


def _columns(used: Sequence[str], names: tuple[str, ...]) -> NDArray[np.int64]:
    if unknown := [label for label in used if label not in set(names)]:
        raise DataError(f"labels hold {', '.join(map(repr, unknown[:5]))}, missing in label_names: add them there")
    return np.array([names.index(label) for label in used], np.int64)


def _multi_hot(table: NDArray[Any], names: tuple[str, ...], given: Any) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    if table.dtype.kind not in "biuf" or table.ndim != 2:
        raise _wrong_labels(given)
    wrong = (table != 0) & (table != 1)
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        remedy = (
            "classes have shape (n,): labels.ravel()"
            if table.shape[1] == 1
            else "for labels of -1 and 1 use labels > 0"
        )
        raise DataError(
            f"labels of shape {table.shape} are multi-hot and must be 0 or 1, row {row} holds "
            f"{table[row, column]}; {remedy}"
        )
    if names and len(names) != table.shape[1]:
        raise DataError(
            f"{len(names)} label_names for {table.shape[1]} columns of labels: give one name for each column"
        )
    return table.astype(np.uint8), names or tuple(str(i) for i in range(table.shape[1]))


def _wrong_labels(given: Any) -> DataError:
    return DataError(f"labels must be {LABEL_FORMS}; got {describe(given)}")


def _strings(what: str, given: Any) -> tuple[str, ...]:
    """Convert names to strings; empty for None."""
    if given is None:
        return ()
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__iter__"):
        raise DataError(f"{what} must be a list of strings, got {describe(given)}")
    return tuple(str(name) for name in given)


def _split(
    labels: NDArray[np.uint8],
    label_names: tuple[str, ...],
    names: tuple[str, ...],
    queries: Any,
    train: Any,
    database: Any,
    seed: int,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Return the indices of query, database and training images, and the provenance with the split."""
    n = len(names)
    requested = {"queries": _part("queries", queries, n), "train": _part("train", train, n)}
    counts = {what: None if isinstance(part, np.ndarray) else part for what, part in requested.items()}
    given = {what: part for what, part in requested.items() if isinstance(part, np.ndarray)}
    if database is not None:
        database_rows = _part("database", database, n)
        if not isinstance(database_rows, np.ndarray):
            raise DataError("database must be indices or a mask; by default it is all images except the queries")
        given["database"] = database_rows
    if not given:
        drawn = splits.make(
            "arrays",
            "random",
            labels=labels,
            label_names=label_names,
            names=names,
            seed=seed,
            queries=counts["queries"],
            train=counts["train"],
        )
        parts = {"query": drawn.query, "database": drawn.database, "train": drawn.train}
        return parts | {"provenance": provenance | drawn.provenance}
    order = np.random.default_rng(seed).permutation(n)
    if labels.shape[1]:
        order = order[labels[order].any(axis=1)]

    def draw(what: str, pool: NDArray[np.int64], default: int) -> NDArray[np.int64]:
        count = counts[what] or max(1, min(default, len(pool)))
        if count > len(pool):
            raise DataError(f"{what}: {count:,} images requested, but only {len(pool):,} are left to choose from")
        return np.sort(pool[:count])

    query = given.get("queries")
    if query is None:
        available = order[
            ~np.isin(order, np.concatenate([given[what] for what in ("train", "database") if what in given]))
        ]
        query = draw("queries", available, min(1_000, n // 10))
    rest = order[~np.isin(order, query)]
    train_rows = given["train"] if "train" in given else draw("train", rest, min(5_000, n // 4))
    return {
        "query": query,
        "database": given.get("database", np.sort(rest)),
        "train": train_rows,
        "provenance": provenance | {"split": "indices", "split_description": "as indices say"},
    }


def _part(what: str, given: Any, n: int) -> NDArray[np.int64] | int | None:
    """Return the indices of images, also for a mask; or their number."""
    if given is None:
        return None
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        if given < 1:
            raise DataError(f"{what} must be at least 1 image, or left out, got {given}")
        return int(given)
    array = np.asarray(given) if isinstance(given, (list, tuple, range)) or hasattr(given, "__array__") else None
    if array is None or array.ndim != 1 or (array.dtype.kind not in "biu" and array.size):
        raise DataError(f"{what} must be a number of images, their indices, or a mask (n,); got {describe(given)}")
    if array.dtype.kind == "b" and array.size:
        if len(array) != n:
            raise DataError(f"{what} is a mask of length {len(array):,} for {n:,} images")
        return np.flatnonzero(array)
    return array.astype(np.int64)
