"""Opening pictures safely: a file or upload becomes RGB, or raises a DataError before it takes long or much memory."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from hashgym.data.image_files import is_heic, resolved, stamp
from hashgym.optional import install_command
from hashgym.storage.errors import DataError
from hashgym.storage.reading import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BACKGROUND", "OpenImage", "open_image", "to_rgb"]

# For other formats Pillow starts programs, or its decoders are little tested. JPEG includes MPO, whose first
# picture is read. AVIF is read if Pillow was built with it, as its wheels are since 11.3, HEIF (and HEIC, which is one)
# if pillow-heif is installed.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "AVIF", "HEIF")
MODULES = {"AVIF": "PIL._avif", "HEIF": "pillow_heif"}  # that read some of the formats
BACKGROUND = "white"  # below transparent pixels, so that pictures that look the same on white get the same code
MAX_BYTES = 512 * 2**20  # of a file: the largest valid pictures are uncompressed, about 5 bytes per pixel
MAX_PIXELS = 80_000_000  # 320 MB decoded; a larger picture counts as a decompression bomb
MAX_SCANS = 64  # of a JPEG; encoders write about ten, and each, even of a hundred bytes, costs a pass over the picture
MAX_READS = 1_000_000  # while a file is opened and decoded: about 1 s of Pillow's Python code
MAX_TEXT_PIXELS = 1_000_000  # of a PPM written as text, which Pillow decodes in Python: about 1 s
MAX_COMMENTS = 64  # in a PPM written as text: for each, Pillow copies up to a megabyte
MAX_STRIPS = 200_000  # strips or tiles of a TIFF: Pillow creates a Python object for each before it decodes
_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    **{2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"},
    **{6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"},
}
T = TypeVar("T")


def open_image(
    source: Path | bytes | BinaryIO,
    name: str | None = None,
    *,
    max_bytes: int | None = None,
    max_pixels: int | None = None,
    at_least: int | None = None,
) -> Image:
    """Open an image as RGB, fully decoded, upright by its EXIF orientation, transparent pixels on white.

    The format is detected by content, not by name. The first picture of an animation or an MPO is read. The limits
    below are checked before the pixels are decoded; those besides bytes and pixels are far above what cameras and
    programs write, and keep small files from taking minutes or gigabytes:

    - a JPEG has at most 64 scans;
    - a file is opened and decoded in at most a million reads, so that it does not consist of millions of empty parts.
      This also bounds BMP with run-length encoding (half a million runs) and binary PPM whose largest value is not 255
      (a million pixels), which Pillow decodes in Python;
    - a PPM written as text has at most a million pixels, 16 MB and 64 comments;
    - a TIFF has at most 200,000 strips or tiles;
    - of a HEIF, every part that its headers declare, and all tiles of the picture together, have at most
      ``max_pixels``; its picture is decoded in the size that is declared, or is an error.

    Args:
        source: a file, its bytes, or a stream of bytes.
        name: for error messages; the path by default.
        max_bytes: of the file; 512 MB by default. A larger file is not read, a larger stream not to its end.
        max_pixels: of the picture, checked before it is decoded; 80 million by default.
        at_least: the shorter side, in pixels, that is enough: a JPEG is then decoded at 1/2, 1/4 or 1/8 of its size,
            whichever is the smallest that is large enough, which takes less time.

    Returns:
        A picture without metadata. Decoding takes about 5 bytes of memory per pixel, 9 if the picture is turned, has
        transparent pixels or is a HEIF, 16 for WebP.

    Raises:
        DataError: if the file is missing, truncated, not a picture in BMP, GIF, JPEG, PNG, PPM, TIFF, WebP, if Pillow
            reads it, AVIF, or, if pillow-heif is installed, HEIF, is beyond a limit, has more than 8 bits per channel,
            which would be clipped to white, or does not fit in memory. More than 8 bits of a HEIF are scaled to 8.
    """
    label = name or (str(source) if isinstance(source, Path) else "uploaded")
    limit = MAX_BYTES if max_bytes is None else max_bytes
    pixels = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        file = _stream(source, limit)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise DataError(f"image {label} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        with file:
            if file.seek(0, os.SEEK_END) > limit:
                raise DataError(f"image {label} has more than {limit:,} bytes, the limit")
            return _without_warnings(lambda: _decoded(file, label, pixels, at_least))
    except DataError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise DataError(f"image {label} {_problem(error)}") from error


def _problem(error: Exception) -> str:
    """Describe why a picture could not be decoded."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, MemoryError):
        return "does not fit in memory: make it smaller, or free some memory"
    if isinstance(error, _TooManyReads):
        return (
            "consists of too many small parts, or is stored in a way that takes too long to decode: save it again as "
            "PNG or JPEG"
        )
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):  # the warning as an error
        return f"has too many pixels: {error}"
    if isinstance(error, UnidentifiedImageError):  # Pillow's message has a memory address, which differs in every run
        return f"is damaged or not a picture: it is not one of {', '.join(_formats())}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    return f"is damaged or not a picture: {' '.join(str(error).split())}"


def to_rgb(image: Image) -> Image:
    """Convert a picture to RGB, upright by its EXIF orientation, with transparent pixels on white.

    All functions that take pictures use this one, so that ``Image.open(path)`` and ``path`` get the same code. EXIF
    that cannot be read is ignored.

    Returns:
        The same object if nothing is to be done; otherwise a new one without metadata.

    Raises:
        DataError: if it has more than 8 bits per channel.
        OSError: if it is damaged; Pillow raises other errors too.
    """
    return _without_warnings(lambda: _to_rgb(image))


class _TooManyReads(Exception):
    """Raised if a picture takes more than MAX_READS reads."""


class _Reads:
    """A file for Pillow with a limited number of reads, which bounds the parsing of small parts in Python.

    It has no file descriptor: libtiff would map the file, and a file that shrinks meanwhile would crash the process.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, MAX_READS
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read as from a file."""
        self._left -= 1
        if self._left < 0:
            raise _TooManyReads
        return self._file.read(size)


def _stream(source: Path | bytes | BinaryIO, most: int) -> BinaryIO:
    """Open the source as a seekable stream; of a stream at most one byte more than ``most`` is read."""
    if isinstance(source, Path):
        return open_regular(source)
    if isinstance(source, bytes):
        return BytesIO(source)
    content = BytesIO()
    while content.tell() <= most and (part := source.read(min(1 << 20, most + 1 - content.tell()))):
        content.write(part)
    return content


def _formats() -> tuple[str, ...]:
    """Return the formats of FORMATS that this Pillow reads, with the packages that are installed."""
    return tuple(name for name in FORMATS if name not in MODULES or importlib.util.find_spec(MODULES[name]))


def _formats_of(file: BinaryIO, label: str) -> tuple[str, ...]:
    """Return the formats that a file may have; pillow-heif is imported only for a file that begins like a HEIF.

    Raises:
        DataError: for a HEIC if pillow-heif is not installed.
    """
    file.seek(0)
    start, formats = file.read(12), _formats()
    if start[4:8] != b"ftyp":
        return tuple(name for name in formats if name != "HEIF")
    if "HEIF" in formats:
        from PIL import Image
        from pillow_heif import register_heif_opener

        if "HEIF" not in Image.OPEN:
            register_heif_opener()
    elif is_heic(start):
        raise DataError(f"image {label} is a HEIC, which needs pillow-heif: {install_command('pillow_heif')}")
    return formats


_warnings = threading.Lock()


def _without_warnings(work: Callable[[], T]) -> T:
    """Call ``work``, also if Pillow's warnings are errors, as under ``python -W error``.

    Warning filters are changed only then, as they are global. A decompression bomb remains an error.
    """
    from PIL import Image

    try:
        return work()
    except Image.DecompressionBombWarning:
        raise
    except Warning:
        with _warnings, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()


def _decoded(file: BinaryIO, label: str, max_pixels: int, at_least: int | None) -> Image:
    from PIL import Image

    if _strips(file) > MAX_STRIPS:
        raise DataError(f"image {label} is a TIFF of more than {MAX_STRIPS:,} strips: save it again as PNG or JPEG")
    formats = _formats_of(file, label)
    with Image.open(cast(BinaryIO, _Reads(file)), formats=formats) as image:
        pixels = image.width * image.height
        if pixels > max_pixels:
            raise DataError(
                f"image {label} has {image.width} x {image.height} pixels, more than the limit of {max_pixels:,}"
            )
        if image.format == "HEIF" and (parts := _heif_pixels(image, file)) > max_pixels:
            raise DataError(f"image {label} has parts of {parts:,} pixels, more than the limit of {max_pixels:,}")
        if image.format in ("JPEG", "MPO") and _scans(file, MAX_SCANS) > MAX_SCANS:
            raise DataError(f"image {label} is a JPEG of more than {MAX_SCANS} scans: save it again")
        if image.tile and image.tile[0][0] == "ppm_plain" and not _short_text(file, pixels):
            raise DataError(f"image {label} is a large PPM written as text, which is slow to decode: save it as PNG")
        _check_depth(image, f"image {label}")
        if at_least and image.format != "HEIF":  # of which a draft would be its thumbnail
            image.draft(None, (at_least, at_least))
        picture = _to_rgb(image)
        picture.info = {}
        return picture


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    _check_depth(image, "the picture")
    image.load()  # turns a TIFF upright
    if image.has_transparency_data:
        picture = Image.new("RGB", image.size, BACKGROUND)
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        picture.paste(rgba, mask=rgba)
    else:
        picture = image if image.mode == "RGB" else image.convert("RGB")
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Warning:
        raise
    except Exception:  # Pillow raises SyntaxError, ValueError, struct.error, ...; MemoryError for a claimed huge size
        turn = None
    if turn is not None:
        picture = picture.transpose(Image.Transpose[turn])
    if picture is not image:
        picture.info = {}
    return picture


def _check_depth(image: Image, what: str) -> None:
    """Raise DataError for a picture that conversion to RGB would clip."""
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{what} has more than 8 bits per channel: convert it to 8 bits")


def _scans(file: BinaryIO, most: int) -> int:
    """Return an upper bound on the number of scans of a JPEG; exact if the bound is above ``most``.

    Data after the end of the picture (a film, another picture) is not decoded and does not count.
    """
    file.seek(0)
    found, last = 0, b""
    while part := file.read(1 << 20):
        found += (last + part).count(b"\xff\xda")
        last = part[-1:]
    if found <= most:
        return found
    file.seek(0)
    count, place, jpeg = 0, 2, file.read()
    while (marker := re.compile(b"\xff+([\x02-\xcf\xd9-\xfe])").search(jpeg, place)) and marker[1] != b"\xd9":
        count += marker[1] == b"\xda"
        place = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
    return count


def _strips(file: BinaryIO) -> int:
    """Return the number of strips or tiles in the directory of a TIFF; 0 for other files."""
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16 or not {42, 43} & set(head[2:4]):
        return 0
    most = 0
    layouts = ((4, "L", "H", "HHLL"), (8, "Q", "Q", "HHQQ"))  # TIFF and BigTIFF; Pillow reads some BigTIFF as TIFF
    for start, offset, length, entry in layouts if 43 in head[2:4] else layouts[:1]:
        file.seek(min(*struct.unpack_from(order + offset, head, start), 1 << 62))
        size = struct.calcsize(order + length)
        (entries,) = struct.unpack(order + length, file.read(size).ljust(size, b"\0"))
        size = struct.calcsize(order + entry)
        table = file.read(min(entries, 1 << 16) * size)
        for tag, _, count, _ in struct.iter_unpack(order + entry, table[: len(table) // size * size]):
            most = max(most, count if tag in (273, 279, 324, 325) else 0)
    return most


def _heif_pixels(image: Image, file: BinaryIO) -> int:
    """Return the pixels of the largest part that a HEIF declares, or those of all tiles of its picture, if more.

    What is decoded may be larger than the picture, which can be a small cutting of its parts. The size of a part is in
    a box "ispe", after its version and flags, and after the length of the box if that has 64 bits.
    """
    file.seek(0)
    found = re.finditer(rb"ispe(?:\0{7}.)?\0{4}(.{8})", file.read(), re.DOTALL)
    parts = [width * height for width, height in (struct.unpack(">LL", box[1]) for box in found)]
    tiling = image.info.get("tiling") or {}
    sides = ("num_columns", "num_rows", "tile_width", "tile_height")
    return max(0, math.prod(tiling[side] for side in sides) if tiling else 0, *parts)


def _short_text(file: BinaryIO, pixels: int) -> bool:
    """Return whether a PPM written as text is within its limits."""
    if pixels > MAX_TEXT_PIXELS or file.seek(0, os.SEEK_END) > 16 * MAX_TEXT_PIXELS:
        return False
    file.seek(0)
    return file.read().count(b"#") <= MAX_COMMENTS


class OpenImage:
    """Opens image ``i`` of a list of names in a folder; the ``read`` of an :class:`ImageCollection`.

    Args:
        root: the folder.
        names: paths of the images, relative to it.
        inside: raise :class:`DataError` for an image that is outside the folder once links are resolved.
    """

    def __init__(self, root: Path, names: Sequence[str], *, inside: bool = False) -> None:
        self.root, self.names, self.inside = root, names, inside

    def __call__(self, index: int) -> Image:
        """Open image ``index``; raises as :func:`open_image`."""
        name = self.names[index]
        return open_image(resolved(self.root, name) if self.inside else self.root / name, name)

    def stamp(self, index: int) -> tuple[int, int]:
        """Return the :func:`stamp` of the file of image ``index``."""
        return stamp(self.root / self.names[index])
