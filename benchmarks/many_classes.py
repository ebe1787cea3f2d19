"""Many classes with few photos each, of MIRFLICKR: a folder with a subfolder for each of the most frequent label sets.

    python -m benchmarks.many_classes --root MIRFLICKR --out photos/label-sets
    hashgym features --dataset folder:photos/label-sets --backbone NAME --queries 500 --train 2500 --out DIR

A class holds the photos that have exactly its labels, out of the 24 that are not strict. The folder is data like any
other with one class a subfolder, for ``benchmarks.drlih``, ``benchmarks.end_to_end`` and all commands.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.arguments import check_not_empty
from hashgym.console import Console
from hashgym.data.pictures import OpenImage
from hashgym.data.readers import mirflickr25k
from hashgym.storage import owned
from hashgym.storage.errors import DataError
from hashgym.terminal import command_line, parse

__all__ = ["Args", "label_sets", "main"]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Copy photos of MIRFLICKR into a folder for each of the most frequent sets of labels."""

    root: Path
    """folder of MIRFLICKR's photos and annotation lists"""
    out: Path
    """folder to write, new or empty"""
    classes: int = 50
    """number of classes"""
    photos: int = 90
    """the most photos of a class, the first by their number"""


def label_sets(labels: NDArray[np.uint8], count: int) -> list[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Return the most frequent sets of labels, each with the rows that have exactly it; not the set of none.

    Args:
        labels: multi-hot (n, L).
        count: number of sets; among equals the ones first in the order of ``numpy.unique``.

    Raises:
        ValueError: if there are fewer.
    """
    sets, members = np.unique(labels, axis=0, return_inverse=True)
    sizes = np.bincount(members.ravel(), minlength=len(sets)) * sets.any(axis=1)
    order = np.argsort(-sizes, kind="stable")[:count]
    if len(order) < count or not sizes[order].all():
        raise ValueError(f"the photos have {np.count_nonzero(sizes)} sets of labels: ask for no more classes")
    return [(sets[k], np.flatnonzero(members.ravel() == k)) for k in order]


def main(args: Args, console: Console | None = None) -> int:
    """Copy the photos; returns their number.

    Raises:
        DataError: if ``root`` is not MIRFLICKR, or ``out`` holds something.
        ValueError: for more classes than there are sets of labels.
    """
    check_not_empty(args, "classes", "photos")
    if args.out.exists() and not owned.is_empty(args.out):
        raise DataError(f"{args.out} exists already: choose another name")
    collection = mirflickr25k.read(args.root)
    kept = len(mirflickr25k.POTENTIAL)
    chosen = label_sets(collection.labels[:, :kept], args.classes)
    source, names = cast(OpenImage, collection.read).root, np.array(mirflickr25k.POTENTIAL)
    work = args.out.with_name(f"{args.out.name}.partial")
    owned.remove(work)  # of a copy that was stopped
    owned.create(work)
    for hot, rows in chosen:
        target = work / "-".join(names[hot > 0])
        target.mkdir(exist_ok=True)
        for row in rows[: args.photos]:
            shutil.copyfile(source / collection.names[row], target / collection.names[row])
    owned.publish(work, args.out)
    copied = sum(min(len(rows), args.photos) for _, rows in chosen)
    (console or Console()).print(f"{copied:,} photos of {args.classes} classes in {args.out}")
    return copied


if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.many_classes"))
