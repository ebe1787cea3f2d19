"""Encode one's own pictures, index their codes, search them, and show the results on a page or in a browser."""

from __future__ import annotations

from hashgym.gallery.duplicates import DuplicateGroup, GroupedPicture, find_duplicates
from hashgym.gallery.encode import encode_images
from hashgym.gallery.encoded_images import EncodedImages, open_codes
from hashgym.gallery.find_images import find_images
from hashgym.gallery.index import build, remove
from hashgym.gallery.photos import index_photos
from hashgym.gallery.search import REGIONS, Gallery, Match, Names, open_gallery, read_meta, verify
from hashgym.moved import keep_old_names

__all__ = [
    "REGIONS",
    "DuplicateGroup",
    "EncodedImages",
    "Gallery",
    "GroupedPicture",
    "Match",
    "Names",
    "build",
    "encode_images",
    "find_duplicates",
    "find_images",
    "index_photos",
    "open_codes",
    "open_gallery",
    "read_meta",
    "remove",
    "verify",
]

keep_old_names(__name__)
