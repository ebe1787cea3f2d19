"""Any folder of images: each subfolder is a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hashgym.data.dataset import DataError
from hashgym.data.files import OpenImage, folder, image_files, is_image, natural
from hashgym.data.images import ImageCollection

LAYOUT = "PATH/CLASS/*.jpg (or .png, ...), or PATH/PART/CLASS/*.jpg with PART train, test and, if wanted, database"
PARTS = ("train", "test", "query", "database")


def read(root: str | Path) -> ImageCollection:
    """All images below the class folders, in natural order.

    If all subfolders are called ``train``, ``test``, ``query`` or ``database``, the classes are the folders in these,
    and the split ``given`` keeps to them. Images may lie any number of folders below their class.

    Raises:
        DataError: if there are no subfolders, a class has no images at all, or images lie outside the classes.
    """
    base = folder(root, LAYOUT)
    top = _subfolders(base)
    parts = top if top and set(top) <= set(PARTS) and not any(_loose(base / part) for part in top) else [""]
    classes = sorted({label for part in parts for label in _subfolders(base / part)}, key=natural)
    if not classes:
        raise DataError(f"{base} has no subfolders, so no classes; wanted: {LAYOUT}")
    names: list[str] = []
    targets: list[int] = []
    for part in parts:
        if loose := _loose(base / part):
            raise DataError(f"{base / part} holds images outside class folders ({loose[0]}); wanted: {LAYOUT}")
        for target, label in enumerate(classes):
            place = "/".join((part, label) if part else (label,))
            files = image_files(base / place)
            names += [f"{place}/{file}" for file in files]
            targets += [target] * len(files)
    if empty := sorted(set(range(len(classes))) - set(targets)):
        raise DataError(f"class folder {classes[empty[0]]!r} in {base} holds no images; fill it or remove it")
    return ImageCollection(
        name=f"folder:{base.resolve().name}",
        names=tuple(names),
        labels=(np.array(targets)[:, None] == np.arange(len(classes))).astype(np.uint8),
        label_names=tuple(classes),
        read=OpenImage(base, names),
        provenance={"source": f"folder {base.resolve().name}, one class a subfolder"},
    )


def _subfolders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")) if path.is_dir() else []


def _loose(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if is_image(p.name))
