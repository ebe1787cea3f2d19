"""Opening pictures safely: any file or upload becomes RGB, or raises a DataError before it costs much."""

from __future__ import annotations

import importlib.util
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from hashgym.data.image_files import resolved, stamp
from hashgym.storage.errors import DataError
from hashgym.storage.reading import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BACKGROUND", "OpenImage", "open_image", "to_rgb"]

# For other formats Pillow starts programs, or is little tried. JPEG stands for MPO too, of which the first picture is
# read. AVIF is read where Pillow was built with it, as its own wheels are since 11.3.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "AVIF")
BACKGROUND = "white"  # what transparent pixels are laid on: pictures that look the same there get the same code
MAX_BYTES = 512 * 2**20  # of a file: the largest sound pictures are uncompressed, and have about 5 bytes a pixel
MAX_PIXELS = 80_000_000  # 320 MB decoded; a larger picture is taken for a decompression bomb
MAX_SCANS = 64  # of a JPEG; encoders write about ten, and a hundred bytes of another cost a pass over the whole picture
MAX_READS = 1_000_000  # while a file is opened and decoded: about 1 s of Pillow's Python code
MAX_TEXT_PIXELS = 1_000_000  # of a PPM written as text, which Pillow decodes in Python: about 1 s
MAX_COMMENTS = 64  # in a PPM written as text: each costs Pillow a copy of up to a megabyte
MAX_STRIPS = 200_000  # strips or tiles of a TIFF: Pillow makes Python objects of all before it decodes one
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
    """Open an image as RGB, fully decoded, turned upright as its EXIF orientation says, transparent pixels on white.

    The content counts, not the file's name. Of an animation or an MPO the first picture is read. The limits below are
    checked before the pixels are decoded; all but those on bytes and pixels are far above what cameras and programs
    write, and keep small files from taking minutes or gigabytes:

    - a JPEG has at most 64 scans;
    - a file is opened and decoded in at most a million reads, so that it does not consist of millions of empty parts.
      This also bounds BMP with run-length encoding (half a million runs) and binary PPM whose largest value is not 255
      (a million pixels), which Pillow decodes in Python;
    - a PPM written as text has at most a million pixels, 16 MB and 64 comments;
    - a TIFF has at most 200,000 strips or tiles.

    Args:
        source: a file, the bytes of one, or a stream of them.
        name: what error messages call it; the path by default.
        max_bytes: of the file; 512 MB by default. A larger file is not read at all, a larger stream no further.
        max_pixels: of the picture, known before it is decoded; 80 million by default.
        at_least: where a smaller picture will do, its shorter side in pixels: a JPEG is then decoded at 1/2, 1/4 or
            1/8 of its size, if that is no smaller, and so in less time.

    Returns:
        A picture without metadata. Decoding takes about 5 bytes of memory a pixel, 9 where the picture is turned or has
        transparent pixels, 16 for WebP.

    Raises:
        DataError: if the file is missing, truncated, no picture of the formats BMP, GIF, JPEG, PNG, PPM, TIFF,
            WebP and, where Pillow reads it, AVIF, is beyond a limit, has more than 8 bits a channel, which would be
            clipped to white, or does not fit in memory.
    """
    from PIL import Image, UnidentifiedImageError

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
                raise DataError(f"image {label} has more than {limit:,} bytes")
            return _without_warnings(lambda: _decoded(file, label, pixels, at_least))
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"image {label} does not fit in memory: make it smaller, or free some memory") from error
    except _TooManyReads as error:
        raise DataError(
            f"image {label} consists of too many small parts, or is stored in a way that takes too long to decode: "
            "save it anew as PNG or JPEG"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # the warning where it is an error
        raise DataError(f"image {label} has too many pixels: {error}") from error
    except UnidentifiedImageError as error:  # Pillow's own words name a place in memory, new in every run
        raise DataError(f"image {label} is damaged or no picture: none of {', '.join(_formats())}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"image {label} cannot be read: {error.strerror}") from error
        raise DataError(f"image {label} is damaged or no picture: {error}") from error


def to_rgb(image: Image) -> Image:
    """A picture upright as its EXIF orientation says, in RGB, with transparent pixels on white.

    Everything that takes a picture converts it by this function, so that ``Image.open(path)`` and ``path`` get the same
    code. EXIF that cannot be read is ignored.

    Returns:
        The same object if it is that already; otherwise a new one without metadata.

    Raises:
        DataError: if it has more than 8 bits a channel.
        OSError: and whatever else Pillow raises, if it is damaged.
    """
    return _without_warnings(lambda: _to_rgb(image))


class _TooManyReads(Exception):
    """A picture takes more reads than MAX_READS."""


class _Reads:
    """A file for Pillow that allows so many reads: whoever parses small parts in Python reads each of them.

    It has no file descriptor: libtiff would map the file, and a file that shrinks meanwhile would end the process.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, MAX_READS
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        self._left -= 1
        if self._left < 0:
            raise _TooManyReads
        return self._file.read(size)


def _stream(source: Path | bytes | BinaryIO, most: int) -> BinaryIO:
    """The source as a stream with a position; of an uploaded one at most a byte more than ``most`` is read."""
    if isinstance(source, Path):
        return open_regular(source)
    if isinstance(source, bytes):
        return BytesIO(source)
    content = BytesIO()
    while content.tell() <= most and (part := source.read(min(1 << 20, most + 1 - content.tell()))):
        content.write(part)
    return content


def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow reads."""
    return tuple(name for name in FORMATS if name != "AVIF" or importlib.util.find_spec("PIL._avif"))


_warnings = threading.Lock()


def _without_warnings(work: Callable[[], T]) -> T:
    """What ``work`` gives, also where Pillow's warnings are errors, as under ``python -W error``.

    Filters are changed only then, as they belong to the whole process. A decompression bomb stays an error.
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
        raise DataError(f"image {label} is a TIFF of more than {MAX_STRIPS:,} strips: save it anew")
    with Image.open(cast(BinaryIO, _Reads(file)), formats=_formats()) as image:
        pixels = image.width * image.height
        if pixels > max_pixels:
            raise DataError(f"image {label} has {image.width} x {image.height} pixels; more than {max_pixels:,}")
        if image.format in ("JPEG", "MPO") and _scans(file, MAX_SCANS) > MAX_SCANS:
            raise DataError(f"image {label} is a JPEG of more than {MAX_SCANS} scans; save it anew")
        if image.tile and image.tile[0][0] == "ppm_plain" and not _short_text(file, pixels):
            raise DataError(f"image {label} is a large PPM written as text, which is slow to decode: save it as PNG")
        _check_depth(image, f"image {label}")
        if at_least:
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
    except Exception:  # Pillow raises SyntaxError, ValueError, struct.error, ...; MemoryError where it says it is huge
        turn = None
    if turn is not None:
        picture = picture.transpose(Image.Transpose[turn])
    if picture is not image:
        picture.info = {}
    return picture


def _check_depth(image: Image, what: str) -> None:
    """Refuse what conversion to RGB would clip."""
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{what} has more than 8 bits a channel; convert it to 8 bits")


def _scans(file: BinaryIO, most: int) -> int:
    """Number of scans of a JPEG, exactly where it is above ``most``.

    What follows the end of the picture (a film, another picture) is not decoded, and not counted.
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
    """Number of strips or tiles that a TIFF says it has; 0 of other files."""
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16 or not {42, 43} & set(head[2:4]):
        return 0
    most = 0
    layouts = ((4, "L", "H", "HHLL"), (8, "Q", "Q", "HHQQ"))  # TIFF and BigTIFF; Pillow takes some BigTIFF for TIFF
    for start, offset, length, entry in layouts if 43 in head[2:4] else layouts[:1]:
        file.seek(min(*struct.unpack_from(order + offset, head, start), 1 << 62))
        size = struct.calcsize(order + length)
        (entries,) = struct.unpack(order + length, file.read(size).ljust(size, b"\0"))
        size = struct.calcsize(order + entry)
        table = file.read(min(entries, 1 << 16) * size)
        for tag, _, count, _ in struct.iter_unpack(order + entry, table[: len(table) // size * size]):
            most = max(most, count if tag in (273, 279, 324, 325) else 0)
    return most


def _short_text(file: BinaryIO, pixels: int) -> bool:
    """Whether a PPM that is written as text is within the bounds for those."""
    if pixels > MAX_TEXT_PIXELS or file.seek(0, os.SEEK_END) > 16 * MAX_TEXT_PIXELS:
        return False
    file.seek(0)
    return file.read().count(b"#") <= MAX_COMMENTS


class OpenImage:
    """Opens image ``i`` of a list of names below a folder: the ``read`` of an :class:`ImageCollection`.

    Args:
        root: the folder.
        names: of the images, relative to it.
        inside: raise :class:`DataError` for an image that lies outside the folder once links are resolved.
    """

    def __init__(self, root: Path, names: Sequence[str], *, inside: bool = False) -> None:
        self.root, self.names, self.inside = root, names, inside

    def __call__(self, index: int) -> Image:
        """Open image ``index``; errors as :func:`open_image`."""
        name = self.names[index]
        return open_image(resolved(self.root, name) if self.inside else self.root / name, name)

    def stamp(self, index: int) -> tuple[int, int]:
        """Size and time of change of the file of image ``index``, as :func:`stamp`."""
        return stamp(self.root / self.names[index])
