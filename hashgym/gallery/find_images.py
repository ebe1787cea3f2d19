"""Find the images in the files, folders and patterns that a user names."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from hashgym.checks import several
from hashgym.data.image_files import Listing, is_excluded, is_own, is_system, list_images, looks_like_image, natural
from hashgym.storage.errors import DataError

__all__ = ["find_images", "list_places"]


def find_images(
    places: Sequence[str | Path], *, follow_links: bool = False, exclude: Sequence[str] = ()
) -> tuple[Path, list[str]]:
    """Return the images in files, folders and patterns, once each; arguments as :func:`hashgym.gallery.encode_images`.

    Returns:
        root: the common parent of the folders, and of the folders that the files lie in; links in it are resolved.
        names: relative to it, with forward slashes, in natural order.

    Raises:
        DataError: for a place that does not exist or holds no images.
    """
    return list_places(places, follow_links, exclude)[:2]


def list_places(
    places: Sequence[str | Path], follow_links: bool, exclude: Sequence[str]
) -> tuple[Path, list[str], Listing]:
    """Return the root and names of the images, and the files and links that were skipped."""
    folders: set[str] = set()
    files: set[str] = set()
    skipped = Listing()
    for place in map(str, several(places, (str, Path))):
        expanded = _expanded(place)
        if expanded != [place]:  # names are relative to the folder of a pattern, whatever matches it now
            folders.add(os.path.realpath(_fixed_folder(place)))
        for path in expanded:
            named = path == place
            if not named and not _is_used(place, path, follow_links, exclude, skipped):
                continue
            if os.path.isdir(path):
                base = os.path.realpath(path)
                found = list_images(Path(base), follow_links=follow_links, exclude=exclude)
                if not named:
                    _leave_out(found, _below_fixed(place, path), exclude)
                if not found.names and named:
                    hint = f" (skipped: {found.summary()})" if found.summary() else ""
                    raise DataError(f"{path} holds no images{hint}; expected: files that end in .jpg, .png, .webp, ...")
                skipped.add(found)
                inside = [os.path.join(base, name) for name in found.names]
                folders.add(base)
            elif os.path.islink(path) and not follow_links:
                skipped.links += 1
                continue
            elif named and is_excluded(os.path.basename(path), exclude):
                skipped.excluded += 1
                continue
            else:
                file = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
                inside = [os.path.realpath(file) if follow_links else file]
                folders.add(os.path.dirname(inside[0]))
            if follow_links:
                inside = [os.path.realpath(file) for file in inside]
                folders.update(map(os.path.dirname, inside))
            files.update(inside)
    if not files:
        hint = f" (skipped: {skipped.summary()})" if skipped.summary() else ""
        raise DataError(f"there are no images to encode{hint}: name files, folders, or patterns in quotes")
    try:
        root = os.path.commonpath(folders)
    except ValueError:
        raise DataError(
            "the images are on different drives: encode those of each drive to a folder of its own"
        ) from None
    names = sorted((Path(os.path.relpath(file, root)).as_posix() for file in files), key=natural)
    return Path(root), names, skipped


def _expanded(place: str) -> list[str]:
    """Return the place itself if it exists, else the files and folders that match it as a pattern."""
    if os.path.lexists(place):
        return [place]
    if not glob.has_magic(place):
        raise DataError(f"{place} does not exist: name files, folders, or patterns in quotes")
    found = sorted(glob.glob(place, recursive=True))
    if not any(os.path.isdir(path) or looks_like_image(Path(path)) for path in found):
        raise DataError(f"no image or folder matches {place}")
    return found


def _fixed_folder(pattern: str) -> Path:
    """Return the part of a pattern before its first part with a wildcard."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))


def _below_fixed(pattern: str, path: str) -> str:
    """Return a match of a pattern as a path relative to the pattern's fixed folder."""
    return "/".join(Path(path).parts[len(_fixed_folder(pattern).parts) :])


def _leave_out(found: Listing, below: str, exclude: Sequence[str]) -> None:
    """Remove from a listing what is excluded by its path from further up: ``below`` is the folder that was listed."""
    count = below.count("/") + 1

    def is_out(name: str) -> bool:
        parts = f"{below}/{name}".split("/")
        return any(is_excluded("/".join(parts[:end]), exclude) for end in range(count + 1, len(parts) + 1))

    kept = [name for name in found.names if not is_out(name)]
    found.excluded += len(found.names) - len(kept)
    found.names = kept


def _is_used(place: str, path: str, follow_links: bool, exclude: Sequence[str], skipped: Listing) -> bool:
    """Return whether a match of a pattern is used, by the rules for listed folders; else count it in ``skipped``."""
    parts = Path(path).parts
    fixed = len(_fixed_folder(place).parts)
    for end in range(fixed + 1, len(parts) + 1):
        upper = Path(*parts[:end])
        if is_system(parts[end - 1]) or (upper.is_dir() and is_own(upper)):
            return False
        if is_excluded("/".join(parts[fixed:end]), exclude):
            skipped.excluded += 1
            return False
        if upper.is_symlink() and not follow_links:
            skipped.links += 1
            return False
    if not os.path.isdir(path) and not looks_like_image(Path(path)):
        skipped.ignored[os.path.splitext(path)[1].lower()] += 1
        return False
    return True
