"""A page of search results that needs nothing beside it: pictures and style are in the file."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashgym.data.dataset import DataError
from hashgym.data.files import open_image
from hashgym.gallery.gallery import REGIONS, Gallery, Match
from hashgym.terminal import printable

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["printable", "results", "write"]

THUMBNAIL = 256  # longer side in pixels


def results(gallery: Gallery, query: Image, matches: Sequence[Match], name: str = "query") -> str:
    """The page as HTML: the query, and every match with its thumbnail, distance, and the region that matched framed.

    Args:
        gallery: what was searched.
        query: the picture that was searched with.
        matches: what was found.
        name: of the query.
    """
    return _template().render(
        query=_data(query),
        name=name,
        bits=gallery.encoder.bits,
        images=len(gallery),
        matches=[_shown(gallery, match) for match in matches],
        printable=printable,
    )


def write(html: str, path: str | Path) -> None:
    """Write a page, at once or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(html, "utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _shown(gallery: Gallery, match: Match) -> dict[str, Any]:
    """What the page says of a match; lengths in per cent of the picture."""
    frame = ""
    if match.box is not None:
        left, top, right, bottom = match.box
        width, height = gallery.size(match.id)
        sides = {"left": left / width, "top": top / height}
        sides |= {"width": (right - left) / width, "height": (bottom - top) / height}
        frame = "; ".join(f"{side}: {part:.3%}" for side, part in sides.items())
    try:
        thumbnail = _data(open_image(gallery.path(match.id)))
    except DataError:
        thumbnail = None
    region = REGIONS[match.region]
    return {"name": match.name, "distance": match.distance, "region": region, "frame": frame, "thumbnail": thumbnail}


def _data(picture: Image) -> dict[str, Any]:
    """A thumbnail as the address of an <img>, and its size."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = BytesIO()
    small.convert("RGB").save(out, "JPEG", quality=85)
    return {
        "src": "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode(),
        "width": small.width,
        "height": small.height,
        "longer": max(small.size),
    }


@lru_cache(maxsize=1)
def _template() -> Any:
    import jinja2

    loader = jinja2.PackageLoader("hashgym.gallery")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(
        "results.html"
    )
