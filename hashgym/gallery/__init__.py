"""One's own pictures: encoded, indexed, searched, on a page of results or served to a browser on this machine."""

from __future__ import annotations

from hashgym.gallery.encode import Codes, encode_images, find_images, open_codes
from hashgym.gallery.gallery import Gallery, Match, build, open_gallery, read_meta, remove, verify

__all__ = [
    "Codes",
    "Gallery",
    "Match",
    "build",
    "encode_images",
    "find_images",
    "open_codes",
    "open_gallery",
    "read_meta",
    "remove",
    "verify",
]
