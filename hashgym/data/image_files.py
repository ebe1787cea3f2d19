"""Image files: finding and listing them, in natural order."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from hashgym.checks import counted
from hashgym.storage.errors import DataError
from hashgym.storage.owned import MARKER

__all__ = [
    "IMAGE_SUFFIXES",
    "Listing",
    "find",
    "folder",
    "is_excluded",
    "is_own",
    "is_system",
    "list_images",
    "looks_like_image",
    "natural",
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
UNREAD = frozenset(  # of pictures that are common, but of formats that are not read
    {".heic", ".heif", ".jp2", ".j2k", ".jxl", ".psd", ".svg", ".tga", ".ico"}
    | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
)
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")  # WebP's is in two parts
SYSTEM = frozenset(  # what systems, synchronisation and archives leave in folders of pictures
    {"@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
    | {"thumbs.db", "ehthumbs.db", "desktop.ini"}
)
KINDS = 8  # extensions that a listing names: those of pictures first, then the most frequent


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


@dataclass
class Listing:
    """The images of a folder, and what was passed over.

    Attributes:
        names: image files relative to the folder, with forward slashes, in natural order.
        ignored: files that are no images, by extension; "" for none.
        hidden: hidden files, and those that systems leave in folders of pictures, such as ``Thumbs.db``.
        links: links, to files or folders, that were not followed.
        excluded: files and folders that the patterns exclude.
    """

    names: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    links: int = 0
    excluded: int = 0

    def add(self, other: Listing) -> None:
        """Also count what another listing passed over."""
        self.ignored += other.ignored
        self.hidden += other.hidden
        self.links += other.links
        self.excluded += other.excluded

    def words(self) -> str:
        """What was passed over, in words; empty if nothing was."""
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
    """The image files below a folder, which may itself be a link.

    A file counts as an image by its extension; one without extension, by its first bytes. Hidden files and folders are
    passed over, folders that systems add (``@eaDir``, ``__MACOSX``, ...), and those that hashgym wrote.

    Args:
        path: the folder.
        below: list this folder in it alone; names are relative to ``path`` all the same.
        follow_links: also follow links to files and folders, wherever they lead. Every folder is listed once, under
            its own path rather than a link's where it has both, so that loops do no harm.
        exclude: patterns as in a shell (``*``, ``?``, ``[...]``) of names, or of paths relative to the folder; what
            matches is left out, a folder with all that is in it.

    Raises:
        DataError: if a folder cannot be read.
    """
    found = Listing()
    seen: set[str] = set()
    folders, links = [below], list[str]()
    while folders or links:
        inside = folders.pop() if folders else links.pop(0)
        place = path / inside
        if (real := os.path.realpath(place)) in seen or (inside and is_own(place)):
            continue
        seen.add(real)
        for name, entry in _folders_in(path, inside, found, follow_links, exclude):
            (links if entry.is_symlink() else folders).append(name)
    found.names.sort(key=natural)
    return found


def subfolders(
    path: Path, below: str = "", *, follow_links: bool = False, exclude: Sequence[str] = ()
) -> tuple[list[str], Listing]:
    """Names of the folders directly in a folder, and a listing of the other entries; arguments as :func:`list_images`.

    Raises:
        DataError: if the folder cannot be read.
    """
    rest = Listing()
    inside = _folders_in(path, below, rest, follow_links, exclude)
    return [entry.name for _, entry in inside if not is_own(Path(entry.path))], rest


def looks_like_image(path: Path) -> bool:
    """Whether a file is an image by its extension or, where it has none, by its first bytes; hidden ones are none."""
    suffix = os.path.splitext(path.name)[1].lower()
    if path.name.startswith(".") or suffix:
        return not path.name.startswith(".") and suffix in IMAGE_SUFFIXES
    try:
        if not path.is_file():  # opening a pipe would wait without end
            return False
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(SIGNATURES) or (start[:4], start[8:12]) == (b"RIFF", b"WEBP")


def is_excluded(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches a relative path or its last part."""
    short = name.rpartition("/")[2]
    return any(fnmatchcase(name, wanted) or fnmatchcase(short, wanted) for wanted in (p.rstrip("/") for p in patterns))


def require_all(
    dataset: str, names: Iterable[str], present: Sequence[bool], allow_missing: bool, looked: str = ""
) -> list[str]:
    """Names of the images that are not present.

    Raises:
        DataError: if there are some and ``allow_missing`` is false, with their number, the first of them, and where
            they were looked for.
    """
    missing = [name for name, there in zip(names, present, strict=True) if not there]
    if missing and not allow_missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{dataset}: {len(missing):,} of {len(present):,} images are missing ({first}){looked}; complete the copy, "
            "or leave them out with --allow-missing (allow_missing=True)"
        )
    return missing


def resolved(root: Path, name: str) -> Path:
    """The file of a name, links followed.

    Raises:
        DataError: if it lies outside the root.
    """
    base, path = os.path.realpath(root), os.path.realpath(root / name)
    if path != base and not path.startswith(os.path.join(base, "")):
        raise DataError(
            f"image {name} lies outside {root.absolute()}, because of a link or `..`: read it with --follow-links, "
            "or name the folder that it is in"
        )
    return Path(path)


def stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns of a file, links followed; -1, -1 where there is none to be read."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _folders_in(
    root: Path, below: str, found: Listing, follow_links: bool, exclude: Sequence[str]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The folders in a folder below the root, by their names relative to the root; all else goes into ``found``."""
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
    """Whether a file or folder of this name is hidden, or one that systems add to folders of pictures."""
    return name.startswith(".") or name.lower() in SYSTEM


def is_own(folder: Path) -> bool:
    """Whether hashgym wrote this folder: it has our marker or our ``meta.json``, or is that of an unfinished job."""
    if (folder / MARKER).is_file() or (folder.suffix == ".partial" and (folder / "journal.jsonl").is_file()):
        return True
    try:
        with (folder / "meta.json").open("rb") as file:
            return b'"format": "hashgym-' in file.read(200)
    except OSError:
        return False


def _kind(suffix: str, count: int) -> str:
    """Files of an extension, in words."""
    if suffix in UNREAD - IMAGE_SUFFIXES:
        return f"{count:,} {suffix} (pictures of a format that is not read here: convert them to JPEG)"
    return f"{count:,} {suffix or 'without extension'}"
