"""Datasets: features, labels and splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hashgym.checks import check_integer, closest
from hashgym.data import splits
from hashgym.data.cache import open_cache
from hashgym.data.dataset import FROM_ARRAYS, HashingDataset
from hashgym.data.images import ImageCollection
from hashgym.data.readers import DATASETS, Reader, find_reader
from hashgym.storage.errors import DataError, describe
from hashgym.text import quote

__all__ = [
    "DataError",
    "DatasetInfo",
    "HashingDataset",
    "ImageCollection",
    "Reader",
    "datasets",
    "load",
    "read_images",
    "register",
]


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset that can be read: a line of ``hashgym datasets``.

    Attributes:
        name: for ``--dataset`` and :func:`load`.
        description: one line.
        reads_from: the files and folders that are read.
        splits: descriptions of its splits by name, the default first.
        embedded: True if :func:`load` creates it without any file; False if it is images on disk, read by
            :func:`read_images`.
    """

    name: str
    description: str
    reads_from: str
    splits: dict[str, str]
    embedded: bool = False


def datasets() -> list[DatasetInfo]:
    """List every dataset that can be read, embedded ones first."""
    listed = []
    for name, description in DATASETS.descriptions.items():
        reader = DATASETS.find(name)
        described = {split: rule.description for split, rule in splits.rules(name).items()}
        listed.append(DatasetInfo(name, description, reader.reads_from, described, reader.embedded))
    return sorted(listed, key=lambda info: not info.embedded)


def register(name: str, reader: Reader | str, description: str) -> None:
    """Add a dataset of your own, for :func:`read_images` or, embedded, for :func:`load`.

    Args:
        name: its name; ``"pets:PATH"`` is a dataset whose name contains a path, like ``folder:PATH``.
        reader: its reader, or where that is, as "package.module:READER", which is imported at first use.
        description: one line for :func:`datasets`.

    Raises:
        ValueError: if the name is taken by another dataset, or the reader is neither a reader nor of that form.
    """
    if not isinstance(reader, (str, Reader)):
        raise ValueError(f"reader must be a hashgym.data.Reader or 'package.module:READER', got {describe(reader)}")
    DATASETS.register(name, reader, description)


def read_images(
    dataset: str,
    root: str | Path | None = None,
    *,
    allow_missing: bool = False,
    follow_links: bool = False,
    exclude: Sequence[str] = (),
) -> ImageCollection:
    """Find a dataset's images and labels on disk; no image is decoded yet.

    Args:
        dataset: a name of :func:`datasets`, with ``folder:PATH``, ``photos:PATH`` and ``list:FILE`` filled in.
        root: the folder of the dataset. For ``list:`` the folder that the paths in the list are relative to, by default
            that of the list; not needed for ``folder:`` and ``photos:``.
        allow_missing: leave out images that are listed but missing (NUS-WIDE, COCO, lists), instead of an error.
        follow_links: with ``folder:``, ``photos:`` and ``list:``, follow links to files and folders, also out of the
            folder; they are skipped by default. In other datasets links are always followed.
        exclude: with ``folder:``, ``photos:`` and ``list:``, patterns of names or relative paths to leave out.

    Raises:
        DataError: for an unknown name, a missing root or one beside the path of the dataset, or missing or invalid
            files.
    """
    found = find_reader(dataset)
    if found is None:
        names = _names(embedded=False)
        raise DataError(
            f"unknown dataset of images {dataset!r}{closest(dataset, names)}: choose one of {', '.join(names)}"
        )
    reader, path = found
    if reader.embedded:
        raise DataError(f"{dataset} is embedded and has features already: use hashgym.data.load({dataset!r})")
    if exclude and "exclude" not in reader.options:
        raise DataError(f"{dataset} has a fixed set of images: --exclude is for folder:PATH, photos:PATH and list:FILE")
    if root is None and not path:
        raise DataError(f"{dataset} needs the folder that it is in (--root); expected: {reader.reads_from}")
    if root is not None and path and "root" not in reader.options:
        raise DataError(f"{dataset} names its folder itself: leave out --root, or name the folder below it as well")
    given = {"root": root, "allow_missing": allow_missing, "follow_links": follow_links, "exclude": exclude}
    collection: ImageCollection = reader.read(path or root, **{name: given[name] for name in reader.options})
    return collection


def load(
    source: str | Path | HashingDataset,
    *,
    split: str | None = None,
    seed: int | None = None,
    queries: int | None = None,
    train: int | None = None,
) -> HashingDataset:
    """Load a dataset of features.

    Args:
        source: ``"digits"``, ``"digit-scenes"``, a folder that ``hashgym features`` wrote, or a dataset, which is
            returned unchanged unless another split is given.
        split: a split by name (see :func:`datasets`), instead of the stored one.
        seed: seed of the split, instead of the stored one; 0 by default.
        queries: number of queries, instead of the split's own.
        train: number of training images, instead of the split's own.

    Raises:
        DataError: for an unknown name, a dataset whose features are not extracted yet, a damaged folder, or a split
            that the data do not allow.
        ValueError: for a number of queries or training images below 1.
    """
    for name, count in (("queries", queries), ("train", train)):
        if count is not None:
            check_integer(name, count)
    redraw = any(option is not None for option in (split, seed, queries, train))
    if not isinstance(source, HashingDataset):
        source = checked_source(source)
    if isinstance(source, HashingDataset):
        dataset = source
    elif (found := find_reader(source)) is not None and found[0].embedded:
        dataset = found[0].read(seed or 0)
    elif Path(source).exists():
        dataset = open_cache(Path(source), all_labels=redraw)
    elif found is not None:
        root = "" if source.startswith(("folder:", "photos:")) else " --root DIR"
        raise DataError(
            f"{source} is a set of images: extract features first, then load the folder they are written to: "
            f"hashgym features --dataset {quote(source)}{root} --backbone efficientnet_lite0 --out DIR"
        )
    else:
        names = _names(embedded=True)
        close = closest(source, names)
        raise DataError(f"{source} is neither a folder of features nor one of {', '.join(names)}{close}")
    if not redraw:
        return dataset
    stored = dataset.provenance
    if split is None:
        split = stored.get("split")
        queries = stored.get("split_queries") if queries is None else queries
        train = stored.get("split_train") if train is None else train
    drawn = splits.make(
        dataset.name,
        split,
        labels=dataset.labels,
        label_names=dataset.label_names,
        names=dataset.names,
        seed=stored.get("split_seed", 0) if seed is None else seed,
        queries=queries,
        train=train,
    )
    return dataset.with_split(drawn)


def checked_source(source: Any) -> str:
    """Return a dataset's name or folder as text.

    Raises:
        DataError: for arrays, tables and other types, and for a text that cannot be a path.
    """
    if not isinstance(source, (str, os.PathLike)) or isinstance(source, bytes):
        raise DataError(
            f"a dataset is a name ({', '.join(_names(embedded=True))}), a folder of features or a HashingDataset, got "
            f"{describe(source)}: {FROM_ARRAYS} makes a dataset of arrays"
        )
    try:
        Path(source).exists()
    except (OSError, ValueError) as error:
        raise DataError(f"{str(source)[:60]!r} cannot be the name of a dataset or folder: {error.args[-1]}") from None
    return os.fspath(source)


def _names(*, embedded: bool) -> list[str]:
    return [info.name for info in datasets() if info.embedded == embedded]
