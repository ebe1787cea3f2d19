"""Files of a dataset: finding them, listing images in natural order, opening one as a picture."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

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
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # for others Pillow starts programs, or is little tried
MAX_PIXELS = 80_000_000  # 240 MB decoded; a larger picture is taken for a decompression bomb
MAX_SCANS = 64  # of a JPEG; encoders write about ten, and a hundred bytes of another cost a pass over the whole picture


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


def open_image(
    source: Path | bytes | BinaryIO,
    name: str | None = None,
    *,
    max_bytes: int | None = None,
    max_pixels: int | None = None,
    at_least: int | None = None,
) -> Image:
    """Open an image as RGB, fully decoded and turned upright as its EXIF orientation says.

    What counts is the content, not the file's name. An alpha channel is dropped; of an animation the first frame is
    taken.

    Args:
        source: a file, the bytes of one, or a stream of them.
        name: what error messages call it; the path by default.
        max_bytes: of the file; without a limit by default.
        max_pixels: of the picture, known before it is decoded; 80 million by default.
        at_least: where a smaller picture will do, its shorter side in pixels: a JPEG is then decoded at 1/2, 1/4 or
            1/8 of its size, if that is no smaller, and so in less time.

    Raises:
        DataError: if the file is missing, truncated, no picture of the formats BMP, GIF, JPEG, PNG, PPM, TIFF and
            WebP, is beyond a limit, or has more than 8 bits a channel, which would be clipped to white.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    label = name or (str(source) if isinstance(source, Path) else "uploaded")
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        if isinstance(source, Path):
            if not stat.S_ISREG(source.stat().st_mode):  # a pipe would be waited for without end
                raise OSError("no regular file")
            with source.open("rb") as file:
                data = file.read(-1 if max_bytes is None else max_bytes + 1)
        else:
            data = source if isinstance(source, bytes) else source.read(-1 if max_bytes is None else max_bytes + 1)
    except OSError as error:
        raise DataError(f"image {label} cannot be read: {error.strerror or error}") from error
    if max_bytes is not None and len(data) > max_bytes:
        raise DataError(f"image {label} has more than {max_bytes:,} bytes")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > limit:
                raise DataError(f"image {label} has {image.width} x {image.height} pixels; more than {limit:,}")
            if data.count(b"\xff\xda") > MAX_SCANS and image.format in ("JPEG", "MPO") and _scans(data) > MAX_SCANS:
                raise DataError(f"image {label} is a JPEG of more than {MAX_SCANS} scans; save it anew")
            if image.mode.startswith(("I", "F")):
                raise DataError(f"image {label} has more than 8 bits a channel; convert it to 8 bits")
            if at_least:
                image.draft(None, (at_least, at_least))
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # the warning where it is an error
        raise DataError(f"image {label} has too many pixels: {error}") from error
    except UnidentifiedImageError as error:  # Pillow's own words name a place in memory, new in every run
        raise DataError(f"image {label} is damaged or no picture: none of {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise DataError(f"image {label} is damaged or no picture: {error}") from error


def _scans(jpeg: bytes) -> int:
    """Number of scans of a JPEG, up to its end: what follows there (a film, another picture) is not decoded."""
    count, place = 0, 2
    while (marker := re.compile(b"\xff+([\x02-\xcf\xd9-\xfe])").search(jpeg, place)) and marker[1] != b"\xd9":
        count += marker[1] == b"\xda"
        place = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
    return count


class OpenImage:
    """Opens image ``i`` of a list of names below a folder: the ``read`` of an :class:`ImageCollection`."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, names

    def __call__(self, index: int) -> Image:
        """Open image ``index``; errors as :func:`open_image`."""
        name = self.names[index]
        return open_image(self.root / name, name)
