"""NUS-WIDE (Chua et al., 2009): 269,648 Flickr photos with 81 concepts, of which the 21 most frequent are used."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashgym.data.image_files import find, folder, require_all
from hashgym.data.images import ImageCollection
from hashgym.data.pictures import OpenImage
from hashgym.data.readers import Reader
from hashgym.storage.errors import DataError
from hashgym.storage.reading import read_bounded

CONCEPTS = 21
LAYOUT = (
    "ConceptsList/Concepts81.txt, Groundtruth/AllLabels/Labels_CONCEPT.txt, ImageList/Imagelist.txt "
    "and the photos Flickr/CONCEPT/NAME.jpg, as the official archives unpack"
)


def read(root: str | Path, *, allow_missing: bool = False) -> ImageCollection:
    """Read the photos with at least one of the 21 most frequent concepts (195,834 of all 269,648).

    Concepts are counted over the complete list, including missing photos, and keep the order of the list.

    Args:
        root: the folder that the official archives were unpacked in.
        allow_missing: leave out photos that are listed but missing, instead of an error.

    Raises:
        DataError: if a list is not found or lists disagree in length, or photos are missing.
    """
    base = folder(root, LAYOUT)
    concepts = _text(find(base, "ConceptsList/Concepts81.txt", "Concepts81.txt", wanted=LAYOUT)).split()
    listing = _text(find(base, "ImageList/Imagelist.txt", "Imagelist.txt", wanted=LAYOUT))
    paths = [line.strip().replace("\\", "/") for line in listing.splitlines() if line.strip()]
    if not concepts or len(set(concepts)) < len(concepts) or len(set(paths)) < len(paths):
        raise DataError(f"the lists in {base} have no concept, or a concept or a photo twice; expected: {LAYOUT}")
    truth = find(base, "Groundtruth/AllLabels", "AllLabels", wanted=LAYOUT)
    photos = find(base, "Flickr", "images", wanted=LAYOUT)

    table = np.stack([_column(truth / f"Labels_{concept}.txt", len(paths)) for concept in concepts], axis=1)
    kept = np.sort(np.argsort(-table.sum(axis=0, dtype=np.int64), kind="stable")[:CONCEPTS])
    labels = table[:, kept]
    used = np.flatnonzero(labels.any(axis=1))
    names = [paths[i] for i in used]
    # Listing each folder is much faster than a query for each photo, in particular on a network drive.
    existing = {str(p.name): {f.name for f in p.iterdir()} for p in photos.iterdir() if p.is_dir()}
    present = [name.rpartition("/")[2] in existing.get(name.rpartition("/")[0], ()) for name in names]
    missing = require_all("nuswide21", names, present, allow_missing)
    names = [name for name, is_present in zip(names, present, strict=True) if is_present]
    return ImageCollection(
        name="nuswide21",
        names=tuple(names),
        labels=labels[used[np.array(present, bool)]],
        label_names=tuple(concepts[i] for i in kept),
        read=(opener := OpenImage(photos, names)),
        stamp=opener.stamp,
        provenance={
            "source": "NUS-WIDE",
            "images": f"{len(names):,} of {len(paths):,} photos have one of the {len(kept)} most frequent concepts",
            "missing": len(missing),
        },
    )


READER = Reader(read, LAYOUT, options=("allow_missing",))


def _text(path: Path) -> str:
    return read_bounded(path).decode("utf-8", "surrogateescape")


def _column(path: Path, rows: int) -> NDArray[np.uint8]:
    """Read a file with 0 or 1 on each line."""
    if not os.path.isfile(path):  # also False for a name that is too long
        raise DataError(f"{path} is missing; expected: {LAYOUT}")
    octets = np.frombuffer(read_bounded(path), np.uint8)
    digits = octets[octets > ord(" ")] - np.uint8(ord("0"))
    if len(digits) != rows or (rows and digits.max() > 1):
        raise DataError(f"{path} must hold 0 or 1 for each of the {rows:,} photos of Imagelist.txt, one a line")
    return digits
