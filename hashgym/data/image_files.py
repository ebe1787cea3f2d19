"""Finding image files, and listing them in natural order."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from hashgym.checks import counted
from hashgym.optional import install_command
from hashgym.storage.errors import DataError
from hashgym.storage.job_store import JOURNAL
from hashgym.storage.owned import MARKER

__all__ = [
    "HEIF_SUFFIXES",
    "IMAGE_SUFFIXES",
    "Listing",
    "find",
    "folder",
    "is_excluded",
    "is_heic",
    "is_own",
    "is_system",
    "list_images",
    "looks_like_image",
    "natural",
    "reads_heif",
    "require_all",
    "resolved",
    "stamp",
    "subfolders",
]

IMAGE_SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
        *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    }
)
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})  # read where pillow-heif is installed
UNREAD = HEIF_SUFFIXES | frozenset(  # common picture formats that are not read
    {".jp2", ".j2k", ".jxl", ".psd", ".svg", ".tga", ".ico"}
    | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
)
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")  # WebP's is in two parts
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})  # after b"ftyp"
SYSTEM = frozenset(  # files and folders that systems, synchronisation and archives leave among pictures
    {"@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
    | {"thumbs.db", "ehthumbs.db", "desktop.ini"}
)
KINDS = 8  # extensions in a summary: those of pictures first, then the most frequent


def natural(text: str) -> list[tuple[int, str]]:
    """Return a sorting key that puts ``im2`` before ``im10``; ``im02`` and ``im2`` stay different."""
    parts = re.split(r"([0-9]+)", text)
    return [(int(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]


def folder(root: str | Path, wanted: str) -> Path:
    """Return ``root`` as a path.

    Raises:
        DataError: if it is not a folder; ``wanted`` describes the expected content.
    """
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; expected: {wanted}")
    return path


def find(root: Path, *places: str, wanted: str) -> Path:
    """Return the first of ``places`` in ``root`` that exists.

    Raises:
        DataError: if none exists; the message lists them and the expected layout, ``wanted``.
    """
    for place in places:
        if (root / place).exists():
            return root / place
    raise DataError(f"{root} has no {' or '.join(places)}; expected: {wanted}")


@dataclass
class Listing:
    """The images of a folder, and counts of what was skipped.

    Attributes:
        names: image files relative to the folder, with forward slashes, in natural order.
        ignored: number of files that are not images, by extension; "" for files without one.
        hidden: number of hidden files and of files that systems add, such as ``Thumbs.db``.
        links: number of links, to files or folders, that were not followed.
        excluded: number of files and folders that match a pattern.
    """

    names: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    links: int = 0
    excluded: int = 0

    def add(self, other: Listing) -> None:
        """Add the counts of another listing."""
        self.ignored += other.ignored
        self.hidden += other.hidden
        self.links += other.links
        self.excluded += other.excluded

    def summary(self) -> str:
        """Describe what was skipped; empty if nothing was."""
        parts = []
        if count := sum(self.ignored.values()):
            ranked = sorted(self.ignored.items(), key=lambda kind: (kind[0] not in UNREAD, -kind[1], kind[0]))
            kinds = [_kind(suffix, number) for suffix, number in ranked[:KINDS]]
            kinds += [f"{sum(number for _, number in ranked[KINDS:]):,} of other kinds"] if ranked[KINDS:] else []
            parts.append(f"{counted(count, 'file that is', 'files that are')} not read: {', '.join(kinds)}")
        if self.links:
            parts.append(f"{counted(self.links, 'link')} (--follow-links follows them)")
        if self.excluded:
            parts.append(f"{self.excluded:,} by --exclude")
        if self.hidden:
            parts.append(f"{self.hidden:,} hidden")
        return "; ".join(parts)


def list_images(path: Path, below: str = "", *, follow_links: bool = False, exclude: Sequence[str] = ()) -> Listing:
    """List the image files in a folder and its subfolders; the folder itself may be a link.

    Images are recognised by extension, or by their first bytes if they have none; HEIC and HEIF only
    where pillow-heif is installed. Hidden files and folders, folders
    that systems add (``@eaDir``, ``__MACOSX``, ...) and those that hashgym wrote are skipped.

    Args:
        path: the folder.
        below: list only this folder in it; names are still relative to ``path``.
        follow_links: also follow links to files and folders, wherever they lead. Every folder is listed once, under
            its own path rather than that of a link, so loops are harmless.
        exclude: shell patterns (``*``, ``?``, ``[...]``) of names, or of paths relative to the folder, that are left
            out; a folder with everything in it.

    Raises:
        DataError: if a folder cannot be read.
    """
    listing = Listing()
    seen: set[str] = set()
    folders, links = [below], list[str]()
    while folders or links:
        inside = folders.pop() if folders else links.pop(0)
        place = path / inside
        if (real := os.path.realpath(place)) in seen or (inside and is_own(place)):
            continue
        seen.add(real)
        for name, entry in _folders_in(path, inside, listing, follow_links, exclude):
            (links if entry.is_symlink() else folders).append(name)
    listing.names.sort(key=natural)
    return listing


def subfolders(
    path: Path, below: str = "", *, follow_links: bool = False, exclude: Sequence[str] = ()
) -> tuple[list[str], Listing]:
    """List the folders directly in a folder, and its other entries; arguments as for :func:`list_images`.

    Raises:
        DataError: if the folder cannot be read.
    """
    rest = Listing()
    inside = _folders_in(path, below, rest, follow_links, exclude)
    return [entry.name for _, entry in inside if not is_own(Path(entry.path))], rest


def looks_like_image(path: Path) -> bool:
    """Return whether a file is an image by its extension or, without one, its first bytes; never for hidden files."""
    suffix = os.path.splitext(path.name)[1].lower()
    if path.name.startswith(".") or suffix:
        is_known = suffix in IMAGE_SUFFIXES or (suffix in HEIF_SUFFIXES and reads_heif())
        return is_known and not path.name.startswith(".")
    try:
        if not path.is_file():  # opening a pipe may block forever
            return False
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    if is_heic(start):
        return reads_heif()
    return start.startswith(SIGNATURES) or (start[:4], start[8:12]) == (b"RIFF", b"WEBP")


def is_heic(start: bytes) -> bool:
    """Return whether a file with these first bytes, 12 or more, is a HEIC."""
    return start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS


@cache
def reads_heif() -> bool:
    """Return whether pillow-heif is installed, so that HEIC and HEIF files are pictures that can be read."""
    return find_spec("pillow_heif") is not None


def is_excluded(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern matches a relative path or its last part."""
    short = name.rpartition("/")[2]
    return any(fnmatchcase(name, wanted) or fnmatchcase(short, wanted) for wanted in (p.rstrip("/") for p in patterns))


def require_all(
    dataset: str, names: Iterable[str], present: Sequence[bool], allow_missing: bool, looked: str = ""
) -> list[str]:
    """Return the names of the images that are not present.

    Raises:
        DataError: if there are any and ``allow_missing`` is false; the message has their number and the first names,
            and ``looked``, the place that was searched.
    """
    missing = [name for name, is_present in zip(names, present, strict=True) if not is_present]
    if missing and not allow_missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{dataset}: {len(missing):,} of {len(present):,} images are missing ({first}){looked}; complete the copy, "
            "or leave them out with --allow-missing (allow_missing=True)"
        )
    return missing


def resolved(root: Path, name: str) -> Path:
    """Return the path of a name in a folder, with links resolved.

    Raises:
        DataError: if it is outside the folder.
    """
    base, path = os.path.realpath(root), os.path.realpath(root / name)
    if path != base and not path.startswith(os.path.join(base, "")):
        raise DataError(
            f"image {name} lies outside {root.absolute()}, because of a link or `..`: read it with --follow-links, "
            "or name the folder that it is in"
        )
    return Path(path)


def stamp(path: Path) -> tuple[int, int]:
    """Return the size in bytes and modification time in ns of a file, links followed; -1, -1 if it cannot be read.

    Times beyond int64, before the year 1677 and after 2262, become the first and the last one in it.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, min(max(status.st_mtime_ns, -(2**63)), 2**63 - 1)


def _folders_in(
    root: Path, below: str, found: Listing, follow_links: bool, exclude: Sequence[str]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the folders in a folder with their names relative to the root; add other entries to ``found``."""
    place = root / below
    try:
        with os.scandir(place) as opened:
            entries = sorted(opened, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"folder {place} cannot be read: {error.strerror or error}; --exclude leaves it out") from error
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if is_system(entry.name):
            found.hidden += not entry.is_dir(follow_symlinks=False)
        elif is_excluded(name, exclude):
            found.excluded += 1
        elif entry.is_symlink() and not follow_links:
            found.links += 1
        elif entry.is_dir():
            yield name, entry
        elif looks_like_image(Path(entry.path)):
            found.names.append(name)
        else:
            found.ignored[os.path.splitext(entry.name)[1].lower()] += 1


def is_system(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or one that systems add."""
    return name.startswith(".") or name.lower() in SYSTEM


def is_own(folder: Path) -> bool:
    """Return whether hashgym wrote this folder: it has its marker or ``meta.json``, or is that of an unfinished job."""
    try:
        if (folder / MARKER).is_file() or (folder.suffix == ".partial" and (folder / JOURNAL).is_file()):
            return True
        with (folder / "meta.json").open("rb") as file:
            return b'"format": "hashgym-' in file.read(200)
    except OSError:
        return False


def _kind(suffix: str, count: int) -> str:
    """Describe a number of files of an extension."""
    if suffix in HEIF_SUFFIXES:
        return f"{count:,} {suffix} (pictures that `{install_command('pillow_heif')}` makes readable)"
    if suffix in UNREAD - IMAGE_SUFFIXES:
        return f"{count:,} {suffix} (pictures of a format that is not read here: convert them to JPEG)"
    return f"{count:,} {suffix or 'without extension'}"
