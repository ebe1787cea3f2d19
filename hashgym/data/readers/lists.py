"""Lists of images, one per line: ``path 0 1 0 ...``, the format of the HashNet and DeepHash code, ``path 7``, the
number of a class, or ``path``, without labels."""

from __future__ import annotations

import codecs
import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from hashgym.data.image_files import is_excluded, require_all, resolved
from hashgym.data.images import ImageCollection
from hashgym.data.pictures import OpenImage
from hashgym.data.readers import Reader
from hashgym.storage.errors import DataError
from hashgym.storage.reading import read_bounded

LAYOUT = (
    "lines of `path 0 1 0 ...`, one 0 or 1 for each label, the same number on each line, of `path 7`, the number of "
    "the image's class, or of `path`, without labels"
)
PARTS = ("test", "train", "database")
LONGEST = 4096  # characters of a path; no system has longer ones
DIGITS = 30  # of the number of a class
LARGEST = 1 << 32  # images times classes


def read(
    path: str | Path,
    root: str | Path | None = None,
    *,
    allow_missing: bool = False,
    follow_links: bool = False,
    exclude: Sequence[str] = (),
) -> ImageCollection:
    """Read the images of one list, or of ``train.txt``, ``test.txt`` and ``database.txt`` in a folder.

    A line has a path and, separated by blanks, tabs or commas, two or more columns of 0 and 1, one for each label; or
    one column, the number of a class. So ``path 0`` is an image of class 0, not one without labels. If the first line
    ends with something else than a number, all lines are paths, and the images have no labels.

    Names are the paths as listed, normalised: ``./a.jpg`` becomes ``a.jpg``. With several lists they begin with
    ``test/``, ``train/``, ``database/`` or, for images in both, ``train+database/``, on which the split ``given`` is
    based. Published lists do not agree on the order of their labels, so labels are numbered, and lists of different
    copies should not be mixed.

    Args:
        path: a list, or a folder of lists.
        root: the folder that the paths are relative to; by default that of the list. An absolute path, as in lists with
            the folders of their authors, is searched for in ``root`` by its last parts, as many as are found there.
        allow_missing: leave out listed images that are missing, instead of an error.
        follow_links: also read images outside ``root``, where a link or ``..`` leads.
        exclude: patterns of paths, or of file names, to leave out.

    Raises:
        DataError: for a line that is not a path and its labels, an image listed twice or both as a query and for
            another part, missing images, or images outside the root.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source} does not exist; expected: a file of {LAYOUT}, or a folder of such lists")
    lists = {part: source / f"{part}.txt" for part in PARTS} if source.is_dir() else {"": source}
    if source.is_dir() and not (lists["test"].is_file() and lists["train"].is_file()):
        raise DataError(f"{source} must hold test.txt and train.txt, and may hold database.txt: {LAYOUT}")
    base = Path(root) if root is not None else source if source.is_dir() else source.parent

    roles, rows, excluded = _merged(lists, exclude)
    if not rows:
        raise DataError(f"{source} lists no images; expected: {LAYOUT}")
    if len(counts := {len(row) for row in rows.values()}) > 1:
        raise DataError(f"the lists in {source} have different numbers of labels: {sorted(counts)}")
    places = {name: _place(base, name, follow_links) for name in rows}
    missing = require_all(
        f"list {source.name}",
        rows,
        [place is not None for place in places.values()],
        allow_missing,
        f"; they were searched for in {base.absolute()}: name the folder that the paths start from with --root",
    )
    found = {name: place for name, place in places.items() if place is not None}
    if clash := _same_file(base, found):
        raise DataError(f"{source} lists one file twice, as {clash[0]} and as {clash[1]}: remove one of the lines")
    names = tuple("/".join((roles[name], name.lstrip("/"))).lstrip("/") for name in found)
    labels, label_names = _labels(source, list(rows.values()), [rows[name] for name in found])
    return ImageCollection(
        name=f"list:{source.stem}",
        names=names,
        labels=labels,
        label_names=label_names,
        read=(opener := OpenImage(base, tuple(found.values()), inside=not follow_links)),
        stamp=opener.stamp,
        provenance={
            "source": f"list {source.name}",
            "missing": len(missing),
            **({"passed_over": f"{excluded:,} by --exclude"} if excluded else {}),
        },
    )


READER = Reader(read, LAYOUT, options=("root", "allow_missing", "follow_links", "exclude"))


def _merged(
    lists: Mapping[str, Path], exclude: Sequence[str]
) -> tuple[dict[str, str], dict[str, tuple[str, ...]], int]:
    """Return the part and the labels of every name in the lists of the parts, and the number of excluded lines."""
    roles: dict[str, str] = {}
    rows: dict[str, tuple[str, ...]] = {}
    excluded = 0
    for part, file in lists.items():
        for name, row in _lines(file) if file.is_file() else []:
            if is_excluded(name, exclude):
                excluded += 1
                continue
            if name in roles and (roles[name], part) != ("train", "database"):
                raise DataError(f"{file} lists {name}, which is listed already: keep one line, in one of the lists")
            if rows.setdefault(name, row) != row:
                raise DataError(f"{file} gives {name} other labels than an earlier list: make them equal")
            roles[name] = "train+database" if name in roles else part
    return roles, rows, excluded


def _lines(file: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Return the normalised path and the labels of every line, if it has any; a path may contain blanks and commas."""
    lines: list[tuple[str, tuple[str, ...]]] = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        spaced = line.replace(",", " ")
        words = spaced.split()
        if not words:
            continue
        if not (lines[0][1] if lines else _is_number(words[-1])) and len(line) <= LONGEST:  # without labels
            lines.append((posixpath.normpath(line.strip().strip('"')), ()))
            continue
        bits = next((i for i, word in enumerate(reversed(words[1:])) if word not in ("0", "1")), len(words) - 1)
        columns = bits if bits > 1 and (not lines or len(lines[0][1]) > 1) else 1
        rest, *labels = spaced.rsplit(maxsplit=columns)
        start = len(rest) - len(rest.lstrip())
        path = line[start : len(rest)].strip('"')
        numbers = [_is_number(word) for word in words[-2:]]  # of one column, the word before must not be a number
        differs = bool(lines) and len(labels) != len(lines[0][1])
        if differs or not labels or not path or not numbers[-1] or (columns == 1 and len(words) > 2 and numbers[0]):
            wanted = LAYOUT
            if lines:
                each = len(lines[0][1])
                wanted = f"a path and {each} labels of 0 or 1" if each > 1 else "a path and the number of a class"
            raise DataError(f"line {number} of {file} is {line[:80]!r}; expected: {wanted}")
        lines.append((posixpath.normpath(path), tuple(labels)))
    return lines


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= DIGITS


def _text(file: Path) -> str:
    """Decode a list; a byte order mark is removed, and selects UTF-16."""
    octets = read_bounded(file)
    if octets.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return octets.decode("utf-16", errors="replace")
    return octets.decode("utf-8-sig", errors="surrogateescape")


def _labels(
    source: Path, listed: Sequence[tuple[str, ...]], present: Sequence[tuple[str, ...]]
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return the multi-hot labels of the images that are present, and the names of the labels."""
    if len(listed[0]) != 1:
        table = np.array(present, np.uint8).reshape(len(present), len(listed[0]))
        return table, tuple(map(str, range(len(listed[0]))))
    classes = sorted({int(label) for (label,) in listed})
    if len(classes) * len(present) > LARGEST:
        raise DataError(
            f"{source} has {len(classes):,} classes for {len(listed):,} images: is the column the number of a class?"
        )
    columns = {label: column for column, label in enumerate(classes)}
    labels = np.zeros((len(present), len(classes)), np.uint8)
    labels[np.arange(len(present)), [columns[int(label)] for (label,) in present]] = 1
    return labels, tuple(map(str, classes))


def _place(base: Path, name: str, follow_links: bool) -> str | None:
    """Find ``name`` in ``base``; the first folders of an absolute path are dropped until it is found."""
    if len(name) > LONGEST:
        return None
    parts = PurePosixPath(name.replace("\\", "/")).parts
    starts = range(1, len(parts)) if parts and (parts[0] == "/" or parts[0].endswith(":")) else range(1)
    place = next((p for s in starts if os.path.isfile(base / (p := "/".join(parts[s:])))), None)
    if place is not None and not follow_links:
        resolved(base, place)
    return place


def _same_file(base: Path, places: Mapping[str, str]) -> tuple[str, str] | None:
    """Find two names of one file: the same path, or paths that differ in case on a file system that ignores it."""
    first: dict[str, str] = {}
    for name, place in places.items():
        other = first.setdefault(os.path.normpath(place).casefold(), name)
        if other != name and os.path.samefile(base / place, base / places[other]):
            return other, name
    return None
