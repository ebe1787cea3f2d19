"""Write a page of search results, or of pictures that look alike, as one file with its pictures and style."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashgym.checks import counted
from hashgym.data.pictures import open_image
from hashgym.gallery.duplicates import DuplicateGroup, GroupedPicture
from hashgym.gallery.search import REGIONS, Gallery, Match
from hashgym.storage import owned
from hashgym.storage.atomic import write_text
from hashgym.storage.errors import DataError
from hashgym.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "duplicates",
    "generator",
    "indexed_picture",
    "jpeg",
    "printable",
    "require_writable",
    "results",
    "small",
    "write",
]

THUMBNAIL = 256  # longer side in pixels
SHOWN = 1000  # pictures on a page of duplicates: about 10 kB each
PAGES = {"search": "a page of search results", "duplicates": "a page of duplicates"}  # by the command that writes them


def results(gallery: Gallery, query: Image | None, matches: Sequence[Match], name: str = "query") -> str:
    """Return the page as HTML: the query, and every match with its thumbnail, distance and the region that matched.

    Args:
        gallery: the index that was searched.
        query: the picture that was searched for; None if it cannot be shown.
        matches: the result of the search.
        name: name of the query.
    """
    return _template("results.html").render(
        command="search",
        query=None if query is None else _data(query),
        name=name,
        bits=gallery.encoder.bits,
        images=len(gallery),
        matches=[_entry(gallery, match) for match in matches],
        weighted=any(match.weighted is not None for match in matches),
        printable=printable,
    )


def duplicates(gallery: Gallery, groups: Sequence[DuplicateGroup], radius: int) -> str:
    """Return the page as HTML: every group, and its pictures with thumbnail, size and time, the first 1,000 of all.

    Args:
        gallery: the index that was searched.
        groups: the groups that :func:`hashgym.gallery.find_duplicates` found.
        radius: the radius that they were found with.
    """
    total, left, shown = sum(map(len, groups)), SHOWN, []
    for group in groups:
        if left < 1:
            break
        shown.append({"count": len(group), "pictures": [_copy(gallery, each) for each in group.pictures[:left]]})
        left -= len(group)
    hidden = max(0, total - SHOWN)
    return _template("duplicates.html").render(
        command="duplicates",
        groups=shown,
        groups_of=counted(len(groups), "group"),
        pictures=counted(total, "picture"),
        images=len(gallery),
        bits=gallery.encoder.bits,
        radius=radius,
        shown=total - hidden,
        hidden=hidden,
        printable=printable,
    )


def indexed_picture(gallery: Gallery, id: int) -> Image | None:
    """Return an image of the index, large enough for a page; None if its file is missing or damaged."""
    try:
        return open_image(gallery.path(id), at_least=THUMBNAIL)
    except (DataError, OSError):
        return None


def generator(command: str) -> bytes:
    """Return the tag near the beginning of every page that a command writes, by which it recognises its own."""
    return f'<meta name="generator" content="hashgym {command}">'.encode()


def require_writable(path: str | Path, command: str = "search") -> None:
    """Check that a page can be written to a file without overwriting anything else than a page of the same command.

    Raises:
        DataError: if the file exists and is something else.
    """

    def is_page(file: Path) -> bool:
        with file.open("rb") as stream:
            return generator(command) in stream.read(1000)

    owned.require_replaceable(path, PAGES[command], is_page)


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
    region = REGIONS[match.region]
    shown = {"name": match.name, "distance": match.distance, "weighted": match.weighted, "region": region}
    return {**shown, "frame": frame, "thumbnail": _thumbnail(gallery, match.id)}


def _copy(gallery: Gallery, picture: GroupedPicture) -> dict[str, Any]:
    """Return the values of a picture of a group that the page shows."""
    width, height = picture.size
    size = "unknown size" if picture.bytes is None else f"{picture.bytes / 1000:,.1f} kB"
    facts = f"{width} x {height} pixels, {size}, {picture.time or 'unknown time'}"
    return {"name": picture.name, "facts": facts, "marks": picture.marks, "thumbnail": _thumbnail(gallery, picture.id)}


def _thumbnail(gallery: Gallery, id: int) -> dict[str, Any] | None:
    """Return the thumbnail of an image of the index; None if its file is missing or damaged."""
    picture = indexed_picture(gallery, id)
    return None if picture is None else _data(picture)


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
def _templates() -> Any:
    import jinja2

    loader = jinja2.PackageLoader("hashgym.gallery")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _template(name: str) -> Any:
    return _templates().get_template(name)
