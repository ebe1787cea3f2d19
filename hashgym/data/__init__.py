"""Datasets: features, labels and splits."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hashgym.checks import closest
from hashgym.data import splits
from hashgym.data.dataset import FROM_ARRAYS, HashingDataset
from hashgym.data.images import ImageCollection
from hashgym.storage.errors import DataError, describe
from hashgym.text import quote

__all__ = ["DataError", "DatasetInfo", "HashingDataset", "ImageCollection", "datasets", "load", "read_images"]


@dataclass(frozen=True)
class DatasetInfo:
    """What can be read: a line of ``hashgym datasets``.

    Attributes:
        name: what ``--dataset`` and :func:`load` call it.
        description: what it shows.
        reads_from: the files and folders that are wanted.
        splits: descriptions of its splits by name, the default first.
        embedded: True if :func:`load` makes it without any file; False if it is images on disk, read by
            :func:`read_images`.
    """

    name: str
    description: str
    reads_from: str
    splits: dict[str, str]
    embedded: bool = False


# name: module, description, where it is read from
_EMBEDDED = {
    "digits": ("digits", "1,797 handwritten digits of 8 x 8 pixels, 10 classes", "scikit-learn; nothing to download"),
    "digit-scenes": (
        *("digit_scenes", "boards of 1 to 4 handwritten digits, 10 labels, with regions"),
        "composed from scikit-learn's digits; nothing to download",
    ),
}
_ON_DISK = {
    "cifar10": ("cifar10", "60,000 pictures of 32 x 32 pixels, 10 classes"),
    "mirflickr25k": ("mirflickr25k", "25,000 Flickr photos, 38 labels"),
    "nuswide21": ("nuswide21", "NUS-WIDE's photos with its 21 most frequent concepts"),
    "coco": ("coco", "COCO 2014, 123,287 photos, 80 labels"),
    "folder:PATH": ("folders", "any folder of class folders"),
    "list:FILE": (
        "lists",
        "any list of `path 0 1 0 ...` or `path 7` lines, or a folder of train.txt, test.txt and database.txt",
    ),
}


def datasets() -> list[DatasetInfo]:
    """Every dataset that can be read, embedded ones first."""

    def described(name: str) -> dict[str, str]:
        return {split: rule.description for split, rule in splits.rules(name).items()}

    embedded = [DatasetInfo(n, what, where, described(n), True) for n, (_, what, where) in _EMBEDDED.items()]
    on_disk = [DatasetInfo(n, what, _module(file).LAYOUT, described(n)) for n, (file, what) in _ON_DISK.items()]
    return embedded + on_disk


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
        dataset: a name out of :func:`datasets`, with ``folder:PATH`` and ``list:FILE`` filled in.
        root: the folder that holds the dataset. For ``list:`` the folder that the paths in the list start from, the
            list's own by default; for ``folder:`` it is not needed.
        allow_missing: leave images out that are listed but not there (NUS-WIDE, COCO, lists), instead of an error.
        follow_links: with ``folder:`` and ``list:``, follow links to files and folders, and read what lies outside the
            folder; links are passed over otherwise. The other datasets are read as their folders are laid out.
        exclude: with ``folder:`` and ``list:``, patterns of names or relative paths that are left out.

    Raises:
        DataError: for an unknown name, a missing root, or files that are not as they should be.
    """
    kind, _, path = dataset.partition(":")
    if kind == "folder" and path:
        return _module("folders").read(path, follow_links=follow_links, exclude=exclude)
    if kind == "list" and path:
        return _module("lists").read(
            path, root, allow_missing=allow_missing, follow_links=follow_links, exclude=exclude
        )
    if dataset in _EMBEDDED:
        raise DataError(f"{dataset} is embedded and has features already: use hashgym.data.load({dataset!r})")
    if dataset not in _ON_DISK or path or ":" in dataset:
        raise DataError(
            f"there is no dataset {dataset!r}{closest(dataset, _ON_DISK)} of images; there are {', '.join(_ON_DISK)}"
        )
    if exclude:
        raise DataError(f"{dataset} has a fixed set of images: --exclude is for folder:PATH and list:FILE")
    reader = _module(_ON_DISK[dataset][0])
    if root is None:
        raise DataError(f"{dataset} needs the folder it lies in (--root); wanted: {reader.LAYOUT}")
    options = {"allow_missing": allow_missing} if dataset in ("nuswide21", "coco") else {}
    return reader.read(root, **options)


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
            returned as it is unless another split is asked for.
        split: a split by name (see :func:`datasets`), instead of the stored one.
        seed: what the split is drawn with, instead of the stored one; 0 by default.
        queries: number of queries, instead of the split's own.
        train: number of training images, instead of the split's own.

    Raises:
        DataError: for an unknown name, a dataset whose features are not extracted yet, a damaged folder, or a split
            that the data cannot give.
    """
    again = any(option is not None for option in (split, seed, queries, train))
    if not isinstance(source, HashingDataset):
        source = checked_source(source)
    if isinstance(source, HashingDataset):
        dataset = source
    elif source in _EMBEDDED:
        dataset = _module(_EMBEDDED[str(source)][0]).load(seed or 0)
    elif str(source).partition(":")[0] in (name.partition(":")[0] for name in _ON_DISK) and not Path(source).exists():
        root = "" if str(source).startswith("folder:") else " --root DIR"
        raise DataError(
            f"{source} is a set of images: extract features first, then load the folder they are written to: "
            f"hashgym features --dataset {quote(source)}{root} --backbone efficientnet_lite0 --out DIR"
        )
    elif Path(source).exists():
        dataset = importlib.import_module("hashgym.data.cache").open_cache(Path(source), all_labels=again)
    else:
        close = closest(source, _EMBEDDED)
        raise DataError(f"{source} is neither a folder of features nor one of {', '.join(_EMBEDDED)}{close}")
    if not again:
        return dataset
    dataset.require("labels")
    stored = dataset.provenance
    if split is None:
        split = stored.get("split")
        queries, train = queries or stored.get("split_queries"), train or stored.get("split_train")
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
    """A dataset's name or folder as text.

    Raises:
        DataError: for arrays, tables and whatever else is neither, and for a text that can be no path.
    """
    if not isinstance(source, (str, os.PathLike)) or isinstance(source, bytes):
        raise DataError(
            f"a dataset is a name ({', '.join(_EMBEDDED)}), a folder of features or a HashingDataset, got "
            f"{describe(source)}: {FROM_ARRAYS} makes a dataset of arrays"
        )
    try:
        Path(source).exists()
    except (OSError, ValueError) as error:
        raise DataError(f"{str(source)[:60]!r} cannot be the name of a dataset or folder: {error.args[-1]}") from None
    return os.fspath(source)


def _module(name: str) -> Any:
    return importlib.import_module(f"hashgym.data.readers.{name}")
