"""COCO 2014 (Lin et al., 2014): 82,783 training and 40,504 validation photos with 80 kinds of objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hashgym.data.image_files import find, folder, require_all
from hashgym.data.images import ImageCollection
from hashgym.data.pictures import OpenImage
from hashgym.data.readers import Reader
from hashgym.storage.errors import DataError
from hashgym.storage.reading import read_bounded

PARTS = ("train2014", "val2014")
LAYOUT = "annotations/instances_train2014.json, annotations/instances_val2014.json, train2014/*.jpg and val2014/*.jpg"


def read(root: str | Path, *, allow_missing: bool = False) -> ImageCollection:
    """Read training photos, then validation photos, by number; the labels are the objects outlined in a photo.

    Photos without objects have no label, so they are in no split.

    Args:
        root: the folder that the official archives were unpacked in.
        allow_missing: leave out photos that are listed but missing, instead of an error.

    Raises:
        DataError: if a file is not found or damaged, the two lists of categories differ, or photos are missing.
    """
    base = folder(root, LAYOUT)
    files: dict[int, str] = {}
    objects: list[tuple[int, int]] = []
    categories: list[dict[int, str]] = []
    for part in PARTS:
        path = find(base, f"annotations/instances_{part}.json", f"instances_{part}.json", wanted=LAYOUT)
        find(base, part, wanted=LAYOUT)
        try:
            content = json.loads(read_bounded(path), object_hook=_needed_fields)
            listed = {number: f"{part}/{file}" for number, file in sorted(content["images"])}
            if len({*listed.values()}) < len(content["images"]) or files.keys() & listed.keys():
                raise ValueError("an image is listed twice")
            files |= listed
            objects += [(image, category) for image, category in content["annotations"]]
            categories.append(dict(sorted(content["categories"])))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is damaged or not a COCO annotation file: {error!r}") from None
    if categories[0] != categories[1]:
        raise DataError(f"the annotation files of {' and '.join(PARTS)} in {base} have different categories")

    rows, columns = {n: i for i, n in enumerate(files)}, {n: i for i, n in enumerate(categories[0])}
    labels = np.zeros((len(rows), len(columns)), np.uint8)
    try:
        labels[[rows[image] for image, _ in objects], [columns[category] for _, category in objects]] = 1
    except (KeyError, TypeError) as error:
        raise DataError(f"annotations in {base} have image or category {error}, which is not listed") from None
    existing = {f"{part}/{file.name}" for part in PARTS for file in (base / part).iterdir()}
    present = [name in existing for name in files.values()]
    missing = require_all("coco", files.values(), present, allow_missing)
    names = tuple(name for name in files.values() if name in existing)
    return ImageCollection(
        name="coco",
        names=names,
        labels=labels[np.array(present, bool)],
        label_names=tuple(categories[0].values()),
        read=(opener := OpenImage(base, names)),
        stamp=opener.stamp,
        provenance={"source": "COCO 2014", "missing": len(missing)},
    )


READER = Reader(read, LAYOUT, options=("allow_missing",))


def _needed_fields(entry: dict[str, Any]) -> Any:
    """Reduce a JSON object to the needed fields: outlines are dropped while reading, to bound the memory."""
    if "category_id" in entry:
        return entry["image_id"], entry["category_id"]
    if "file_name" in entry:
        return entry["id"], entry["file_name"]
    if "supercategory" in entry:
        return entry["id"], entry["name"]
    return entry
