"""Write a page of search results as one file, with its pictures and style."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashgym.data.pictures import open_image
from hashgym.gallery.search import REGIONS, Gallery, Match
from hashgym.storage import owned
from hashgym.storage.atomic import write_text
from hashgym.storage.errors import DataError
from hashgym.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["jpeg", "printable", "require_writable", "results", "small", "write"]

THUMBNAIL = 256  # longer side in pixels
GENERATOR = b'<meta name="generator" content="hashgym search">'  # as in the template


def results(gallery: Gallery, query: Image, matches: Sequence[Match], name: str = "query") -> str:
    """Return the page as HTML: the query, and every match with its thumbnail, distance and the region that matched.

    Args:
        gallery: the index that was searched.
        query: the picture that was searched for.
        matches: the result of the search.
        name: name of the query.
    """
    return _template().render(
        query=_data(query),
        name=name,
        bits=gallery.encoder.bits,
        images=len(gallery),
        matches=[_entry(gallery, match) for match in matches],
        printable=printable,
    )


def require_writable(path: str | Path) -> None:
    """Check that a page can be written to a file without overwriting anything else than such a page.

    Raises:
        DataError: if the file exists and is something else.
    """

    def is_page(file: Path) -> bool:
        with file.open("rb") as stream:
            return GENERATOR in stream.read(1000)

    owned.require_replaceable(path, "a page of search results", is_page)


def write(html: str, path: str | Path) -> None:
    """Write a page atomically."""
    write_text(path, html)


def _entry(gallery: Gallery, match: Match) -> dict[str, Any]:
    """Return the values of a match that the page shows; lengths in per cent of the picture."""
    frame = ""
    if match.box is not None:
        left, top, right, bottom = match.box
        width, height = gallery.size(match.id)
        sides = {"left": left / width, "top": top / height}
        sides |= {"width": (right - left) / width, "height": (bottom - top) / height}
        frame = "; ".join(f"{side}: {part:.3%}" for side, part in sides.items())
    try:
        thumbnail = _data(open_image(gallery.path(match.id), at_least=THUMBNAIL))
    except DataError:
        thumbnail = None
    region = REGIONS[match.region]
    return {"name": match.name, "distance": match.distance, "region": region, "frame": frame, "thumbnail": thumbnail}


def small(picture: Image, longer: int) -> Image:
    """Return a thumbnail of a picture, RGB, its longer side at most ``longer`` pixels.

    It has only the pixels, without the comments, EXIF, XMP and colour profile of the picture.
    """
    from PIL import Image

    size = picture.size
    thumbnail = picture.reduce(factor) if (factor := max(size) // (2 * longer)) > 1 else picture.copy()
    thumbnail.thumbnail((longer, longer))
    thumbnail = thumbnail.convert("RGB")
    return Image.frombytes("RGB", thumbnail.size, thumbnail.tobytes())


def jpeg(picture: Image) -> bytes:
    """Return a thumbnail from :func:`small` as a JPEG."""
    out = BytesIO()
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()


def _data(picture: Image) -> dict[str, Any]:
    """Return a thumbnail as a data URL for an <img>, and its size."""
    thumbnail = small(picture, THUMBNAIL)
    return {
        "src": "data:image/jpeg;base64," + base64.b64encode(jpeg(thumbnail)).decode(),
        "width": thumbnail.width,
        "height": thumbnail.height,
        "longer": max(thumbnail.size),
    }


@lru_cache(maxsize=1)
def _template() -> Any:
    import jinja2

    loader = jinja2.PackageLoader("hashgym.gallery")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(
        "results.html"
    )
