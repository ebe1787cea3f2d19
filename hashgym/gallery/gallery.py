"""An index of pictures in one folder: built from codes, added to, removed from, and searched.

``INDEX/meta.json`` says what the index is and which numbered folder beside it has its content: ``ids.npy`` (int64 (n,),
ascending, never given twice), ``words.npy``, ``kept.npy``, ``sizes.npy`` as in a folder of codes, names in ``text.npy``
and ``ends.npy``, ``encoder.onnx``, and ``engine``, the back end's own. Every change makes a new numbered folder, and
``meta.json`` is replaced when that is on the disk: at any moment there is the old index or the new one.

The index and each content carry the marker of :mod:`hashgym.storage.owned`; a content without it, or with files of
somebody else in it, is never deleted. On a Milvus server a content is a collection of its own, whose name is derived
from this computer, the folder and the number: no other collection is emptied or dropped. The server's token goes only
to an address that the user gave.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.codes import CodeSets, Words, hamming
from hashgym.data.pictures import open_image
from hashgym.features.regions import Box
from hashgym.gallery.encode import ENCODER, Codes, open_codes, resolved
from hashgym.storage import owned
from hashgym.storage.atomic import clean, sync
from hashgym.storage.errors import DataError
from hashgym.storage.pipeline import progress_bar
from hashgym.storage.sealed import FolderFormat

if TYPE_CHECKING:
    from PIL.Image import Image

    from hashgym.encoders import Encoder
    from hashgym.index.base import Index

__all__ = ["REGIONS", "Gallery", "Match", "Names", "build", "open_gallery", "read_meta", "remove", "verify"]

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
ENGINE = "engine"
ARRAYS = ("ids", "words", "kept", "sizes", "text", "ends")
AT_ONCE = 1 << 16  # images that are given to a back end together
REGIONS = ("whole", "top left", "top right", "bottom left", "bottom right", "centre")


@dataclass(frozen=True)
class Match:
    """A picture that was found.

    Attributes:
        id: its number in the index.
        name: relative to the root.
        path: where it is, links followed; None where that is outside the root.
        distance: Hamming distance of the query's code to the nearest of its codes.
        region: which of its codes that is: 0 for the whole picture, else the number of a region (:data:`REGIONS`).
        box: the region in pixels of the upright picture; None for the whole.
    """

    id: int
    name: str
    path: Path | None
    distance: int
    region: int
    box: Box | None


class Names(Mapping[int, str]):
    """Names by id, read from mapped arrays as they are asked for."""

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
        """The name in a row of the arrays."""
        start = int(self._ends[row - 1]) if row else 0
        return self._text[start : int(self._ends[row])].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Gallery:
    """An open index: see :func:`open_gallery`.

    Attributes:
        folder: of the index.
        root: the folder that names are relative to.
        encoder: what makes a query's code.
        index: the back end.
        names: id -> name.
        ids: int64 (n,), ascending.
        words: uint64 (n, V, W), mapped.
        kept: bool (n, V), mapped.
        sizes: int32 (n, 2), width and height of the pictures, mapped.
        meta: what the index says of itself.
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
        """Width and height in pixels that an image had when it was encoded."""
        width, height = self.sizes[np.searchsorted(self.ids, id)].tolist()
        return width, height

    def path(self, id: int) -> Path:
        """The file of an image, links followed.

        Raises:
            KeyError: for an id that is not in the index.
            DataError: if the file lies outside the root.
        """
        return resolved(self.root, self.names[id])

    def search(self, image: Image | str | Path, k: int | None = 10, radius: int | None = None) -> list[Match]:
        """The images nearest to a picture, by the least distance of its code to any of theirs; ties by id.

        Args:
            image: a picture or its file.
            k: at most so many; None for all within the radius.
            radius: none further than this; None for any distance.

        Raises:
            ValueError: for k below 1, a negative radius, or neither of them.
            DataError: for a file that cannot be read.
        """
        picture = open_image(Path(image)) if isinstance(image, (str, Path)) else image
        query = self.encoder.encode_pictures(self.encoder.prepare(picture, regions=False)).words[:, 0]
        return self.search_code(query[0], k, radius)

    def search_code(self, query: Words, k: int | None = 10, radius: int | None = None) -> list[Match]:
        """The same for a code, packed, uint64 (W,)."""
        if k is not None and k < 1:
            raise ValueError(f"k is the number of images to find, at least 1, got {k}")
        if radius is not None and radius < 0:
            raise ValueError(f"radius is a number of bits, at least 0, got {radius}")
        if radius is not None:
            _, ids, distances = self.index.within(query[None], radius)
            ids, distances = ids[:k], distances[:k]
        elif k is not None:
            ids, distances = (part[0] for part in self.index.search(query[None], k))
        else:
            raise ValueError("give k, a radius, or both")
        rows = np.searchsorted(self.ids, ids)
        if not np.array_equal(self.ids[np.minimum(rows, len(self) - 1)], ids):
            raise DataError(f"the back end of {self.folder} finds images that the index does not have; {INDEX.remedy}")
        gaps = np.where(self.kept[rows], hamming(self.words[rows], query), np.iinfo(np.int64).max)
        if not np.array_equal(gaps.min(axis=1, initial=np.iinfo(np.int64).max), distances):
            raise DataError(f"the back end of {self.folder} has other codes than the index; {INDEX.remedy}")
        return [
            self._match(int(id), int(row), int(distance), region)
            for id, row, distance, region in zip(ids, rows, distances, gaps.argmin(axis=1).tolist(), strict=True)
        ]

    def _match(self, id: int, row: int, distance: int, region: int) -> Match:
        path = None
        with suppress(DataError, OSError):
            path = self.path(id)
        box = self.encoder.boxes(*self.size(id))[region] if region else None
        return Match(id, self.names.at(row), path, distance, region, box)

    def close(self) -> None:
        """Let go of the back end; leaving a ``with`` block does."""
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
        folder: what :func:`build` wrote.
        root: the folder where the pictures are now, if they were moved.
        uri: of the Milvus server that the index is on; by default the environment variable ``MILVUS_URI``, else what
            the index says. The token in ``MILVUS_TOKEN`` is sent only to the first two.

    Raises:
        DataError: if it is none or damaged, or the pictures are not where they were.
        ValueError: where a back end's package is missing, or the index is on a server whose address the user must give.
        ConnectionError: where the server does not answer.
    """
    from hashgym import index as engines
    from hashgym.encoders import load_encoder

    path = Path(folder)
    while True:
        meta = read_meta(path)
        try:
            arrays = _arrays(path, meta)
            encoder = load_encoder(path / meta["content"] / ENCODER)
            place = _root(path, Path(meta["root"]) if root is None else Path(root), root is not None)
            saved = engines.read_meta(path / meta["content"] / ENGINE)
            if saved["backend"] != meta["backend"]:
                raise DataError(f"{path} is damaged: its parts do not belong together; {INDEX.remedy}")
            recorded = str(saved["options"].get("uri", ""))
            if uri and not recorded:
                raise ValueError(f"{path} is on no server: leave out --uri")
            options = _server(path, meta["backend"], recorded, uri) if recorded else {}
            engine = engines.load(path / meta["content"] / ENGINE, **options)
            break
        except (OSError, ValueError):
            if INDEX.read(path) == meta:  # else it was replaced meanwhile
                raise
    names = Names(arrays["ids"], arrays.pop("text"), arrays.pop("ends"))
    gallery = Gallery(path, place, encoder, engine, names, **arrays, meta=meta)
    if encoder.digest != meta["encoder"] or len(engine) != len(gallery) or engine.bits != encoder.bits:
        raise DataError(f"{path} is damaged: its parts do not belong together; {INDEX.remedy}")
    if len(gallery) and not any(_there(gallery, row) for row in np.linspace(0, len(gallery) - 1, 8).astype(int)):
        raise DataError(
            f"the pictures of {path} are not in {place}, {names.at(0)} for one: say with --root which folder they are "
            "in now"
        )
    return gallery


def read_meta(folder: str | Path) -> dict[str, Any]:
    """What an index says of itself: its images, bits, back end, root, and the digest of its encoder.

    Raises:
        DataError: if it is none, or damaged.
    """
    meta = INDEX.read(folder)
    if not re.fullmatch("[1-9][0-9]*", meta["content"]):
        raise DataError(f"{folder} is damaged: its content is not named by a number; {INDEX.remedy}")
    return meta


def verify(folder: str | Path) -> dict[str, Any]:
    """What an index says of itself, after comparing all its files with their checksums. No server is asked.

    Raises:
        DataError: if it is none, or damaged.
    """
    from hashgym import index as engines

    path, meta = Path(folder), read_meta(folder)
    _arrays(path, meta)
    try:
        saved = engines.verify(path / meta["content"] / ENGINE)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if (saved["backend"], saved["bits"], saved["images"]) != (meta["backend"], meta["bits"], meta["images"]):
        raise DataError(f"{path} is damaged: its parts do not belong together; {INDEX.remedy}")
    return meta


def build(
    codes: Sequence[str | Path],
    out: str | Path,
    backend: str | None = None,
    add: bool = False,
    progress: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Make an index of codes, or add codes to one.

    An image that is there already, by its path, gets its new codes under its old id. What was done before, with the
    same codes, is not done again.

    Args:
        codes: folders of codes, all of the same encoder.
        out: the folder of the index.
        backend: a name that :func:`hashgym.index.base.backends` lists; ``faiss`` by default, of an index that is
            added to its own.
        add: to the index in ``out``.
        progress: show a progress bar.
        options: of the back end, such as ``uri``; by default of Milvus the environment variable ``MILVUS_URI``.

    Returns:
        ``out``, for :func:`open_gallery`.

    Raises:
        DataError: for codes that are damaged or of different encoders, if ``out`` is there without ``add``, or not
            there with it, and if something else than an index is there. Nothing was written or deleted then.
        ValueError: for a back end or an option that is not known or cannot be had.
        ConnectionError: where the server does not answer.
    """
    folder = Path(out)
    given = [open_codes(place, verify=True) for place in codes]
    if not given:
        raise DataError("there is nothing to index: name folders of codes, which `hashgym encode` writes")
    _check_same_encoder(given)
    digests = [part.digest for part in given]

    def checked() -> tuple[str, dict[str, Any], dict[str, Any] | None]:
        """The back end, its options, and what ``meta.json`` of the index says that is there."""
        there = _existing(folder, add)
        other = there is not None and backend not in (None, there["backend"])
        if there is not None and add and other:
            raise DataError(f"{folder} has the back end {there['backend']}: leave out --backend to add to it")
        if there is not None and not add and (other or there["codes"] != digests):
            raise DataError(f"{folder} exists already: --add adds to it; or remove it, or choose another --out")
        name = backend or (there["backend"] if there else "faiss")
        return name, _options(folder, name, there, options), there

    _, own, _ = checked()
    with _alone(folder, own):
        name, own, there = checked()  # another process may have changed it meanwhile
        old = None if there is None else _Content.of(folder)
        if old is not None and (not add or set(digests) <= set(old.meta["codes"])):
            return folder
        _check_same_encoder(given, folder, old)
        content = _merged(old, given)
        indexed = [*(old.meta["codes"] if old else []), *digests]
        meta: dict[str, Any] = {"backend": name, "encoder": given[0].encoder, "codes": indexed}
        _replace(folder, old, content, given[0].folder / ENCODER, meta, own, progress)
    return folder


def remove(
    index: str | Path, names: Sequence[str], progress: bool = True, options: Mapping[str, Any] | None = None
) -> Path:
    """Take images out of an index; the ids of the others stay.

    The same removal again, after one that was killed at its very end, does nothing.

    Args:
        index: the folder of the index.
        names: as ``hashgym search`` shows them.
        progress: show a progress bar.
        options: of the back end, as for :func:`build`.

    Raises:
        DataError: for a name that is not in the index, or if no image would be left.
        ValueError: where the index is on a server whose address the user must give.
        ConnectionError: where the server does not answer.
    """
    folder = Path(index)
    meta = read_meta(folder)
    with _alone(folder, _options(folder, meta["backend"], meta, options)):
        old = _Content.of(folder)
        own = _options(folder, old.meta["backend"], old.meta, options)
        rows = {name: row for row, name in enumerate(old.names)}
        unknown = [name for name in names if name not in rows]
        if unknown and sorted(set(unknown)) == sorted(set(names)) == old.meta.get("removed"):
            return folder
        if unknown:
            first = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
            raise DataError(f"{folder} has no image {first}; names are relative to {old.root}, as a search shows them")
        kept = np.setdiff1d(np.arange(len(old.names)), [rows[name] for name in names])
        if not len(kept):
            raise DataError(f"no image would be left in {folder}: remove the folder instead")
        encoder = folder / old.meta["content"] / ENCODER
        meta = {key: old.meta[key] for key in ("backend", "encoder")} | {"codes": [], "removed": sorted(set(names))}
        _replace(folder, old, old.select(kept), encoder, meta, own, progress)
    return folder


@dataclass(frozen=True)
class _Content:
    """What an index has of its images: arrays as in a folder of codes, and ids; of an old one ``meta.json`` too."""

    root: Path
    names: list[str]
    ids: NDArray[np.int64]
    words: Words
    kept: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    bits: int
    next_id: int
    meta: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> _Content:
        """The content of an index."""
        meta = read_meta(folder)
        arrays = _arrays(folder, meta)
        names = Names(arrays["ids"], arrays.pop("text"), arrays.pop("ends"))
        listed = [names.at(row) for row in range(len(names))]
        return cls(Path(meta["root"]), listed, **arrays, bits=meta["bits"], next_id=meta["next_id"], meta=meta)

    def select(self, rows: NDArray[np.int64]) -> _Content:
        """The content of some rows."""
        arrays = {key: getattr(self, key)[rows] for key in ARRAYS[:4]}
        return replace(self, names=[self.names[row] for row in rows], **arrays)


def _merged(old: _Content | None, given: Sequence[Codes]) -> _Content:
    """All images once, by their paths: those that were there keep their ids, and the last codes of each count."""
    parts: list[_Content | Codes] = [*([old] if old else []), *given]
    root = Path(os.path.commonpath([part.root for part in parts]))
    slots: dict[str, int] = {}  # name -> its row in what comes out
    source: list[int] = []  # row -> where its codes are, counted over all parts
    places = count()
    for part in parts:
        below = part.root.relative_to(root).as_posix()
        for name, place in zip(part.names, places, strict=False):
            slot = slots.setdefault(name if below == "." else f"{below}/{name}", len(source))
            source[slot : slot + 1] = [place]
    first, before = (old.next_id, old.ids) if old else (0, np.empty(0, np.int64))
    ids = np.concatenate([before, np.arange(first, first + len(source) - len(before), dtype=np.int64)])
    words, kept, sizes = (np.concatenate([getattr(part, key) for part in parts])[source] for key in ARRAYS[1:4])
    return _Content(root, list(slots), ids, words, kept, sizes, given[0].bits, int(ids[-1]) + 1, {})


def _replace(
    folder: Path,
    old: _Content | None,
    new: _Content,
    encoder: Path,
    meta: dict[str, Any],
    options: Mapping[str, Any],
    progress: bool,
) -> None:
    """Write the new content beside the old, and let ``meta.json`` name it."""
    from hashgym import index as engines

    number = _free_number(folder, int(old.meta["content"]) if old else 0, options)
    if old is not None:
        _adopt(folder, old.meta)
    work = owned.create(folder / number)
    try:
        own = {"collection": _collection(folder, number)} if options.get("uri") else {}
        with engines.make(meta["backend"], new.bits, **{**options, **own}) as engine:
            with progress_bar(len(new.ids), 0, progress, "indexing") as tick:
                for start in range(0, len(new.ids), AT_ONCE):
                    rows = slice(start, start + AT_ONCE)
                    engine.add(new.ids[rows], CodeSets(new.words[rows], new.kept[rows], new.bits))
                    tick(len(new.ids[rows]))
            engine.save(work / ENGINE)
        encoded = [name.encode("utf-8", "surrogateescape") for name in new.names]
        arrays = {
            **{key: getattr(new, key) for key in ARRAYS[:4]},
            "text": np.frombuffer(b"".join(encoded), np.uint8),
            "ends": np.cumsum([len(name) for name in encoded], dtype=np.int64),
        }
        for key, array in arrays.items():
            np.save(work / f"{key}.npy", array, allow_pickle=False)
        shutil.copyfile(encoder, work / ENCODER)
        sync(work)
        INDEX.seal(
            folder,
            [f"{number}/{name}" for name in (*(f"{key}.npy" for key in ARRAYS), ENCODER)],
            images=len(new.ids),
            bits=new.bits,
            root=str(new.root),
            next_id=new.next_id,
            content=number,
            options={key: value for key, value in options.items() if key != "token"},
            **meta,
        )
    except BaseException:
        if not INDEX.matches(folder) or read_meta(folder)["content"] != number:  # else it is the index now
            _delete(work, options)
        raise
    _tidy(folder, options)


def _options(
    folder: Path, backend: str, old: Mapping[str, Any] | None, given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The options of a back end: those given now and those that the index was built with, checked."""
    from hashgym import index as engines

    recorded = {key: value for key, value in (old["options"] if old else {}).items() if key in ("uri", "timeout")}
    options = {**recorded, **(given or {})}
    if backend == "milvus" and not (old and "uri" not in options):  # one that is embedded stays so
        given_uri, token = (given or {}).get("uri"), options.get("token")
        options |= _server(folder, backend, str(recorded.get("uri", "")), given_uri, token)
    engines.check_options(backend, options)
    return options


def _server(folder: Path, backend: str, recorded: str, uri: str | None, token: str | None = None) -> dict[str, str]:
    """The address of a back end's server, and the token if the user gave that address; nothing if it is embedded.

    Args:
        folder: of the index.
        backend: its name.
        recorded: the address that the index was built with.
        uri: what the user gave, instead of ``MILVUS_URI``.
        token: likewise, instead of ``MILVUS_TOKEN``.

    Raises:
        ValueError: if there is a token and the address is only the index's own: others may have written that.
    """
    from hashgym import index as engines

    given = os.environ.get("MILVUS_URI", "") if uri is None else uri
    token = os.environ.get("MILVUS_TOKEN", "") if token is None else token
    if not (address := given or recorded):
        return {}
    engines.check_options(backend, {"uri": address})
    if token and not given:
        raise ValueError(
            f"{folder} says that it is on the server {address}, and a token is set (MILVUS_TOKEN), which is sent only "
            f"to a server that you name: give --uri {address} or set MILVUS_URI to it if that is your server, or unset "
            "MILVUS_TOKEN"
        )
    return {"uri": address, **({"token": token} if token else {})}


def _collection(folder: Path, number: str) -> str:
    """The name of a content's collection on a server. No other computer or folder has the same."""
    place = os.fsencode(f"{platform.node()}\0{os.path.realpath(folder)}")
    return f"hashgym_{hashlib.sha256(place).hexdigest()[:16]}_{number}"


def _former_collection(folder: Path, bits: int, number: str) -> str:
    """The same, as it was derived before the computer's name was part of it."""
    return f"hashgym_{hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]}_{bits}_{number}"


def _free_number(folder: Path, last: int, options: Mapping[str, Any]) -> str:
    """The first number after ``last`` under which nothing is there, in the folder and on the server."""
    for number in map(str, count(last + 1)):
        place = folder / number
        if os.path.lexists(place) and not owned.is_empty(place):
            continue
        if options.get("uri"):
            from hashgym.index import milvus

            if milvus.has(**_connection(options), collection=_collection(folder, number)):
                continue  # of an index that was moved away from here
        return number
    raise AssertionError  # there are enough numbers


def _connection(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("uri", "token", "timeout") if key in options}


def _adopt(folder: Path, meta: Mapping[str, Any]) -> None:
    """Mark the content of an index that was written before there were markers, if all in it is the index's own."""
    from hashgym import index as engines

    content = folder / meta["content"]
    if not owned.is_owned(content) and not _foreign(content):
        engines.verify(content / ENGINE)  # the other files were compared with their checksums when they were read
        owned.mark(content)


def _foreign(content: Path) -> list[str]:
    """Names of what lies in the folder of a content and is not part of it."""
    from hashgym import index as engines

    known = {owned.MARKER, ENCODER, ENGINE, *(f"{key}.npy" for key in ARRAYS)}
    found = sorted(path.name for path in content.iterdir() if path.name not in known)
    engine = content / ENGINE
    if engine.is_symlink() or (engine.exists() and not engine.is_dir()):
        return [*found, ENGINE]
    return [*found, *(f"{ENGINE}/{name}" for name in (engines.foreign(engine) if engine.exists() else ()))]


def _delete(content: Path, options: Mapping[str, Any]) -> None:
    """Delete the folder of a content, which carries the marker, and its collection on the server.

    It stays if files of somebody else are in it, or until the next change if the server does not answer.
    """
    from hashgym import index as engines

    with suppress(OSError):
        if foreign := _foreign(content):
            warnings.warn(
                f"{content} is not needed any more, but is kept: hashgym did not write {', '.join(foreign[:3])} in it",
                stacklevel=2,
            )
            return
        if options.get("uri"):
            from hashgym.index import milvus

            own = _collection(content.parent, content.name)
            with suppress(ValueError):  # without a saved engine it has the name that is derived now
                saved = engines.read_meta(content / ENGINE)
                former = _former_collection(content.parent, saved["bits"], content.name)
                if saved["options"].get("collection") == former:
                    own = former
            with suppress(ValueError):
                milvus.drop(**_connection(options), collection=own)
        owned.remove(content)


def _tidy(folder: Path, options: Mapping[str, Any]) -> None:
    """Delete contents that carry the marker and are not that of the index: old ones, and what a killed run left."""
    current = read_meta(folder)["content"] if INDEX.matches(folder) else ""
    clean(folder / INDEX.manifest)
    for path in _numbered(folder):
        if path.name != current and owned.is_owned(path):
            _delete(path, options)
    if _is_leftover(former := folder / f"{INDEX.manifest}.new"):
        former.unlink()


def _numbered(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if re.fullmatch(r"[1-9][0-9]*", path.name)]


def _is_leftover(path: Path) -> bool:
    """Whether this is a ``meta.json`` that a killed run, of this or an older version, has not finished."""
    if re.fullmatch(rf"\.{re.escape(INDEX.manifest)}\.[0-9a-f.]+\.hashgym-tmp", path.name):
        return True
    start = f'{{\n "format": "{INDEX.name}"'.encode()
    ours = path.name == f"{INDEX.manifest}.new" and path.is_file() and not path.is_symlink()
    if not ours:
        return False
    with path.open("rb") as file:
        return start.startswith(file.read(len(start)))


@contextmanager
def _alone(folder: Path, options: Mapping[str, Any]) -> Iterator[None]:
    """Create the folder where there is none, and keep other writers out of it, where the system can.

    If the work fails, a folder that was created here is deleted, and one that was empty before is empty again.
    """
    there = folder.exists()
    if not INDEX.matches(folder):
        owned.create(folder)
    release: Callable[[], None] = lambda: None  # noqa: E731
    with suppress(ImportError):
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        release = lambda: os.close(descriptor)  # noqa: E731
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            release()
            raise DataError(f"another process is changing {folder}: wait for it, or stop it") from None
    try:
        _tidy(folder, options)
        yield
    except BaseException:
        if [path.name for path in folder.iterdir()] == [owned.MARKER]:
            (folder / owned.MARKER).unlink()
            if not there:
                folder.rmdir()
        raise
    finally:
        release()


def _existing(folder: Path, add: bool) -> dict[str, Any] | None:
    """What ``meta.json`` of the index in a folder says; None where there is none yet.

    Raises:
        DataError: if there is no index to add to; or if something is there that is neither an index nor what a killed
            run leaves behind that was to build one.
    """
    if INDEX.matches(folder):
        return read_meta(folder)
    if add and not folder.exists():
        raise DataError(f"{folder} does not exist: leave out --add to build it")
    if add:
        raise DataError(f"{folder} is no index that could be added to: leave out --add and choose another --out")
    if os.path.lexists(folder) and not owned.is_empty(folder) and not _begun(folder):
        there = f"; it has {', '.join(_shown(folder))}" if folder.is_dir() else ""
        raise DataError(f"{folder} exists already and is no index{there}: choose another --out")
    return None


def _begun(folder: Path) -> bool:
    """Whether the folder has no more than a killed run leaves behind that was to build an index in it."""
    if not owned.is_owned(folder):
        return False
    contents = {path for path in _numbered(folder) if owned.is_owned(path) or owned.is_empty(path)}
    ours = {folder / owned.MARKER, *contents, *filter(_is_leftover, folder.iterdir())}
    return set(folder.iterdir()) <= ours


def _shown(folder: Path, most: int = 3) -> list[str]:
    """The first names in a folder, for a message."""
    names = sorted(path.name for path in folder.iterdir())
    return names[:most] + (["..."] if len(names) > most else [])


def _check_same_encoder(given: Sequence[Codes], folder: Path | None = None, old: _Content | None = None) -> None:
    wanted, bits, whose = given[0].encoder, given[0].bits, str(given[0].folder)
    if old is not None:
        wanted, bits, whose = old.meta["encoder"], old.bits, str(folder)
    for part in given:
        if part.encoder != wanted:
            raise DataError(
                f"{part.folder} has codes of another encoder ({part.encoder[:12]}, {part.bits} bits) than {whose} "
                f"({wanted[:12]}, {bits} bits), and those cannot be compared: encode its pictures with "
                f"{Path(whose) / ENCODER}, or build another index"
            )


def _arrays(folder: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of an index's content, compared with their checksums and checked against each other."""
    INDEX.verify(folder, meta, large_files=True)
    arrays = {key: INDEX.open_array(folder, meta, f"{meta['content']}/{key}.npy") for key in ARRAYS}
    rows = {len(arrays[key]) for key in ARRAYS if key != "text"}
    ends = arrays["ends"]
    ids, after = arrays["ids"], meta["next_id"]
    if (
        rows != {meta["images"]}
        or (len(ends) and int(ends[-1]) != len(arrays["text"]))
        or not (np.diff(ids) > 0).all()
        or not (int(ids.max(initial=-1)) < after < 2**62)
    ):
        raise DataError(f"{folder} is damaged: its arrays do not belong together; {INDEX.remedy}")
    return arrays


def _root(folder: Path, root: Path, given: bool) -> Path:
    if not root.is_dir():
        said = (
            f"--root {root} is no folder" if given else f"the pictures of {folder} were in {root}, which is not there"
        )
        raise DataError(f"{said}: say with --root which folder they are in now")
    return Path(os.path.realpath(root))


def _there(gallery: Gallery, row: int) -> bool:
    return os.path.lexists(gallery.root / gallery.names.at(row))
