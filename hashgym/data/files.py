"""Files of a dataset: finding them, listing images in natural order, opening one as a picture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from hashgym.data.dataset import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "OpenImage",
    "find",
    "folder",
    "image_files",
    "is_image",
    "natural",
    "open_image",
    "require_all",
]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 80_000_000  # 240 MB decoded; a larger picture is taken for a decompression bomb


def natural(text: str) -> list[tuple[int, str]]:
    """Sorting key that puts ``im2`` before ``im10``; equal numbers written differently stay apart."""
    parts = re.split(r"([0-9]+)", text)
    return [(int(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]


def folder(root: str | Path, wanted: str) -> Path:
    """``root`` as a path.

    Raises:
        DataError: if it is no folder; ``wanted`` tells the reader what belongs there.
    """
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; wanted: {wanted}")
    return path


def find(root: Path, *places: str, wanted: str) -> Path:
    """The first of ``places`` that exists below ``root``.

    Raises:
        DataError: if none does; the message lists them all and the layout that is wanted.
    """
    for place in places:
        if (root / place).exists():
            return root / place
    raise DataError(f"{root} has no {' or '.join(places)}; wanted: {wanted}")


def image_files(path: Path) -> list[str]:
    """Image files below ``path`` relative to it, with forward slashes, in natural order; hidden ones are skipped."""
    found = []
    for place, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = "" if Path(place) == path else Path(place).relative_to(path).as_posix() + "/"
        found += [below + file for file in files if is_image(file)]
    return sorted(found, key=natural)


def is_image(name: str) -> bool:
    """Whether a file of this name is a visible image file."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def require_all(dataset: str, names: Iterable[str], present: Sequence[bool], allow_missing: bool) -> list[str]:
    """Names of the images that are not present.

    Raises:
        DataError: if there are some and ``allow_missing`` is false, with their number and the first of them.
    """
    missing = [name for name, there in zip(names, present, strict=True) if not there]
    if missing and not allow_missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{dataset}: {len(missing):,} of {len(present):,} images are missing ({first}); complete the copy, "
            "or leave them out with allow_missing=True"
        )
    return missing


def open_image(path: Path, name: str | None = None) -> Image:
    """Open an image file as RGB, fully decoded and turned upright as its EXIF orientation says.

    An alpha channel is dropped; of an animation the first frame is taken.

    Args:
        path: the file.
        name: what error messages call it; the path by default.

    Raises:
        DataError: if the file is missing, truncated, no picture, has more than 80 million pixels, or more than
            8 bits a channel, which would be clipped to white.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    label = name or str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"image {label} cannot be read: {error.strerror or error}") from error
    try:
        with Image.open(BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"image {label} has {image.width} x {image.height} pixels; more than {MAX_PIXELS:,}")
            if image.mode.startswith(("I", "F")):
                raise DataError(f"image {label} has more than 8 bits a channel; convert it to 8 bits")
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # Pillow's own words name a place in memory, new in every run
        raise DataError(f"image {label} is damaged or no picture: no format that Pillow knows") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise DataError(f"image {label} is damaged or no picture: {error}") from error


class OpenImage:
    """Opens image ``i`` of a list of names below a folder: the ``read`` of an :class:`ImageCollection`."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, names

    def __call__(self, index: int) -> Image:
        """Open image ``index``; errors as :func:`open_image`."""
        name = self.names[index]
        return open_image(self.root / name, name)
