"""Any folder of images: each subfolder is a class; without subfolders the images have no labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hashgym.data.image_files import Listing, folder, list_images, natural, subfolders
from hashgym.data.images import ImageCollection
from hashgym.data.pictures import OpenImage
from hashgym.data.readers import Reader, photos
from hashgym.data.splits import PARTS
from hashgym.storage.errors import DataError

LAYOUT = (
    "PATH/CLASS/*.jpg (or .png, ...), or PATH/PART/CLASS/*.jpg with PART train, test or query and, if wanted, "
    "val and database; or PATH/*.jpg, without labels"
)


def read(root: str | Path, *, follow_links: bool = False, exclude: Sequence[str] = ()) -> ImageCollection:
    """Read the images in the class folders, in natural order; or those of a folder without subfolders, without labels.

    If the subfolders are called ``train``, ``test``, ``val``, ``query``, ``database`` or similar, in any case, and
    contain folders, the classes are the folders in these, and the split ``given`` is based on them. Images may be in
    subfolders of their class, at any depth. The provenance counts what
    :func:`hashgym.data.image_files.list_images` skips.

    Args:
        root: the folder.
        follow_links: follow links to files and folders, out of the folder too.
        exclude: patterns of names, or of paths relative to the folder, to leave out.

    Raises:
        DataError: if there are no images, a class has none, images are outside the classes, or folders for parts of a
            split and others are mixed.
    """
    base = folder(root, LAYOUT)
    options: dict[str, Any] = {"follow_links": follow_links, "exclude": exclude}
    top, skipped = subfolders(base, **options)
    if not top and skipped.names:
        return photos.read(base, prefix="folder", **options)
    if skipped.names:
        raise DataError(
            f"{base} holds images outside class folders ({skipped.names[0]}); expected: {LAYOUT}. photos:{base} reads "
            "all images below it, without labels"
        )
    parts = _parts(base, top, options)
    files: dict[tuple[str, str], list[str]] = {}  # part, class -> names
    for part in parts or [""]:
        labels, other_entries = subfolders(base, part, **options) if part else (top, Listing())
        skipped.add(other_entries)
        for label in labels:
            found = list_images(base, f"{part}/{label}" if part else label, **options)
            files[part, label] = found.names
            skipped.add(found)
    classes = sorted({label for _, label in files}, key=natural)
    hint = f" (skipped: {summary})" if (summary := skipped.summary()) else ""
    if not classes:
        raise DataError(f"{base} has no subfolders and no images{hint}; expected: {LAYOUT}")
    if empty := [label for label in classes if not any(files.get((part, label)) for part in parts or [""])]:
        raise DataError(
            f"class folder {empty[0]!r} in {base} holds no images{hint}; fill it, remove it, or leave it out with "
            f"--exclude {empty[0]}"
        )
    listed = [
        (name, target)
        for part in parts or [""]
        for target, label in enumerate(classes)
        for name in files.get((part, label), ())
    ]
    names, targets = [name for name, _ in listed], np.array([target for _, target in listed])
    source = f"folder {base.resolve().name}, one class a subfolder"
    if parts:
        source += f", in folders for the parts of a split: {', '.join(parts)}"
    else:
        inner = {path[1] for name in names if len(path := name.split("/")) > 2 and path[1].lower() in PARTS}
        if len({PARTS[part.lower()] for part in inner}) > 1:
            source += f"; {', '.join(sorted(inner))} inside classes are not taken for parts of a split: put them above"
    return ImageCollection(
        name=f"folder:{base.resolve().name}",
        names=tuple(names),
        labels=(targets[:, None] == np.arange(len(classes))).astype(np.uint8),
        label_names=tuple(classes),
        read=(opener := OpenImage(base, names, inside=not follow_links)),
        stamp=opener.stamp,
        provenance={"source": source, **({"passed_over": summary} if summary else {})},
    )


READER = Reader(read, LAYOUT, options=("follow_links", "exclude"))


def _parts(base: Path, top: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Return the subfolders that are parts of a split; none if the subfolders are classes."""
    named = [name for name in top if name.lower() in PARTS]
    loose = {name: images[0] for name in named if (images := subfolders(base, name, **options)[1].names)}
    holders = [name for name in named if name not in loose]
    several = len({PARTS[name.lower()] for name in named}) > 1
    if len(named) == len(top):
        if several and loose:
            name, image = next(iter(loose.items()))
            raise DataError(
                f"{base / name} is for a part of a split, by its name, and holds images outside class folders "
                f"({image}); expected: {LAYOUT}"
            )
        return [] if loose else named
    if len({PARTS[name.lower()] for name in holders}) > 1:
        others = [name for name in top if name not in holders]
        raise DataError(
            f"{base} mixes folders for the parts of a split ({', '.join(holders)}) and others ({', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}): move the others into these, or leave them out with --exclude "
            f"{others[0]}; expected: {LAYOUT}"
        )
    return []
