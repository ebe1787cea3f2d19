"""Lists of images with labels, a line each: ``path 0 1 0 ...``, the format of the HashNet and DeepHash code."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from hashgym.data.dataset import DataError
from hashgym.data.files import OpenImage, read_bounded, require_all
from hashgym.data.images import ImageCollection

LAYOUT = "lines of `path 0 1 0 ...`, one 0 or 1 for each label, the same number on each line"
PARTS = ("test", "train", "database")
LONGEST = 4096  # characters; no system has longer paths


def read(path: str | Path, root: str | Path | None = None, *, allow_missing: bool = False) -> ImageCollection:
    """The images of one list, or of ``train.txt``, ``test.txt`` and ``database.txt`` in a folder.

    Names are the paths as listed; with several lists they begin with ``test/``, ``train/``, ``database/`` or, for
    images in both, ``train+database/``, which is what the split ``given`` goes by. Published lists do not agree on the
    order of their labels, so labels are numbered, and lists of different copies should not be mixed.

    Args:
        path: a list, or a folder of lists.
        root: the folder that the paths start from; the list's own by default. A path that is absolute, as in lists with
            their authors' folders, is looked for under ``root`` by its last parts, as many of them as are found there.
        allow_missing: leave listed images out that are not there, instead of an error.

    Raises:
        DataError: for a line that is not a path and 0 or 1 for each label, an image listed twice or both as a query
            and for another use, or missing images.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source} does not exist; wanted: a file of {LAYOUT}, or a folder of such lists")
    lists = {part: source / f"{part}.txt" for part in PARTS} if source.is_dir() else {"": source}
    if source.is_dir() and not (lists["test"].is_file() and lists["train"].is_file()):
        raise DataError(f"{source} must hold test.txt and train.txt, and may hold database.txt: {LAYOUT}")
    base = Path(root) if root is not None else source if source.is_dir() else source.parent

    roles: dict[str, str] = {}
    rows: dict[str, str] = {}
    for part, file in lists.items():
        for name, labels in _lines(file) if file.is_file() else []:
            if name in roles and (roles[name], part) != ("train", "database"):
                raise DataError(f"{file} lists {name}, which is listed before; an image has one line and one use")
            if rows.setdefault(name, labels) != labels:
                raise DataError(f"{file} gives {name} other labels than the list before")
            roles[name] = "train+database" if name in roles else part
    if not rows:
        raise DataError(f"{source} lists no images; wanted: {LAYOUT}")
    if len(counts := {len(row) for row in rows.values()}) > 1:
        raise DataError(f"the lists in {source} have different numbers of labels: {sorted(counts)}")

    places = {name: _place(base, name) for name in rows}
    missing = require_all(f"list {source.name}", rows, [place is not None for place in places.values()], allow_missing)
    there = {name: place for name, place in places.items() if place is not None}
    names = tuple("/".join((roles[name], name.lstrip("/"))).lstrip("/") for name in there)
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError(f"{source} lists {repeated[0]} twice, once with a slash before it; an image has one line")
    return ImageCollection(
        name=f"list:{source.stem}",
        names=names,
        labels=np.array([[int(label) for label in rows[name]] for name in there], np.uint8),
        label_names=tuple(str(i) for i in range(min(counts))),
        read=OpenImage(base, tuple(there.values())),
        provenance={"source": f"list {source.name}", "missing": len(missing)},
    )


def _lines(file: Path) -> list[tuple[str, str]]:
    """Path and labels, one character each, of every line; a path may hold spaces."""
    lines: list[tuple[str, str]] = []
    for number, line in enumerate(read_bounded(file).decode("utf-8", "surrogateescape").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        count = next((i for i, word in enumerate(reversed(words[1:])) if word not in ("0", "1")), len(words) - 1)
        path, *labels = line.strip().rsplit(maxsplit=count)
        if not labels or (lines and len(labels) != len(lines[0][1])):
            wanted = f"a path and {len(lines[0][1])} labels of 0 or 1" if lines else LAYOUT
            raise DataError(f"line {number} of {file} must be {wanted}, got {line[:80]!r}")
        lines.append((path, "".join(labels)))
    return lines


def _place(base: Path, name: str) -> str | None:
    """Where ``name`` lies below ``base``; of an absolute path the first folders are dropped until it is found."""
    if len(name) > LONGEST:
        return None
    parts = PurePosixPath(name.replace("\\", "/")).parts
    starts = range(1, len(parts)) if parts and (parts[0] == "/" or parts[0].endswith(":")) else range(1)
    return next((p for s in starts if os.path.isfile(base / (p := "/".join(parts[s:])))), None)
