"""The Milvus back end (``pip install 'hashgym[milvus]'``): embedded, as a child of this process, or a server at a URI.

A collection has one entity for each code: the image's id, the code's place among the image's codes, and the code,
padded with zeros to whole words, under a flat index. The entity's key is id * 2^16 + place, so a search returns only
keys and distances. Several codes of one image are merged here, because Milvus does not group binary vectors by a field.

Milvus returns at most 16,384 entities for a query, and arbitrary ones of those that tie at the last place. So the k-th
image's distance is found first, and then, unless the answer shows that no tie is missing, all entities within that
distance: if those are too many for one answer, the range of ids is halved until each part fits.

The embedded Milvus is a process of its own with a file. It works on a private copy, so that a saved index is never
half changed and several processes may open one. It ends with :meth:`MilvusIndex.close`, or with this process.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from importlib import import_module, metadata
from itertools import count, pairwise
from pathlib import Path
from time import monotonic, sleep, time
from types import ModuleType
from typing import Any, ClassVar
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from hashgym.codes import CodeSets, Words, word_count
from hashgym.index.base import Found, Ids, Index, ranked
from hashgym.optional import require
from hashgym.storage import owned
from hashgym.storage.addresses import without_password

__all__ = ["MilvusIndex", "drop", "has"]

_LIMIT = 16_384  # entities that Milvus returns at most for one query
_ANSWER = 1 << 16  # entities requested at once, over all queries
_BATCH = 8_192  # entities sent, or ids listed, at once
_PLACES = 16  # bits of an entity's key that are the code's place
_FILE, _FOLDER = "milvus.db", "hashgym-milvus-"
_DESCRIPTION = "hashgym index"  # how the description of a collection begins
_USER = "the back end 'milvus'"  # for messages


class MilvusIndex(Index):
    """A Milvus collection.

    Args:
        bits: q, the length of the codes.
        uri: a server's address, ``http://HOST:19530``; if empty, Milvus is embedded. On a server every change
            is permanent at once, and saving records only where the collection is.
        token: the server's API key, or ``user:password``. It is never written to a file.
        collection: its name. An existing one of an index with the same bits is opened; a missing one is created.
        timeout: seconds to wait for an answer of the server.

    Raises:
        ValueError: for another collection of that name, or a name or address that Milvus does not accept.
        ImportError: if pymilvus, or for the embedded Milvus milvus-lite, is not installed.
        ConnectionError: if the server cannot be reached. All methods raise it if the server stops answering. An
            interrupted :meth:`add` has added some of the images, each with all its codes; :attr:`ids` lists them.
    """

    options: ClassVar[tuple[str, ...]] = ("uri", "token", "collection", "timeout")
    _server: _Server | None
    _client: Any

    def __init__(
        self, bits: int, uri: str = "", token: str = "", collection: str = "hashgym", timeout: float = 30.0
    ) -> None:
        super().__init__(bits)
        self._open(uri, token, collection, timeout)

    @classmethod
    def _check_options(cls, **options: Any) -> None:
        uri, collection = options.get("uri", ""), options.get("collection", "hashgym")
        if not isinstance(collection, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", collection):
            raise ValueError(
                f"the name of a collection is a letter or _ and at most 254 letters, digits and _, got {collection!r}"
            )
        if not isinstance(uri, str) or re.search(r"[@?#]|[^!-~]", uri):  # the message does not repeat it
            raise ValueError(
                "uri is saved, so it must be a server's address alone, like http://HOST:19530: give user and password "
                "by token='USER:PASSWORD' (on the command line: the environment variable MILVUS_TOKEN)"
            )
        if uri and not re.match(r"(https?|tcp|unix):", uri):
            raise ValueError(f"uri must be a server's address like http://HOST:19530, or empty for none, got {uri!r}")
        _pymilvus()

    def _open(
        self, uri: str, token: str, collection: str, timeout: float, saved: bool = False, file: Path | None = None
    ) -> None:
        """Connect to a server, or start one on a new file or a copy of one, and open or create the collection."""
        self._set(uri, collection, timeout)
        if not uri:
            self._server = _Server(file)
        try:
            self._connect(token)
            if self._call("has_collection"):
                self._check()
                self._call("load_collection")
            elif saved:
                where = f"Milvus at {uri}" if uri else "the index's file"
                raise ValueError(f"{where} has no collection {collection!r}: build the index again from its codes")
            else:
                self._create()
        except BaseException:
            self.close()
            raise

    def _set(self, uri: str, collection: str, timeout: float) -> None:
        self._check_options(uri=uri, collection=collection)
        self._uri, self._collection, self._timeout = uri, collection, timeout
        self._server = self._client = None
        self._images = 0  # lower bound of the number of images, from the last count

    def _connect(self, token: str = "") -> None:
        pymilvus = _pymilvus()
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # errors are raised; logging them too is noise
        uri = self._server.start() if self._server else self._uri
        patience = monotonic() + self._timeout
        while self._client is None:
            try:
                self._client = self._answer(
                    pymilvus.MilvusClient, uri, token=token, timeout=self._timeout, dedicated=True
                )
            except ConnectionError:  # noqa: PERF203
                if not (self._server and self._server.running and monotonic() < patience):  # still starting
                    raise
                sleep(0.05)

    def _answer(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a method of pymilvus; its errors become a ConnectionError that names the server and the remedy."""
        import grpc  # type: ignore[import-untyped]
        from pymilvus.exceptions import MilvusException

        try:
            return method(*args, **options)
        except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
            where = f"Milvus at {self._uri}" if self._uri else "the embedded Milvus"
            reason = without_password(" ".join(str(getattr(error, "message", error)).split()))[:300]
            remedy = "is it running, and are uri= and token= correct?" if self._uri else "open the index again"
            raise ConnectionError(f"{where}: request failed ({reason}); {remedy}") from error

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the client on the collection."""
        if self._client is None:
            raise ValueError("the index is closed: load it again")
        return self._answer(getattr(self._client, method), self._collection, *args, timeout=self._timeout, **options)

    @property
    def _description(self) -> str:
        return f"{_DESCRIPTION}, codes of {self.bits} bits"

    def _create(self) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, description=self._description)
        schema.add_field("entity", DataType.INT64, is_primary=True)
        schema.add_field("image", DataType.INT64)
        schema.add_field("place", DataType.INT32)
        schema.add_field("code", DataType.BINARY_VECTOR, dim=64 * word_count(self.bits))
        flat = self._client.prepare_index_params()
        flat.add_index("code", index_type="BIN_FLAT", metric_type="HAMMING")
        self._call("create_collection", schema=schema, index_params=flat, consistency_level="Strong")

    def _check(self) -> None:
        description = self._call("describe_collection")["description"]
        if description != self._description:
            raise ValueError(
                f"the collection {self._collection!r} is not that of an index with codes of {self.bits} bits, its "
                f"description is {description!r}: choose another name by collection=, or drop it"
            )

    def __len__(self) -> int:
        return int(self._call("query", filter="place == 0", output_fields=["count(*)"])[0]["count(*)"])

    @property
    def ids(self) -> Ids:
        """The images' ids, int64, ascending."""
        pages = self._call("query_iterator", batch_size=_BATCH, filter="place == 0", output_fields=["image"])
        found: list[int] = []
        try:
            while page := self._answer(pages.next):
                found.extend(entity["image"] for entity in page)
        finally:
            pages.close()
        return np.sort(np.array(found, np.int64))

    def _count(self, wanted: int) -> int:
        if wanted > self._images:
            self._images = len(self)
        return self._images

    def close(self) -> None:
        """Disconnect, and stop the embedded Milvus."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._server:
            self._server.close()

    def _known(self, ids: Ids) -> NDArray[np.bool_]:
        found: list[int] = []
        for batch in _batches(ids) if len(self) else ():
            entities = self._call("query", filter=f"{_filter(batch)} and place == 0", output_fields=["image"])
            found.extend(entity["image"] for entity in entities)
        return np.isin(ids, found)

    def _add(self, ids: Ids, sets: CodeSets) -> None:
        counts = sets.kept.sum(axis=1)
        if counts.max() >= _LIMIT:
            raise ValueError(f"Milvus stores images with fewer than {_LIMIT} codes, got one with {counts.max()}")
        if ids[-1] >> (63 - _PLACES):
            raise ValueError(f"Milvus stores ids below 2^{63 - _PLACES}, got {ids[-1]}")
        ends, octets = np.cumsum(counts), sets.words[sets.kept].astype("<u8", copy=False)
        images = np.repeat(ids, counts)
        places = np.arange(len(images)) - np.repeat(ends - counts, counts)
        cuts = ends[:-1][np.diff(ends // _BATCH) > 0]  # between images
        for start, stop in pairwise([0, *cuts.tolist(), len(images)]):
            rows = zip(images[start:stop].tolist(), places[start:stop].tolist(), octets[start:stop], strict=True)
            entities = [
                {"entity": image << _PLACES | place, "image": image, "place": place, "code": code.tobytes()}
                for image, place, code in rows
            ]
            self._call("insert", entities)

    def _remove(self, ids: Ids) -> None:
        self._images = 0
        for batch in _batches(ids):
            self._call("delete", filter=_filter(batch))

    def _search(self, words: Words, k: int) -> tuple[Ids, Ids]:
        limit = min(4 * k + 64, _LIMIT)
        rows = [self._nearest(words[i], hits, k, limit) for i, hits in enumerate(self._hits(words, limit))]
        ids, distances = (np.stack(parts) for parts in zip(*rows, strict=True))
        return ids, distances

    def _nearest(self, query: Words, hits: Found, k: int, limit: int) -> tuple[Ids, Ids]:
        """Return the k nearest images to a query, from the ``limit`` nearest entities that Milvus returned."""
        _, ids, distances = ranked(*hits, 1)
        if len(hits[1]) == limit and not (len(ids) >= k and distances[k - 1] < distances[-1]):
            radius = int(distances[k - 1] if len(ids) >= k else distances[-1])
            ids, distances = self._around(query, radius)
            for step in count():
                if len(ids) >= k or radius >= self.bits:
                    break
                radius += 2**step
                ids, distances = self._around(query, radius)
        return ids[:k], distances[:k]

    def _within(self, words: Words, radius: int) -> Found:
        found = [self._around(query, radius) for query in words]
        ids, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return np.cumsum([0, *(len(own) for own, _ in found)]), ids, distances

    def _around(self, query: Words, radius: int) -> tuple[Ids, Ids]:
        """Return the images within the radius of a query (W,) in order, and their distances."""
        parts, ranges = [], [(0, 1 << 63)]
        while ranges:
            low, high = ranges.pop()
            bounds = [f"image >= {low}"] * (low > 0) + [f"image < {high}"] * (high < 1 << 63)
            (hits,) = self._hits(query[None], _LIMIT, radius, " and ".join(bounds))
            if len(hits[1]) < _LIMIT:
                parts.append(hits)
            else:  # there may be more: split the range of ids
                ids = np.unique(hits[1])
                middle = int(ids[len(ids) // 2])
                ranges += [(low, middle), (middle, high)]
        queries, ids, distances = (np.concatenate(part) for part in zip(*parts, strict=True))
        return ranked(queries, ids, distances, 1)[1:]

    def _hits(self, words: Words, limit: int, radius: int | None = None, where: str = "") -> Iterator[Found]:
        """Yield for each query the nearest entities: zeros, image ids and distances, nearest first."""
        # Milvus excludes the radius.
        bounds = {} if radius is None else {"radius": radius + 1}
        block = max(1, _ANSWER // limit)
        for start in range(0, len(words), block):
            codes = [code.astype("<u8", copy=False).tobytes() for code in words[start : start + block]]
            answers = self._call(
                "search",
                codes,
                limit=limit,
                filter=where,
                search_params={"metric_type": "HAMMING", "params": bounds},
                consistency_level="Strong",
            )
            for hits in answers:
                entities, distances = np.array(hits.ids, np.int64), np.array(hits.distances).astype(np.int64)
                yield np.zeros(len(hits), np.int64), entities >> _PLACES, distances

    def _write(self, folder: Path) -> dict[str, Any]:
        options = {"uri": self._uri, "collection": self._collection}
        if not self._server:
            return options
        self._call("flush")
        self._client.close()
        self._client = None
        self._server.copy(folder / _FILE)
        self._connect()
        self._call("load_collection")
        return options

    @classmethod
    def _read(cls, meta: Mapping[str, Any], files: Mapping[str, Path], options: Mapping[str, Any]) -> Index:
        index = cls.__new__(cls)
        Index.__init__(index, meta["bits"])
        uri, file = options.get("uri", ""), files.get(_FILE)
        if not uri and not file:
            raise ValueError("the index is on a server, and its address was not saved: give it as uri=")
        token, timeout = options.get("token", ""), options.get("timeout", 30.0)
        index._open(uri, token, options["collection"], timeout, saved=True, file=file)
        return index


class _Server:
    """The embedded Milvus: a process and its file, in a temporary folder that is removed with it."""

    def __init__(self, file: Path | None) -> None:
        self._kind = _milvus_lite()
        _remove_abandoned_folders()
        folder = tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-")
        owned.mark(folder)
        self._clean = finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._file = Path(folder, _FILE)
        if file:
            shutil.copyfile(file, self._file)
        self._process: Any = None

    def start(self) -> str:
        """Start the process and return its address."""
        self._process = self._kind(str(self._file))
        if not (self._process.init() and self._process.start()):
            raise ConnectionError(
                "the embedded Milvus does not start: is there space in the folder for temporary files?"
            )
        return str(self._process.uds_path)

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process._p.poll() is None

    def stop(self) -> None:
        """End the process; all changes are then in the file."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def copy(self, target: Path) -> None:
        """Stop the process, and copy its file."""
        self.stop()
        shutil.copyfile(self._file, target)

    def close(self) -> None:
        """Stop the process, and remove its file."""
        self.stop()
        self._clean()


def has(uri: str, collection: str, token: str = "", timeout: float = 30.0) -> bool:
    """Return whether a server has a collection of this name.

    Raises:
        ValueError: for an address or a name that Milvus does not accept.
        ConnectionError: if the server cannot be reached.
    """
    with closing(_connected(uri, collection, token, timeout)) as index:
        return bool(index._call("has_collection"))


def drop(uri: str, collection: str, token: str = "", timeout: float = 30.0) -> None:
    """Drop a collection of a server that :class:`MilvusIndex` created; do nothing if there is none of this name.

    Raises:
        ValueError: if the collection is not one of an index, and for an address or a name that Milvus does not accept.
        ConnectionError: if the server cannot be reached.
    """
    with closing(_connected(uri, collection, token, timeout)) as index:
        if index._call("has_collection"):
            if not index._call("describe_collection")["description"].startswith(_DESCRIPTION):
                raise ValueError(f"the collection {collection!r} is not that of an index, so it is not dropped")
            index._call("drop_collection")


def _connected(uri: str, collection: str, token: str, timeout: float) -> MilvusIndex:
    """Return a connection to a server, without opening or creating the collection."""
    index = MilvusIndex.__new__(MilvusIndex)
    index._set(uri, collection, timeout)
    index._connect(token)
    return index


def _pymilvus() -> Any:
    """Import pymilvus, and undo that it reads a file ``.env`` into the environment.

    Otherwise a file in the current folder could choose the server that the token is sent to.
    """
    before = set(os.environ)
    try:
        return require("pymilvus", _USER)
    finally:
        for name in set(os.environ) - before:
            del os.environ[name]


def _remove_abandoned_folders() -> None:
    """Remove folders that killed processes left: their file is not locked, or they are old and have no file."""
    with suppress(ImportError):
        import fcntl

        for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
            if folder.name.startswith(f"{_FOLDER}{os.getpid()}-"):
                continue  # opening and closing the lock of this process would release it
            if not owned.is_owned(folder) or folder.stat().st_uid != os.getuid():
                continue
            with suppress(OSError):
                if (lock := folder / f".{_FILE}.lock").exists():
                    with lock.open("a") as file:
                        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                elif time() - folder.stat().st_mtime < 3600:  # its process may be about to lock it
                    continue
                owned.remove(folder)


def _milvus_lite() -> Any:
    """Return the class of milvus-lite that runs its process.

    It reads its own version from ``pkg_resources``, which setuptools no longer has since version 82.
    """
    name = "pkg_resources"
    module = "milvus_lite.server"
    with suppress(ImportError):
        return _with_own_folders(import_module(module).Server)
    stand_in: Any = ModuleType(name)
    stand_in.DistributionNotFound, stand_in.get_distribution = metadata.PackageNotFoundError, metadata.distribution
    sys.modules[name] = stand_in
    try:
        return _with_own_folders(require(module, _USER).Server)
    finally:
        del sys.modules[name]


def _with_own_folders(server: Any) -> Any:
    """Return the class with folders of its own for each process.

    It clears ``~/.cache/milvus``, which others may use, and leaves its logs in the folder for temporary files.
    """

    class WithOwnFolders(server):
        @property
        def args(self) -> list[Any]:
            return ["env", f"HOME={self._work_dir}", f"TMPDIR={self._work_dir}", *super().args]

    return WithOwnFolders


def _batches(ids: Ids) -> list[Ids]:
    return np.split(ids, range(_BATCH, len(ids), _BATCH))


def _filter(ids: Ids) -> str:
    """Return the condition that an entity is of one of these images."""
    return f"image in {ids.tolist()}"
