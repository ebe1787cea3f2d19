"""Open an index of pictures and search it; :mod:`hashgym.gallery.index` builds and changes one.

``INDEX/meta.json`` describes the index and names the numbered folder beside it that has its content: ``ids.npy``
(int64 (n,), ascending, never given twice), ``words.npy``, ``kept.npy``, ``sizes.npy`` as in a folder of codes, names in
``text.npy`` and ``ends.npy``, ``encoder.onnx``, and ``engine``, the back end's folder. Every change creates a numbered
folder, and ``meta.json`` is replaced when that is on the disk: at any moment the index is the old or the new one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hashgym import index as backends
from hashgym.checks import check_choice, check_integer, closest
from hashgym.codes import CodeSets, Words, hamming, pack, unpack
from hashgym.data.image_files import resolved
from hashgym.data.pictures import open_image
from hashgym.encoders import Encoder, load_encoder
from hashgym.features.regions import Box
from hashgym.gallery.encoded_images import ENCODER
from hashgym.gallery.text import TextEncoder
from hashgym.index import Index
from hashgym.storage.errors import DataError
from hashgym.storage.sealed import FolderFormat

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "ARRAYS",
    "BACKEND",
    "INDEX",
    "REGIONS",
    "Gallery",
    "Match",
    "Names",
    "content_arrays",
    "open_gallery",
    "read_meta",
    "server_options",
    "verify",
]

INDEX = FolderFormat(
    "hashgym-gallery",
    1,
    description="an index",
    command="hashgym index",
    remedy="remove it and build it again",
    fields={
        **dict.fromkeys(("images", "bits", "next_id"), int),
        **dict.fromkeys(("root", "content", "backend", "encoder"), str),
        **{"codes": list, "options": dict},
    },
)
BACKEND = "engine"  # folder of the back end in a content
ARRAYS = ("ids", "words", "kept", "sizes", "text", "ends")
CANDIDATES, LEAST_CANDIDATES = 10, 100  # images that are ranked again: for each that is wanted, and at least
COMPARED_NAMES = 10_000  # for a suggestion: comparing names takes about 0.1 ms each
REGIONS = ("whole", "top left", "top right", "bottom left", "bottom right", "centre")


@dataclass(frozen=True)
class Match:
    """A picture that was found.

    Attributes:
        id: id of the picture in the index.
        name: name of the picture, relative to the root.
        path: path of the file, links followed; None if it is outside the root.
        distance: Hamming distance of the query's code to the nearest of its codes.
        region: of which part of it the nearest code is: 0 for the whole picture, else the number of a region
            (:data:`REGIONS`).
        box: the region in pixels of the upright picture; None for the whole.
        weighted: its asymmetric distance, see :meth:`Gallery.search`, which is then that of ``region``; None if the
            search was by Hamming distance alone.
    """

    id: int
    name: str
    path: Path | None
    distance: int
    region: int
    box: Box | None
    weighted: float | None = None


class Names(Mapping[int, str]):
    """Names by id, read from mapped arrays on access."""

    def __init__(self, ids: NDArray[np.int64], text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self._ids, self._text, self._ends = ids, text, ends

    def __getitem__(self, id: int) -> str:
        row = int(np.searchsorted(self._ids, id))
        if row == len(self._ids) or self._ids[row] != id:
            raise KeyError(f"there is no image {id} in this index")
        return self.at(row)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids.tolist())

    def __len__(self) -> int:
        return len(self._ids)

    def at(self, row: int) -> str:
        """Return the name in a row of the arrays."""
        start = int(self._ends[row - 1]) if row else 0
        return self._text[start : int(self._ends[row])].tobytes().decode("utf-8", "surrogateescape")

    def row(self, name: str) -> int | None:
        """Return the row of a name in the arrays; None if there is no such name."""
        wanted = np.frombuffer(name.encode("utf-8", "surrogateescape"), np.uint8)
        lengths = np.diff(self._ends, prepend=0)
        for row in np.flatnonzero(lengths == len(wanted)).tolist():
            if np.array_equal(self._text[self._ends[row] - len(wanted) : self._ends[row]], wanted):
                return int(row)
        return None

    def suggestion(self, name: str) -> str:
        """Return the part of an error message that suggests a name: one in another folder, else one that is close."""
        last = name.rpartition("/")[2].lower()
        for known in self.values():
            if known.rpartition("/")[2].lower() == last:
                return f" (did you mean {known!r}?)"
        return closest(name, islice(self.values(), COMPARED_NAMES))


@dataclass(frozen=True)
class Gallery:
    """An open index: see :func:`open_gallery`.

    Attributes:
        folder: folder of the index.
        root: the folder that names are relative to.
        encoder: encodes queries.
        index: the back end.
        names: id -> name.
        ids: int64 (n,), ascending.
        words: uint64 (n, V, W), mapped.
        kept: bool (n, V), mapped.
        sizes: int32 (n, 2), width and height of the pictures, mapped.
        meta: the content of ``meta.json``.
    """

    folder: Path
    root: Path
    encoder: Encoder
    index: Index
    names: Names
    ids: NDArray[np.int64]
    words: Words
    kept: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    meta: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def codes(self) -> CodeSets:
        """The code sets of all images, in the order of ``ids``, in memory."""
        return CodeSets(np.array(self.words), np.array(self.kept), self.encoder.bits)

    def size(self, id: int) -> tuple[int, int]:
        """Return the width and height in pixels that an image had when it was encoded."""
        width, height = self.sizes[np.searchsorted(self.ids, id)].tolist()
        return width, height

    def path(self, id: int) -> Path:
        """Return the file of an image, links followed.

        Raises:
            KeyError: for an id that is not in the index.
            DataError: if the file lies outside the root.
        """
        return resolved(self.root, self.names[id])

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of images, int64 (m,), in the arrays of the index.

        Raises:
            DataError: for an id that is not in the index, as from a back end that does not fit it.
        """
        rows = np.searchsorted(self.ids, ids)
        if not np.array_equal(self.ids[np.minimum(rows, len(self) - 1)], ids):
            raise DataError(f"the back end of {self.folder} found images that the index does not have; {INDEX.remedy}")
        return rows

    def search(
        self,
        image: Image | str | Path,
        k: int | None = 10,
        radius: int | None = None,
        rerank: Literal["margins"] | None = None,
    ) -> list[Match]:
        """Return the images nearest to a picture, by the distance of its code to the nearest of theirs; ties by id.

        With ``rerank="margins"`` the max(10 k, 100) nearest images, or all within the radius without k, are ranked by
        the asymmetric distance: the sum of the query's absolute margins over the bits in which the codes differ, so
        that bits of which the encoder is sure weigh more. An image has the least of its kept codes; ties are ranked by
        Hamming distance, then by id. The margins are those of the encoder, not normalised: a factor that is common to
        all bits changes no order, and a factor for each bit would need margins of other pictures, which an index does
        not keep.

        Args:
            image: a picture or its file.
            k: number of images at most; None for all within the radius.
            radius: largest Hamming distance; None for any distance.
            rerank: "margins" to rank by the asymmetric distance; None for the Hamming distance.

        Raises:
            ValueError: for k below 1, a negative radius, or if both are None; for another value of ``rerank``.
            DataError: for a file that cannot be read.
        """
        _check_wanted(k, radius)
        if rerank is not None:
            check_choice("rerank", rerank, ("margins",))
        picture = open_image(Path(image)) if isinstance(image, (str, Path)) else image
        views = self.encoder.prepare(picture, regions=False)
        if rerank is None:
            return self.search_code(self.encoder.encode_pictures(views).words[0, 0], k, radius)
        return self._reranked(self.encoder.margins(views)[0, 0], k, radius)

    def search_text(
        self,
        text: str,
        k: int | None = 10,
        radius: int | None = None,
        rerank: Literal["margins"] | None = None,
        weights: str | None = None,
    ) -> list[Match]:
        """Return the images nearest to a text, as :meth:`search`: its embedding is hashed as those of pictures are.

        The encoder's backbone must be an image-text model, ``open_clip:`` or ``hf:`` of CLIP or SigLIP. It is loaded at
        the first call, with its library.

        Args:
            text: such as "a red car".
            k: number of images at most; None for all within the radius.
            radius: largest Hamming distance; None for any distance.
            rerank: "margins" to rank by the asymmetric distance; None for the Hamming distance.
            weights: a file or folder of the backbone's weights, if they are not where its name says.

        Raises:
            ValueError: as :meth:`search`, and for an empty text, an encoder of another backbone, or a library that is
                not installed.
            DataError: if the backbone has other weights here than those that encoded the images.
        """
        _check_wanted(k, radius)
        if rerank is not None:
            check_choice("rerank", rerank, ("margins",))
        margins = self.text_margins(text, weights)
        return self.search_code(pack(margins > 0), k, radius) if rerank is None else self._reranked(margins, k, radius)

    def text_margins(self, text: str, weights: str | None = None) -> NDArray[np.float32]:
        """Return the margins of a text's bits, float32 (q,): its code is ``margins > 0``. As :meth:`search_text`."""
        if weights not in self._text_encoders:
            path = self.folder / self.meta["content"] / ENCODER
            self._text_encoders[weights] = TextEncoder.of(path, self.encoder, weights)
        margins: NDArray[np.float32] = self._text_encoders[weights].margins([text])[0]
        return margins

    @property
    def takes_texts(self) -> bool:
        """Whether its pictures were encoded by an image-text model, so that it can be searched by texts."""
        return bool((self.encoder.metadata["backbone"] or {}).get("texts"))

    @cached_property
    def _text_encoders(self) -> dict[str | None, TextEncoder]:
        """The text encoders that are loaded, by their weights."""
        return {}

    def share_text_encoders(self, other: Gallery) -> None:
        """Use the text encoders that another state of the same index has loaded, if its encoder is the same."""
        if all(self.meta[key] == other.meta[key] for key in ("encoder", "bits")):
            vars(self)["_text_encoders"] = other._text_encoders

    def search_name(self, name: str, k: int | None = 10, radius: int | None = None) -> list[Match]:
        """Return the images nearest to one of the index, without that one, by its own code; no picture is read.

        Args:
            name: name of an image, as in ``names``.
            k: number of images at most; None for all within the radius.
            radius: largest Hamming distance; None for any distance.

        Raises:
            ValueError: for k below 1, a negative radius, or if both are None.
            DataError: for a name that is not in the index; the message suggests one.
        """
        _check_wanted(k, radius)
        if (row := self.names.row(name)) is None:
            raise DataError(f"{self.folder} has no picture {name}{self.names.suggestion(name)}")
        own = int(self.ids[row])
        found = self.search_code(np.array(self.words[row, 0]), None if k is None else k + 1, radius)
        return [match for match in found if match.id != own][:k]

    def search_code(self, query: Words, k: int | None = 10, radius: int | None = None) -> list[Match]:
        """Return the images nearest to a packed code, uint64 (W,), as :meth:`search`."""
        _check_wanted(k, radius)
        rows, distances, gaps = self._found(query, k, radius)
        return self._matches(rows, distances, gaps.argmin(axis=1))

    def _reranked(self, margins: NDArray[np.float32], k: int | None, radius: int | None) -> list[Match]:
        """Return the images nearest to a query with these margins, float32 (q,), by the asymmetric distance."""
        bits, weights = margins > 0, np.abs(margins.astype(np.float64))
        count = None if k is None else max(CANDIDATES * k, LEAST_CANDIDATES)
        rows, distances, _ = self._found(pack(bits), count, radius)
        differ = unpack(np.array(self.words[rows]), self.encoder.bits) != bits
        sums = np.where(self.kept[rows], np.where(differ, weights, 0).sum(axis=2), np.inf)
        weighted = sums.min(axis=1, initial=np.inf)
        order = np.lexsort((rows, distances, weighted))[:k]  # rows are in the order of ids
        return self._matches(rows[order], distances[order], sums.argmin(axis=1)[order], weighted[order].tolist())

    def _found(
        self, query: Words, k: int | None, radius: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the images nearest to a packed code, nearest first: rows and distances (m,), and those of all codes.

        The last, int64 (m, V), has the largest integer for a code that is not kept.
        """
        if radius is not None:
            _, ids, distances = self.index.within(query[None], radius)
            ids, distances = ids[:k], distances[:k]
        else:
            assert k is not None
            ids, distances = (part[0] for part in self.index.search(query[None], k))
        rows = self.rows(ids)
        gaps = np.where(self.kept[rows], hamming(self.words[rows], query), np.iinfo(np.int64).max)
        if not np.array_equal(gaps.min(axis=1, initial=np.iinfo(np.int64).max), distances):
            raise DataError(f"the back end of {self.folder} has other codes than the index; {INDEX.remedy}")
        return rows, distances, gaps

    def _matches(
        self,
        rows: NDArray[np.int64],
        distances: NDArray[np.int64],
        views: NDArray[np.int64],
        weighted: list[float] | None = None,
    ) -> list[Match]:
        """Return the images in some rows, with the views whose codes matched."""
        regions = views if self.encoder.regions else np.zeros_like(views)
        each: Sequence[float | None] = weighted or [None] * len(rows)
        parts = zip(rows.tolist(), distances.tolist(), regions.tolist(), each, strict=True)
        return [self._match(row, distance, region, weight) for row, distance, region, weight in parts]

    def _match(self, row: int, distance: int, region: int, weighted: float | None) -> Match:
        id, path = int(self.ids[row]), None
        with suppress(DataError, OSError):
            path = self.path(id)
        box = self.encoder.boxes(*self.size(id))[region] if region else None
        return Match(id, self.names.at(row), path, distance, region, box, weighted)

    def close(self) -> None:
        """Close the back end, as leaving a ``with`` block does."""
        self.index.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_gallery(folder: str | Path, root: str | Path | None = None, uri: str | None = None) -> Gallery:
    """Open an index, after comparing all its files with their checksums; arrays are mapped.

    Args:
        folder: an index that :func:`hashgym.gallery.build` wrote.
        root: the folder where the pictures are now, if they were moved.
        uri: of the Milvus server that the index is on; by default the environment variable ``MILVUS_URI``, else the
            address in the index. The token in ``MILVUS_TOKEN`` is sent only to the first two.

    Raises:
        DataError: if it is not an index or damaged, or the pictures are not where they were.
        ValueError: if a back end's package is missing, or the index is on a server whose address the user must give.
        ConnectionError: if the server does not answer.
    """
    path = Path(folder)
    while True:
        meta = read_meta(path)
        try:
            arrays = content_arrays(path, meta)
            encoder = load_encoder(path / meta["content"] / ENCODER)
            if not 1 <= meta["bits"] <= encoder.bits:
                raise DataError(f"{path} is damaged: an index has no codes of {meta['bits']} bits; {INDEX.remedy}")
            encoder = encoder.cut(meta["bits"])
            place = _root(path, Path(meta["root"]) if root is None else Path(root), root is not None)
            saved = backends.read_meta(path / meta["content"] / BACKEND)
            if saved["backend"] != meta["backend"]:
                raise DataError(f"{path} is damaged: its parts do not fit together; {INDEX.remedy}")
            recorded = str(saved["options"].get("uri", ""))
            if uri and not recorded:
                raise ValueError(f"{path} is not on a server: leave out --uri")
            options = server_options(path, meta["backend"], recorded, uri) if recorded else {}
            backend = backends.load(path / meta["content"] / BACKEND, **options)
            break
        except (OSError, ValueError):
            if INDEX.read(path) == meta:  # otherwise it was replaced in the meantime
                raise
    names = Names(arrays["ids"], arrays.pop("text"), arrays.pop("ends"))
    gallery = Gallery(path, place, encoder, backend, names, **arrays, meta=meta)
    if encoder.digest != meta["encoder"] or len(backend) != len(gallery) or backend.bits != encoder.bits:
        raise DataError(f"{path} is damaged: its parts do not fit together; {INDEX.remedy}")
    if len(gallery) and not any(_exists(gallery, row) for row in np.linspace(0, len(gallery) - 1, 8).astype(int)):
        raise DataError(
            f"the pictures of {path}, such as {names.at(0)}, are not in {place}: name the folder where they are now "
            "with --root"
        )
    return gallery


def read_meta(folder: str | Path) -> dict[str, Any]:
    """Return the ``meta.json`` of an index: its images, bits, back end, root, and the digest of its encoder.

    Raises:
        DataError: if it is not an index, or damaged.
    """
    meta = INDEX.read(folder)
    if not re.fullmatch("[1-9][0-9]*", meta["content"]):
        raise DataError(f"{folder} is damaged: its content is not named by a number; {INDEX.remedy}")
    return meta


def verify(folder: str | Path) -> dict[str, Any]:
    """Return the ``meta.json`` of an index, after comparing all its files with their checksums; contacts no server.

    Raises:
        DataError: if it is not an index, or damaged.
    """
    path, meta = Path(folder), read_meta(folder)
    content_arrays(path, meta)
    try:
        saved = backends.verify(path / meta["content"] / BACKEND)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if (saved["backend"], saved["bits"], saved["images"]) != (meta["backend"], meta["bits"], meta["images"]):
        raise DataError(f"{path} is damaged: its parts do not fit together; {INDEX.remedy}")
    return meta


def server_options(
    folder: Path, backend: str, recorded: str, uri: str | None, token: str | None = None
) -> dict[str, str]:
    """Return the address of a back end's server, and the token if the user gave that address; empty if it is embedded.

    Args:
        folder: folder of the index.
        backend: name of the back end.
        recorded: the address that the index was built with.
        uri: the address that the user gave; by default ``MILVUS_URI``.
        token: the token that the user gave; by default ``MILVUS_TOKEN``.

    Raises:
        ValueError: if there is a token and only the index names the address, which others may have written.
    """
    given = os.environ.get("MILVUS_URI", "") if uri is None else uri
    token = os.environ.get("MILVUS_TOKEN", "") if token is None else token
    if not (address := given or recorded):
        return {}
    backends.check_options(backend, {"uri": address})
    if token and not given:
        raise ValueError(
            f"{folder} names the server {address}, and a token is set (MILVUS_TOKEN), which is sent only to a server "
            f"that you name: give --uri {address} or set MILVUS_URI to it if that is your server, or unset MILVUS_TOKEN"
        )
    return {"uri": address, **({"token": token} if token else {})}


def content_arrays(folder: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays of an index's content, compared with their checksums and checked against each other."""
    INDEX.verify(folder, meta, large_files=True)
    arrays = {key: INDEX.open_array(folder, meta, f"{meta['content']}/{key}.npy") for key in ARRAYS}
    rows = {len(arrays[key]) for key in ARRAYS if key != "text"}
    ends = arrays["ends"]
    ids, next_id = arrays["ids"], meta["next_id"]
    if (
        rows != {meta["images"]}
        or (len(ends) and int(ends[-1]) != len(arrays["text"]))
        or not (np.diff(ids) > 0).all()
        or not (int(ids.max(initial=-1)) < next_id < 2**62)
    ):
        raise DataError(f"{folder} is damaged: its arrays do not fit together; {INDEX.remedy}")
    return arrays


def _check_wanted(k: int | None, radius: int | None) -> None:
    """Raise ValueError for a number of images or a radius that no search can have."""
    if k is None and radius is None:
        raise ValueError("give k, a radius, or both")
    if k is not None:
        check_integer("k, the number of images to find,", k)
    if radius is not None:
        check_integer("radius, a number of bits,", radius, 0)


def _root(folder: Path, root: Path, given: bool) -> Path:
    """Return the folder of the pictures, links resolved."""
    if not root.is_dir():
        problem = (
            f"--root {root} is not a folder" if given else f"the pictures of {folder} were in {root}, which is missing"
        )
        raise DataError(f"{problem}: name the folder where they are now with --root")
    return Path(os.path.realpath(root))


def _exists(gallery: Gallery, row: int) -> bool:
    """Return whether the file of the picture in a row exists."""
    return os.path.lexists(gallery.root / gallery.names.at(row))
