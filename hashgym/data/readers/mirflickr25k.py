"""MIRFLICKR-25k (Huiskes and Lew, 2008): Flickr photos with 24 labels and 14 strict versions of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from hashgym.data.image_files import find, folder, natural
from hashgym.data.images import ImageCollection
from hashgym.data.pictures import OpenImage
from hashgym.data.readers import Reader
from hashgym.storage.errors import DataError
from hashgym.storage.reading import read_bounded

PHOTOS = 25_000
POTENTIAL = (
    *("animals", "baby", "bird", "car", "clouds", "dog", "female", "flower", "food", "indoor", "lake", "male"),
    *("night", "people", "plant_life", "portrait", "river", "sea", "sky", "structures", "sunset", "transport"),
    *("tree", "water"),
)
STRICT = (
    *("baby", "bird", "car", "clouds", "dog", "female", "flower", "male", "night", "people", "portrait", "river"),
    *("sea", "tree"),
)
LABELS = (*POTENTIAL, *(f"{name}_r1" for name in STRICT))
LAYOUT = (
    "im1.jpg ... im25000.jpg in this folder or in mirflickr/, and the 38 annotation lists (animals.txt, baby.txt, "
    "baby_r1.txt, ...) beside them or in annotations/ or mirflickr25k_annotations_v080/"
)


def read(root: str | Path) -> ImageCollection:
    """Read all photos that are present, with 38 labels: 24 names (may be visible), 14 ``NAME_r1`` (clearly visible).

    Args:
        root: the folder that the official archives were unpacked in, or the folder of the photos.

    Raises:
        DataError: if photos or lists are not found, or a list has anything but numbers from 1 to 25,000.
    """
    base = folder(root, LAYOUT)
    photos = next((p for p in (base, base / "mirflickr", base / "images") if any(p.glob("im[0-9]*.jpg"))), None)
    if photos is None:
        raise DataError(f"{base} holds no im*.jpg, nor do mirflickr/ and images/ in it; expected: {LAYOUT}")
    places = ("mirflickr25k_annotations_v080", "annotations", "mirflickr/annotations")
    lists = find(base, *(f"{p}/{LABELS[0]}.txt" for p in (*places, ".", "mirflickr")), wanted=LAYOUT).parent

    found = (file.name for file in photos.glob("im*.jpg") if re.fullmatch(r"im[0-9]+\.jpg", file.name))
    names = tuple(sorted(found, key=natural))
    labels = np.zeros((PHOTOS + 1, len(LABELS)), np.uint8)
    for column, label in enumerate(LABELS):
        labels[_ids(lists / f"{label}.txt"), column] = 1
    if not names:
        raise DataError(f"{photos} holds no im1.jpg, im2.jpg, ...; expected: {LAYOUT}")
    numbers = np.array([int(name[2:-4]) for name in names])
    if numbers.max() > PHOTOS or numbers.min() < 1:
        raise DataError(f"{photos} holds im{numbers.max()}.jpg; MIRFLICKR-25k ends at im{PHOTOS}.jpg")
    return ImageCollection(
        name="mirflickr25k",
        names=names,
        labels=labels[numbers],
        label_names=LABELS,
        read=(opener := OpenImage(photos, names)),
        stamp=opener.stamp,
        provenance={"source": "MIRFLICKR-25k", "images": f"{len(names):,} of {PHOTOS:,} photos present"},
    )


READER = Reader(read, LAYOUT)


def _ids(path: Path) -> list[int]:
    """Read the photo numbers in an annotation list, one per line."""
    try:
        ids = [int(line) for line in read_bounded(path).split()]
    except FileNotFoundError:
        raise DataError(f"annotation list {path} is missing; expected: {LAYOUT}") from None
    except ValueError as error:
        raise DataError(f"annotation list {path} must hold one photo number a line: {error}") from None
    if ids and not (min(ids) >= 1 and max(ids) <= PHOTOS):
        raise DataError(f"annotation list {path} has photo numbers outside 1 to {PHOTOS}: {min(ids)} to {max(ids)}")
    return ids
