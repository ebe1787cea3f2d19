"""One interface to the engines that find images by their codes, in this process or on servers.

>>> import numpy as np
>>> from hashgym.codes import CodeSets
>>> from hashgym import index
>>> with index.make("brute-force", bits=3) as images:
...     images.add([7, 4], CodeSets.of(np.array([[1, 0, 0], [1, 1, 0]])))
...     ids, distances = images.search(np.array([[1, 0, 0]]), k=2)
>>> ids.tolist(), distances.tolist()
([[7, 4]], [[0, 1]])

An image may have several codes, and its distance from a query is the least over them. Engines order what they find by
distance and then by id, so that all of them give the very same answer; the slowest, ``brute-force``, defines it.

A saved index is a folder with ``index.json``, which names every other file, its size and its SHA-256. Those files are
named by what is in them, so that a new version is written beside the old one and comes into force when ``index.json``
is replaced: a process that is killed while saving leaves the old version, whole. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashgym.checks import check_integer, closest
from hashgym.codes import CodeSets, Words
from hashgym.retrieval.buckets import pack_queries
from hashgym.storage import owned
from hashgym.storage.atomic import sync
from hashgym.storage.checksums import sha256
from hashgym.storage.reading import read_bounded

__all__ = ["Found", "Ids", "Index", "backends", "check_options", "foreign", "load", "make", "ranked", "verify"]

Ids = NDArray[np.int64]
Found = tuple[Ids, Ids, Ids]  # offsets (m + 1,), ids and distances: query i has those from offsets[i] to offsets[i + 1]

META, SAVING = "index.json", ".saving"
FORMAT, VERSION = "hashgym-index", 1
REMEDY = "copy the index again, or build it again from its codes"
_OWN = re.compile(r"[a-z]+-([0-9a-f]{16})\.[a-z]+")  # names of files that save() writes: the digest of their content

_ENGINES = {
    "brute-force": ("brute_force", "BruteForceIndex", "compares with every code, in NumPy; needs nothing else"),
    "faiss": ("faiss", "FaissIndex", "compares with every code, in faiss: the fastest up to millions of codes"),
    "faiss-hash": (
        "faiss",
        "FaissHashIndex",
        "faiss's hash tables of parts of the codes; for near codes of many",
    ),
    "buckets": ("buckets", "BucketTableIndex", "a hash table of whole codes; for small radii"),
    "milvus": ("milvus", "MilvusIndex", "Milvus, embedded or a cluster (uri=): the way past one machine"),
}


class Index(ABC):
    """Images by id, each with one or more codes, to be searched by Hamming distance.

    Queries are bool or 0/1 integers (m, bits), or packed words, uint64 (m, ceil(bits / 64)), m >= 1. An index may be
    searched from several threads, and must not be changed meanwhile. Leaving a ``with`` block closes it.

    Args:
        bits: q, the length of the codes.

    Raises:
        ValueError: for a length below 1.
    """

    backend: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, bits: int) -> None:
        self.bits = check_integer("bits", bits)

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @property
    @abstractmethod
    def ids(self) -> Ids:
        """The images' ids, int64, ascending."""

    def add(self, ids: ArrayLike, sets: CodeSets) -> None:
        """Add images with their codes.

        Args:
            ids: whole numbers (n,) from 0 on, in any order.
            sets: their n code sets.

        Raises:
            ValueError: for ids that repeat, are below 0, are in the index already or are not n, or codes of another
                length. Nothing is added then.
        """
        ids, order = _sorted_ids(ids)
        if not isinstance(sets, CodeSets):
            raise ValueError(f"the codes of images are CodeSets (CodeSets.of(bits) makes them), got {type(sets)}")
        if sets.bits != self.bits:
            raise ValueError(f"the index has codes of {self.bits} bits, got {sets.bits}: encode with the same encoder")
        if len(ids) != len(sets):
            raise ValueError(f"{len(sets)} images need as many ids, got {len(ids)}")
        if known := _some(ids[self._known(ids)]):
            raise ValueError(f"the index has images with these ids already: {known}; remove them first")
        self._add(ids, sets if np.array_equal(order, np.arange(len(order))) else sets[order])

    def remove(self, ids: ArrayLike) -> None:
        """Remove images.

        Raises:
            ValueError: for ids that repeat or are not in the index. Nothing is removed then.
        """
        ids, _ = _sorted_ids(ids)
        if unknown := _some(ids[~self._known(ids)] if len(ids) else ids):
            raise ValueError(f"the index has no images with these ids: {unknown}; `index.ids` are those it has")
        if len(ids):
            self._remove(ids)

    def search(self, queries: ArrayLike, k: int) -> tuple[Ids, Ids]:
        """The ``k`` images nearest to each query, all images where there are fewer.

        Returns:
            ids, distances: int64 (m, min(k, len(self))), nearest first, at equal distance by ascending id.

        Raises:
            ValueError: for queries of another length, or ``k`` below 1.
        """
        words = pack_queries(queries, self.bits, 2)
        k = check_integer("k", k)
        k = min(k, self._count(k))
        if not k:
            return np.zeros((len(words), k), np.int64), np.zeros((len(words), k), np.int64)
        return self._search(words, k)

    def within(self, queries: ArrayLike, radius: int) -> Found:
        """All images within a Hamming radius of each query.

        Returns:
            offsets: int64 (m + 1,); query i has found ``ids[offsets[i] : offsets[i + 1]]``.
            ids, distances: int64 (offsets[-1],), each query's nearest first, at equal distance by ascending id.

        Raises:
            ValueError: for queries of another length, or a radius below 0.
        """
        words = pack_queries(queries, self.bits, 2)
        radius = check_integer("radius", radius, 0)
        if not self._count(1):
            return np.zeros(len(words) + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        return self._within(words, min(radius, self.bits))

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder that :func:`load` opens; a folder made by this before gets the new version.

        Files of the old version are deleted, other files in the folder are not touched.

        Raises:
            ValueError: if the folder's ``index.json`` is not one of an index, or its ``.saving`` is not ours.
            OSError: if it cannot be written.
        """
        folder = Path(folder)
        meta, work = folder / META, folder / SAVING
        if meta.exists():
            read_meta(folder, damaged=True)
        owned.remove(work)  # of a process that was killed
        owned.create(work)
        try:
            options = self._write(work)
            files = {}
            for file in sorted(file for file in work.iterdir() if file.name != owned.MARKER):
                sync(file)
                digest = sha256(file)
                name = f"{file.stem}-{digest[:16]}{file.suffix}"
                files[file.name] = {"file": name, "bytes": file.stat().st_size, "sha256": digest}
                os.replace(file, folder / name)
            content = {"format": FORMAT, "version": VERSION, "backend": self.backend, "bits": self.bits}
            content |= {"images": len(self), "options": options, "files": files}
            new = work / META
            new.write_text(json.dumps(content | {"digest": _digest(content)}, indent=1) + "\n", "utf-8")
            sync(new)
            sync(folder)
            os.replace(new, meta)
            sync(folder)
        finally:
            with suppress(OSError):
                owned.remove(work)
        current = {entry["file"] for entry in files.values()}
        for file in folder.iterdir():
            if file.name not in current and _is_own(file):
                file.unlink()

    @staticmethod
    def load(folder: str | Path, **options: Any) -> Index:
        """:func:`load`."""
        return load(folder, **options)

    def close(self) -> None:  # noqa: B027 (most engines have nothing to let go of)
        """Stop what the index has running and let go of its files; it cannot be used after that."""

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, wanted: int) -> int:
        """Number of images; where counting is slow, any from ``wanted`` on if there are as many."""
        return len(self)

    @abstractmethod
    def _known(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of the ids are in the index."""

    @abstractmethod
    def _add(self, ids: Ids, sets: CodeSets) -> None:
        """:meth:`add`, of ascending ids that are new."""

    @abstractmethod
    def _remove(self, ids: Ids) -> None:
        """:meth:`remove`, of ascending ids that are known."""

    @abstractmethod
    def _search(self, words: Words, k: int) -> tuple[Ids, Ids]:
        """:meth:`search` of packed queries, 1 <= k <= len(self)."""

    @abstractmethod
    def _within(self, words: Words, radius: int) -> Found:
        """:meth:`within` of packed queries."""

    @classmethod  # noqa: B027 (most engines take no options)
    def _check_options(cls, **options: Any) -> None:
        """Raise ValueError for a value that an option cannot have."""

    @abstractmethod
    def _write(self, folder: Path) -> dict[str, Any]:
        """Write files that hold the index; returns the options that :meth:`_read` needs besides, ready for JSON."""

    @classmethod
    @abstractmethod
    def _read(cls, meta: Mapping[str, Any], files: Mapping[str, Path], options: Mapping[str, Any]) -> Index:
        """What :meth:`_write` wrote, its files already checked. Options come from the user, then from the file."""


def make(backend: str, bits: int, **options: Any) -> Index:
    """An empty index of codes of ``bits`` bits (with Milvus on a server, what its collection holds).

    Args:
        backend: one of :func:`backends`.
        bits: q, the length of the codes.
        **options: for ``milvus``, see :class:`hashgym.index.milvus.MilvusIndex`; the others take none.

    Raises:
        ValueError: for an unknown back end or option, or a length below 1.
        ImportError: if the back end needs a package that is not installed; the message names the command.
    """
    check_options(backend, options)
    return _engine(backend)(bits, **options)


def check_options(backend: str, options: Mapping[str, Any]) -> None:
    """Check what :func:`make` is given, without making anything.

    Raises:
        ValueError: for an unknown back end or option, or a value that the option cannot have.
    """
    engine = _engine(backend)
    if unknown := set(options) - set(engine.options):
        raise ValueError(
            f"the back end {backend!r} takes {', '.join(f'{name}=' for name in engine.options) or 'no options'}; "
            f"not {', '.join(sorted(unknown))}"
        )
    engine._check_options(**options)


def load(folder: str | Path, **options: Any) -> Index:
    """Open a saved index, after comparing all its files with their checksums.

    What is changed in it stays in memory (a Milvus server's collection apart) until it is saved again.

    Args:
        folder: what :meth:`Index.save` wrote.
        **options: as for :func:`make`, instead of those it was saved with.

    Raises:
        ValueError: if there is no index, it was written in another format, a file is missing or damaged, or an option
            is unknown.
        ImportError: if its back end needs a package that is not installed.
        ConnectionError: if it is on a server that cannot be reached.
    """
    folder = Path(folder)
    meta = verify(folder)
    engine = _engine(meta["backend"])
    files = {name: folder / entry["file"] for name, entry in meta["files"].items()}
    if unknown := set(options) - set(engine.options):
        raise ValueError(f"the back end {meta['backend']!r} takes no {', '.join(sorted(unknown))}")
    index = engine._read(meta, files, meta["options"] | options)
    if len(index) != meta["images"] and files:
        index.close()
        raise ValueError(f"{folder} holds {len(index)} of {meta['images']} images; {REMEDY}")
    return index


def verify(folder: str | Path) -> dict[str, Any]:
    """What ``index.json`` of a saved index says, after comparing all its files with their checksums.

    Raises:
        ValueError: if there is no index, it was written in another format, or a file is missing or damaged.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    for entry in meta["files"].values():
        file = folder / entry["file"]
        if not file.is_file():
            raise ValueError(f"{file.name} is missing from the index {folder}; {REMEDY}")
        if (size := file.stat().st_size) != entry["bytes"]:
            raise ValueError(f"{file} has {size} of {entry['bytes']} bytes; {REMEDY}")
        if sha256(file) != entry["sha256"]:
            raise ValueError(f"{file} is damaged: its content has changed; {REMEDY}")
    return meta


def foreign(folder: str | Path) -> list[str]:
    """Names of what lies in the folder of a saved index and is not part of any version of it."""
    work = Path(folder) / SAVING
    ours = {META, owned.MARKER, *([SAVING] if owned.is_owned(work) or owned.is_empty(work) else [])}
    return sorted(p.name for p in Path(folder).iterdir() if p.name not in ours and not _OWN.fullmatch(p.name))


def backends() -> dict[str, str]:
    """What each back end is, by name. ``faiss`` and ``milvus`` need the extras of these names."""
    return {name: description for name, (_, _, description) in _ENGINES.items()}


def read_meta(folder: Path, damaged: bool = False) -> dict[str, Any]:
    """What ``index.json`` says; ``damaged`` allows one that is of an index but not whole."""
    file = folder / META
    try:
        meta = json.loads(read_bounded(file).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{folder} is no index: it has no {META}; `hashgym index CODES --out INDEX` makes one"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, or of something else: {error}; {REMEDY}") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"{file} is not of an index of codes; choose another folder")
    if damaged:
        return meta
    if meta.get("version") != VERSION:
        raise ValueError(
            f"{folder} is an index of version {meta.get('version')!r}, this hashgym reads version {VERSION}: "
            "build it again from its codes, or use the hashgym that wrote it"
        )
    if meta.pop("digest", None) != _digest(meta):
        raise ValueError(f"{file} is damaged or was edited; {REMEDY}")
    if not _sensible(meta):
        raise ValueError(f"{file} does not describe an index; {REMEDY}")
    return meta


def _sensible(meta: Mapping[str, Any]) -> bool:
    """Whether all is there that is looked for, and names no file elsewhere: a digest does not say who wrote it."""
    facts = {"backend": str, "bits": int, "images": int, "options": dict, "files": dict}
    entry_facts = {"file": str, "bytes": int, "sha256": str}
    return all(type(meta.get(key)) is kind for key, kind in facts.items()) and all(
        isinstance(entry, dict)
        and all(type(entry.get(key)) is kind for key, kind in entry_facts.items())
        and _OWN.fullmatch(entry["file"])
        for entry in meta["files"].values()
    )


def _is_own(file: Path) -> bool:
    """Whether :meth:`Index.save` wrote a file: its name has the digest of its content."""
    name = _OWN.fullmatch(file.name)
    return bool(name and file.is_file() and not file.is_symlink() and sha256(file)[:16] == name[1])


def ranked(queries: Ids, ids: Ids, distances: Ids, count: int, several: bool = True) -> Found:
    """What ``count`` queries have found, in order: by query, distance and id.

    Args:
        queries, ids, distances: int64 (n,), in any order.
        count: number of queries.
        several: whether an image may be there more than once; the least distance stays.
    """
    order = np.lexsort((ids, distances, queries))
    queries, ids, distances = queries[order], ids[order], distances[order]
    if several and len(ids):
        same = np.lexsort((ids, queries))  # stable: of one image the least distance comes first
        again = (queries[same][1:] == queries[same][:-1]) & (ids[same][1:] == ids[same][:-1])
        first = np.ones(len(ids), np.bool_)
        first[same[1:][again]] = False
        queries, ids, distances = queries[first], ids[first], distances[first]
    return np.searchsorted(queries, np.arange(count + 1)), ids, distances


def _engine(backend: str) -> Any:
    if backend not in _ENGINES:
        raise ValueError(
            f"there is no back end {backend!r}{closest(backend, _ENGINES)}; there are {', '.join(_ENGINES)}"
        )
    module, name, _ = _ENGINES[backend]
    return getattr(import_module(f"hashgym.index.{module}"), name)


def _sorted_ids(ids: ArrayLike) -> tuple[Ids, Ids]:
    """The ids in ascending order, and the order (n,) that sorts them."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"ids must be whole numbers of shape (n,), got {array.dtype} {array.shape}")
    order = np.argsort(array, kind="stable")
    array = array[order].astype(np.int64)
    if array.size and array[0] < 0:
        raise ValueError(f"ids must be 0 or more, got {array[0]}")
    if again := _some(array[1:][array[1:] == array[:-1]]):
        raise ValueError(f"these ids are given more than once: {again}")
    return array, order


def _some(ids: Ids) -> str:
    """The first ids, for a message; empty where there are none."""
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def _digest(meta: Mapping[str, Any]) -> str:
    canonical = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
