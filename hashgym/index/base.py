"""One interface to the back ends that find images by their codes, in this process or on servers.

>>> import numpy as np
>>> from hashgym.codes import CodeSets
>>> from hashgym import index
>>> with index.make("brute-force", bits=3) as images:
...     images.add([7, 4], CodeSets.of(np.array([[1, 0, 0], [1, 1, 0]])))
...     ids, distances = images.search(np.array([[1, 0, 0]]), k=2)
>>> ids.tolist(), distances.tolist()
([[7, 4]], [[0, 1]])

An image may have several codes; its distance from a query is the smallest of theirs. All back ends return the same
images in the same order, by distance and then by id; the slowest, ``brute-force``, defines the answer. ``prefix`` may
miss images where its ``candidates`` are bounded.

A saved index is a folder sealed by ``index.json`` (``hashgym.storage.sealed``), whose files are named by their
content. So a new version is written beside the old one and takes effect when ``index.json`` is replaced: a process that
is killed while saving leaves the old version, complete. Nothing is unpickled.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashgym.checks import check_integer
from hashgym.codes import CodeSets, Words
from hashgym.registry import Registry
from hashgym.retrieval.buckets import pack_queries
from hashgym.storage import owned
from hashgym.storage.atomic import temporaries
from hashgym.storage.sealed import FolderFormat, is_named_by_digest

__all__ = [
    "Found",
    "Ids",
    "Index",
    "backends",
    "check_options",
    "foreign",
    "load",
    "make",
    "ranked",
    "read_meta",
    "register",
    "verify",
]

IndexClass = TypeVar("IndexClass", bound=type["Index"])

Ids = NDArray[np.int64]
Found = tuple[Ids, Ids, Ids]  # offsets (m + 1,), ids and distances: query i has those from offsets[i] to offsets[i + 1]

REMEDY = "copy the index again, or build it again from its codes"
FORMAT = FolderFormat(
    "hashgym-index",
    1,
    description="a saved index",
    command="hashgym index",
    remedy=REMEDY,
    fields={"backend": str, "bits": int, "images": int, "options": dict},
    manifest="index.json",
)
SAVING = ".saving"  # folder in which the files of a new version are written


class Index(ABC):
    """Images by id, each with one or more codes, to be searched by Hamming distance.

    Queries are bool or 0/1 integers (m, bits), or packed words, uint64 (m, ceil(bits / 64)), m >= 1. An index may be
    searched from several threads, and must not be changed meanwhile. Leaving a ``with`` block closes it.

    A back end implements ``__len__``, ``ids`` and the abstract methods; arguments are checked before these are called.
    ``options`` names the keyword arguments of its constructor besides ``bits``.

    Args:
        bits: q, the length of the codes.

    Raises:
        ValueError: for a length below 1.
    """

    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, bits: int) -> None:
        self.bits = check_integer("bits", bits)

    @property
    def backend(self) -> str:
        """The name of its back end, one of :func:`backends`, or "package.module:Class"."""
        return BACKENDS.name_of(type(self))

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @property
    @abstractmethod
    def ids(self) -> Ids:
        """The images' ids, int64, ascending."""

    def add(self, ids: ArrayLike, sets: CodeSets) -> None:
        """Add images with their codes.

        Args:
            ids: integers (n,) from 0 on, in any order.
            sets: their n code sets.

        Raises:
            ValueError: for ids that repeat, are below 0, are in the index already or are not n, or codes of another
                length. Nothing is added then.
        """
        ids, order = _sorted_ids(ids)
        if not isinstance(sets, CodeSets):
            raise ValueError(f"the codes of images must be CodeSets, as CodeSets.of(bits) makes them, got {type(sets)}")
        if sets.bits != self.bits:
            raise ValueError(f"the index has codes of {self.bits} bits, got {sets.bits}: encode with the same encoder")
        if len(ids) != len(sets):
            raise ValueError(f"{len(sets)} images need {len(sets)} ids, got {len(ids)}")
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
            raise ValueError(f"the index has no images with these ids: {unknown}; `index.ids` lists those it has")
        if len(ids):
            self._remove(ids)

    def search(self, queries: ArrayLike, k: int) -> tuple[Ids, Ids]:
        """Return the ``k`` images nearest to each query, or all images if there are fewer.

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
        """Return all images within a Hamming radius of each query.

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
        """Write the index to a folder, for :func:`load`; the new version replaces one that was saved there before.

        Files of the old version are deleted, other files in the folder are not touched.

        Raises:
            ValueError: if the folder's ``index.json`` is not of a saved index, hashgym did not write its ``.saving``,
                or the class is not registered and in no module.
            OSError: if it cannot be written.
        """
        folder, backend = Path(folder), self.backend
        if backend.startswith("__main__:") or "<locals>" in backend:
            name = type(self).__name__
            raise ValueError(
                f"{name} is not registered, and no module holds it: call hashgym.index.register(name, {name}) before "
                "saving"
            )
        manifest, work = folder / FORMAT.manifest, folder / SAVING
        if manifest.exists() and not FORMAT.matches(folder):
            raise ValueError(f"{manifest} is not that of a saved index: choose another folder")
        owned.remove(work)  # left by a process that was killed
        owned.create(work)
        try:
            options = self._write(work)
            FORMAT.seal_version(folder, work, backend=backend, bits=self.bits, images=len(self), options=options)
        finally:
            with suppress(OSError):
                owned.remove(work)

    @staticmethod
    def load(folder: str | Path, **options: Any) -> Index:
        """Open a saved index, see :func:`load`."""
        return load(folder, **options)

    def close(self) -> None:  # noqa: B027 (most back ends hold nothing open)
        """Release processes, connections and files; the index cannot be used after that."""

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, wanted: int) -> int:
        """Return the number of images, or, if counting is slow, any lower bound that is at least ``wanted``."""
        return len(self)

    @abstractmethod
    def _known(self, ids: Ids) -> NDArray[np.bool_]:
        """Return whether each of the ids is in the index, bool (n,)."""

    @abstractmethod
    def _add(self, ids: Ids, sets: CodeSets) -> None:
        """Implement :meth:`add`: the ids are ascending, one or more, and new."""

    @abstractmethod
    def _remove(self, ids: Ids) -> None:
        """Implement :meth:`remove`: the ids are ascending, one or more, and in the index."""

    @abstractmethod
    def _search(self, words: Words, k: int) -> tuple[Ids, Ids]:
        """Implement :meth:`search`: the queries are packed, and 1 <= k <= len(self)."""

    @abstractmethod
    def _within(self, words: Words, radius: int) -> Found:
        """Implement :meth:`within`: the queries are packed, and the index is not empty."""

    @classmethod  # noqa: B027 (most back ends take no options)
    def _check_options(cls, **options: Any) -> None:
        """Raise ValueError for a value that an option cannot have, and ImportError for a missing package."""

    @abstractmethod
    def _write(self, folder: Path) -> dict[str, Any]:
        """Write the index to files in an empty folder, named like ``words.npy``, in lower-case letters.

        Returns:
            The options that :meth:`_read` needs, ready for JSON.
        """

    @classmethod
    @abstractmethod
    def _read(cls, meta: Mapping[str, Any], files: Mapping[str, Path], options: Mapping[str, Any]) -> Index:
        """Return the index that :meth:`_write` wrote.

        Args:
            meta: the content of ``index.json``, with ``bits`` and ``images``.
            files: the files by the names that they were written with; their checksums are verified.
            options: those that :meth:`_write` returned, replaced by those that the user gave.
        """


# Modules are imported at first use of their back ends: some need packages that may not be installed.
BACKENDS: Registry[type[Index]] = Registry(
    "back end",
    {
        "brute-force": (
            "hashgym.index.brute_force:BruteForceIndex",
            "compares with every code, in NumPy; needs no other package",
        ),
        "faiss": (
            "hashgym.index.faiss:FaissIndex",
            "compares with every code, in faiss: the fastest up to millions of codes",
        ),
        "faiss-hash": (
            "hashgym.index.faiss:FaissHashIndex",
            "faiss's hash tables of parts of the codes; for the nearest of many codes",
        ),
        "prefix": (
            "hashgym.index.prefix:PrefixIndex",
            "finds candidates by the first bits and ranks them by all (prefix=, candidates=); for nestable codes",
        ),
        "buckets": ("hashgym.index.buckets:BucketTableIndex", "a hash table of whole codes; for small radii"),
        "milvus": (
            "hashgym.index.milvus:MilvusIndex",
            "Milvus, embedded or a cluster (uri=): for more codes than fit on one machine",
        ),
    },
)


def backends() -> dict[str, str]:
    """Return every back end's name with one line on it; ``faiss``, ``faiss-hash`` and ``milvus`` need extras."""
    return dict(BACKENDS.descriptions)


@overload
def register(name: str, *, description: str = "") -> Callable[[IndexClass], IndexClass]: ...
@overload
def register(name: str, target: type[Index] | str, description: str = "") -> None: ...
def register(name: str, target: Any = None, description: str = "") -> Callable[[IndexClass], IndexClass] | None:
    """Register a back end of your own, a subclass of :class:`Index`, for :func:`make` and :func:`load`.

    ``@register("mine")`` before a class does the same. A name can be registered once.

    Args:
        name: its name.
        target: the class, or where it is, as "package.module:Class", which is imported at first use.
        description: one line for :func:`backends`; by default the first line of the class's docstring.

    Raises:
        ValueError: if the name is taken by another class, or the target is neither a subclass nor of that form.
    """
    return BACKENDS.register(name, target, description, check=_checked)


def make(backend: str, bits: int, **options: Any) -> Index:
    """Return an empty index of codes of ``bits`` bits; on a Milvus server, that of the collection if it exists.

    Args:
        backend: one of :func:`backends`, or "package.module:Class".
        bits: q, the length of the codes.
        **options: for ``milvus``, see :class:`hashgym.index.milvus.MilvusIndex`, for ``prefix``
            :class:`hashgym.index.prefix.PrefixIndex`; the others take none.

    Raises:
        ValueError: for an unknown back end or option, or a length below 1.
        ImportError: if the back end needs a package that is not installed; the message names the command.
    """
    check_options(backend, options)
    return _class(backend)(bits, **options)


def check_options(backend: str, options: Mapping[str, Any]) -> None:
    """Check the arguments of :func:`make` without making anything.

    Raises:
        ValueError: for an unknown back end or option, or a value that the option cannot have.
        ImportError: if the back end needs a package that is not installed; the message names the command.
    """
    cls = _class(backend)
    if unknown := set(options) - set(cls.options):
        raise ValueError(
            f"the back end {backend!r} takes {', '.join(f'{name}=' for name in cls.options) or 'no options'}, "
            f"got {', '.join(sorted(unknown))}"
        )
    cls._check_options(**options)


def load(folder: str | Path, **options: Any) -> Index:
    """Open a saved index, after comparing all its files with their checksums.

    Changes stay in memory until it is saved again, except those of a collection on a Milvus server.

    Args:
        folder: one that :meth:`Index.save` wrote.
        **options: as for :func:`make`, in place of those it was saved with.

    Raises:
        ValueError: if there is no index, it was written in another format, a file is missing or damaged, or an option
            is unknown.
        ImportError: if its back end needs a package that is not installed.
        ConnectionError: if it is on a server that cannot be reached.
    """
    folder = Path(folder)
    meta = verify(folder)
    backend = meta["backend"]
    module = backend.partition(":")[0]
    if backend not in BACKENDS.entries and (module == backend or module not in sys.modules):  # no file causes an import
        remedy = "call hashgym.index.register" if module == backend else f"import {module}"
        raise ValueError(f"{folder} has the back end {backend!r}, which is not registered: {remedy} before loading it")
    check_options(backend, options)
    files = {name: FORMAT.path(folder, meta, name) for name in meta["files"]}
    index: Index = _class(backend)._read(meta, files, meta["options"] | options)
    if len(index) != meta["images"] and files:
        index.close()
        raise ValueError(f"{folder} holds {len(index)} of {meta['images']} images; {REMEDY}")
    return index


def verify(folder: str | Path) -> dict[str, Any]:
    """Return the content of ``index.json`` of a saved index, after comparing all its files with their checksums.

    Raises:
        ValueError: if there is no index, it was written in another format, or a file is missing or damaged.
    """
    meta = FORMAT.read(folder)
    FORMAT.verify(folder, meta, large_files=True)
    return meta


def foreign(folder: str | Path) -> list[str]:
    """Return the names of the files in the folder of a saved index that are not part of any version of it."""
    folder = Path(folder)
    ours = {FORMAT.manifest, owned.MARKER, *(file.name for file in temporaries(folder / FORMAT.manifest))}
    with suppress(ValueError):  # without a readable manifest, files are recognised by the digests in their names
        ours |= {entry["file"] for entry in FORMAT.read(folder)["files"].values()}
    if owned.is_owned(folder / SAVING) or owned.is_empty(folder / SAVING):
        ours.add(SAVING)
    return sorted(file.name for file in folder.iterdir() if file.name not in ours and not is_named_by_digest(file))


def read_meta(folder: str | Path) -> dict[str, Any]:
    """Return the content of ``index.json`` of a saved index, without looking at the other files.

    Raises:
        ValueError: if there is no index, it was written in another format, or ``index.json`` is damaged.
    """
    return FORMAT.read(folder)


def ranked(queries: Ids, ids: Ids, distances: Ids, count: int, several: bool = True) -> Found:
    """Sort the hits of ``count`` queries by query, distance and id.

    Args:
        queries, ids, distances: int64 (n,), in any order.
        count: number of queries.
        several: whether an image may occur more than once; its smallest distance is kept.
    """
    order = np.lexsort((ids, distances, queries))
    queries, ids, distances = queries[order], ids[order], distances[order]
    if several and len(ids):
        same = np.lexsort((ids, queries))  # stable: the smallest distance of an image comes first
        repeated = (queries[same][1:] == queries[same][:-1]) & (ids[same][1:] == ids[same][:-1])
        first = np.ones(len(ids), np.bool_)
        first[same[1:][repeated]] = False
        queries, ids, distances = queries[first], ids[first], distances[first]
    return np.searchsorted(queries, np.arange(count + 1)), ids, distances


def _class(backend: str) -> Any:
    """Return the class of a back end, which takes ``bits`` and its own options."""
    return _checked(backend, BACKENDS.find(backend))


def _checked(name: str, cls: Any) -> type[Index]:
    if not isinstance(cls, type) or not issubclass(cls, Index):
        raise ValueError(f"back end {name!r} must be a subclass of hashgym.index.Index, got {cls!r:.80}")
    return cls


def _sorted_ids(ids: ArrayLike) -> tuple[Ids, Ids]:
    """Return the ids in ascending order, and the order (n,) that sorts them."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"ids must be integers of shape (n,), got {array.dtype} {array.shape}")
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"ids must be below 2**63, got {array.max()}")
    order = np.argsort(array, kind="stable")
    array = array[order].astype(np.int64)
    if array.size and array[0] < 0:
        raise ValueError(f"ids must be 0 or more, got {array[0]}")
    if repeated := _some(array[1:][array[1:] == array[:-1]]):
        raise ValueError(f"these ids are given more than once: {repeated}")
    return array, order


def _some(ids: Ids) -> str:
    """Return the first ids, for a message; empty if there are none."""
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
