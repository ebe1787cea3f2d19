"""Find the pictures of an index that look alike: groups whose codes are near each other. Nothing is deleted.

Near codes mean that pictures look alike to the encoder; they do not prove that the files are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import check_integer
from hashgym.data.image_files import natural, stamp
from hashgym.gallery.search import Gallery
from hashgym.optional import require
from hashgym.storage.errors import DataError
from hashgym.storage.pipeline import progress_bar

__all__ = ["RADIUS", "DuplicateGroup", "GroupedPicture", "find_duplicates"]

RADIUS = 2  # bits: copies that were scaled or saved again differ in the few bits whose margins are nearly 0
AT_ONCE = 1 << 10  # codes that are looked up together, at most
PAIRS = 1 << 22  # pairs of near pictures that are in memory at once, roughly


@dataclass(frozen=True)
class GroupedPicture:
    """A picture of a group.

    Attributes:
        id: id of the picture in the index.
        name: name of the picture, relative to the root.
        path: path of the file, links followed; None if it is outside the root.
        size: width and height in pixels, when the picture was encoded.
        bytes: size of the file now; None if it is missing.
        modified: time of the last change of the file, in seconds since 1970; None if it is missing.
        largest: whether it has the most pixels of the group, then the most bytes; ties go to the first. Never a missing
            file.
        oldest: whether its file was changed the longest ago; ties go to the first. Never a missing file.
    """

    id: int
    name: str
    path: Path | None
    size: tuple[int, int]
    bytes: int | None
    modified: float | None
    largest: bool = False
    oldest: bool = False

    @property
    def time(self) -> str:
        """The time of the last change in the time zone of this machine, "2024-05-31 17:02:59"; empty if missing."""
        return "" if self.modified is None else f"{datetime.fromtimestamp(self.modified):%Y-%m-%d %H:%M:%S}"

    @property
    def marks(self) -> list[str]:
        """The marks of the picture: "largest", "oldest", both or none."""
        return [name for name, has in (("largest", self.largest), ("oldest", self.oldest)) if has]


@dataclass(frozen=True)
class DuplicateGroup:
    """Two or more pictures that look alike, in natural order of their names."""

    pictures: tuple[GroupedPicture, ...]

    def __len__(self) -> int:
        return len(self.pictures)


def find_duplicates(gallery: Gallery, radius: int = RADIUS, progress: bool = False) -> list[DuplicateGroup]:
    """Return groups of pictures that look alike, the largest groups first, then by the name of the first picture.

    Two pictures are in one group if one of the codes of the first is within the radius of one of the second, or if a
    chain of such pairs leads from one to the other. So pictures of a group may be farther apart than the radius.

    Args:
        gallery: an open index.
        radius: largest Hamming distance of a pair, from 0 (equal codes) to the number of bits of a code.
        progress: show a progress bar.

    Returns:
        Groups of two pictures or more; no picture is in two of them.

    Raises:
        ValueError: for another radius.
        DataError: if the back end and the index do not fit together.
        MissingPackageError: if SciPy is not installed.
    """
    check_integer("radius", radius, 0, gallery.encoder.bits)
    groups = [_group(gallery, rows) for rows in _connected(gallery, radius, progress)]
    return sorted(groups, key=lambda group: (-len(group), natural(group.pictures[0].name)))


def _connected(gallery: Gallery, radius: int, progress: bool) -> Iterator[NDArray[np.intp]]:
    """Yield the rows of the pictures of each group.

    Every distinct code is looked up once, for one of the pictures that have it: a lookup also finds the others.
    """
    sparse = require("scipy.sparse", "the search for duplicates")
    connected_components = require("scipy.sparse.csgraph", "the search for duplicates").connected_components
    codes, n = gallery.codes, len(gallery)
    words = codes.words[codes.kept]
    owners = np.nonzero(codes.kept)[0]
    distinct = np.unique(words, axis=0, return_index=True)[1]
    labels = np.arange(n)  # of the groups so far
    start, count = 0, min(AT_ONCE, 64)
    with progress_bar(len(distinct), 0, progress, "comparing", "codes") as tick:
        while start < len(distinct):
            part = distinct[start : start + count]
            offsets, ids, _ = gallery.index.within(words[part], radius)
            a, b = labels[np.repeat(owners[part], np.diff(offsets))], labels[gallery.rows(ids)]
            if (new := a != b).any():
                pairs = sparse.coo_array((np.ones(int(new.sum()), np.bool_), (a[new], b[new])), shape=(n, n))
                labels = connected_components(pairs, directed=False)[1][labels]
            tick(len(part))
            start += len(part)
            count = max(1, min(AT_ONCE, PAIRS * len(part) // max(1, len(ids))))
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[order])) + 1
    yield from (rows for rows in np.split(order, ends) if len(rows) > 1)


def _group(gallery: Gallery, rows: NDArray[np.intp]) -> DuplicateGroup:
    """Return the group of the pictures in some rows, with the state of their files."""
    pictures = sorted((_picture(gallery, int(row)) for row in rows), key=lambda picture: natural(picture.name))
    present = [picture for picture in pictures if picture.bytes is not None and picture.modified is not None]
    largest = max(present, key=lambda picture: (picture.size[0] * picture.size[1], picture.bytes or 0), default=None)
    oldest = min(present, key=lambda picture: picture.modified or 0.0, default=None)
    return DuplicateGroup(
        tuple(replace(picture, largest=picture is largest, oldest=picture is oldest) for picture in pictures)
    )


def _picture(gallery: Gallery, row: int) -> GroupedPicture:
    """Return the picture in a row of the index, with the state of its file."""
    id, path, size, time = int(gallery.ids[row]), None, -1, -1
    with suppress(DataError, OSError):
        path = gallery.path(id)
        size, time = stamp(path)
    missing = size < 0
    name = gallery.names.at(row)
    return GroupedPicture(id, name, path, gallery.size(id), None if missing else size, None if missing else time / 1e9)
