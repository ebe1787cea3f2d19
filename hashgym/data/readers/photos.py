"""Any folder: all images below it, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hashgym.data.image_files import folder, list_images
from hashgym.data.images import ImageCollection
from hashgym.data.pictures import OpenImage
from hashgym.data.readers import Reader
from hashgym.storage.errors import DataError

LAYOUT = "PATH with *.jpg (or .png, ...) in it or in folders below it"


def read(
    root: str | Path, *, follow_links: bool = False, exclude: Sequence[str] = (), prefix: str = "photos"
) -> ImageCollection:
    """Read all images in a folder and below it, in natural order, without labels.

    The provenance counts what :func:`hashgym.data.image_files.list_images` skips.

    Args:
        root: the folder.
        follow_links: follow links to files and folders, out of the folder too.
        exclude: patterns of names, or of paths relative to the folder, to leave out.
        prefix: of the dataset's name.

    Raises:
        DataError: if there are no images.
    """
    base = folder(root, LAYOUT)
    found = list_images(base, follow_links=follow_links, exclude=exclude)
    skipped = found.summary()
    if not found.names:
        hint = f" (skipped: {skipped})" if skipped else ""
        raise DataError(f"{base} holds no images{hint}; expected: {LAYOUT}")
    return ImageCollection(
        name=f"{prefix}:{base.resolve().name}",
        names=tuple(found.names),
        labels=np.zeros((len(found.names), 0), np.uint8),
        label_names=(),
        read=(opener := OpenImage(base, found.names, inside=not follow_links)),
        stamp=opener.stamp,
        provenance={
            "source": f"folder {base.resolve().name}, without labels",
            **({"passed_over": skipped} if skipped else {}),
        },
    )


READER = Reader(read, LAYOUT, options=("follow_links", "exclude"))
