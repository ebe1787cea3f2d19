"""An index of pictures in one folder: built from codes, added to, removed from, and searched.

``INDEX/meta.json`` says what the index is and which numbered folder beside it has its content: ``ids.npy`` (int64 (n,),
ascending, never given twice), ``words.npy``, ``kept.npy``, ``sizes.npy`` as in a folder of codes, names in ``text.npy``
and ``ends.npy``, ``encoder.onnx``, and ``engine``, the back end's own. Every change makes a new numbered folder, and
``meta.json`` is replaced when that is on the disk: at any moment there is the old index or the new one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
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
from hashgym.data.atomic import clean, temporaries
from hashgym.data.dataset import DataError
from hashgym.data.files import open_image
from hashgym.data.sealed import META, Kind, sync
from hashgym.features.pipeline import progress_bar
from hashgym.features.regions import Box
from hashgym.gallery.codes import ENCODER, Codes, open_codes, resolved

if TYPE_CHECKING:
    from PIL.Image import Image

    from hashgym.encoders import Encoder
    from hashgym.retrieval.index import Index

__all__ = ["REGIONS", "Gallery", "Match", "Names", "build", "open_gallery", "read_meta", "remove"]

INDEX = Kind(
    "hashgym-gallery",
    1,
    what="index",
    command="hashgym index",
    mend="remove it and build it again",
    facts={
        **dict.fromkeys(("images", "bits", "next_id"), int),
        **dict.fromkeys(("root", "content", "backend", "encoder"), str),
        **{"codes": list, "options": dict},
    },
)
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
            raise DataError(f"the back end of {self.folder} finds images that the index does not have; {INDEX.mend}")
        gaps = np.where(self.kept[rows], hamming(self.words[rows], query), np.iinfo(np.int64).max)
        if not np.array_equal(gaps.min(axis=1, initial=np.iinfo(np.int64).max), distances):
            raise DataError(f"the back end of {self.folder} has other codes than the index; {INDEX.mend}")
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


def open_gallery(folder: str | Path, root: str | Path | None = None) -> Gallery:
    """Open an index; arrays are mapped.

    Args:
        folder: what :func:`build` wrote.
        root: the folder where the pictures are now, if they were moved.

    Raises:
        DataError: if it is none or damaged, or the pictures are not where they were.
        ValueError: where a back end's package is missing, or its server does not answer.
    """
    from hashgym.encoders import load_encoder
    from hashgym.retrieval import index as engines

    path = Path(folder)
    while True:
        meta = INDEX.read(path)
        try:
            arrays = _arrays(path, meta)
            encoder = load_encoder(path / meta["content"] / ENCODER)
            place = _root(path, Path(meta["root"]) if root is None else Path(root), root is not None)
            options = _token() if meta["backend"] == "milvus" else {}
            engine = engines.load(path / meta["content"] / "engine", **options)
            break
        except (OSError, ValueError):
            if INDEX.read(path) == meta:  # else it was replaced meanwhile
                raise
    names = Names(arrays["ids"], arrays.pop("text"), arrays.pop("ends"))
    gallery = Gallery(path, place, encoder, engine, names, **arrays, meta=meta)
    if encoder.digest != meta["encoder"] or len(engine) != len(gallery) or engine.bits != encoder.bits:
        raise DataError(f"{path} is damaged: its parts do not belong together; {INDEX.mend}")
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
    return INDEX.read(folder)


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
        backend: a name that :func:`hashgym.retrieval.index.backends` lists; ``faiss`` by default, of an index that is
            added to its own.
        add: to the index in ``out``.
        progress: show a progress bar.
        options: of the back end, such as ``uri``.

    Returns:
        ``out``, for :func:`open_gallery`.

    Raises:
        DataError: for codes that are damaged or of different encoders, and if ``out`` is there without ``add``, or not
            there with it.
        ValueError: for a back end that is not known or cannot be had.
    """
    folder = Path(out)
    given = [open_codes(place, verify=True) for place in codes]
    if not given:
        raise DataError("there is nothing to index: name folders of codes, which `hashgym encode` writes")
    if add and not folder.exists():
        raise DataError(f"{folder} does not exist: leave out --add to build it")
    with _alone(folder):
        old = _Content.of(folder) if add else None
        digests = [part.digest for part in given]
        if old is not None:
            if backend not in (None, old.meta["backend"]):
                raise DataError(f"{folder} is of the back end {old.meta['backend']}: leave out --backend to add to it")
            if set(digests) <= set(old.meta["codes"]):
                return folder
        elif INDEX.is_one(folder):
            meta = INDEX.read(folder)
            if meta["codes"] == digests and backend in (None, meta["backend"]):
                return folder
            raise DataError(f"{folder} exists already: --add adds to it; or remove it, or choose another --out")
        _check_same_encoder(folder, old, given)
        content = _merged(old, given)
        meta = {"backend": backend or (old.meta["backend"] if old else "faiss"), "encoder": given[0].encoder}
        meta |= {"codes": [*(old.meta["codes"] if old else []), *digests]}
        _replace(folder, old, content, given[0].folder / ENCODER, meta, options or {}, progress)
    return folder


def remove(index: str | Path, names: Sequence[str], progress: bool = True) -> Path:
    """Take images out of an index; the ids of the others stay.

    The same removal again, after one that was killed at its very end, does nothing.

    Args:
        index: the folder of the index.
        names: as ``hashgym search`` shows them.
        progress: show a progress bar.

    Raises:
        DataError: for a name that is not in the index, or if no image would be left.
    """
    folder = Path(index)
    INDEX.read(folder)
    with _alone(folder):
        old = _Content.of(folder)
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
        _replace(folder, old, old.select(kept), encoder, meta, {}, progress)
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
        meta = INDEX.read(folder)
        arrays = _arrays(folder, meta, thorough=True)
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
    from hashgym.retrieval import index as engines

    number = str(int(old.meta["content"]) + 1) if old else "1"
    options = {**(old.meta["options"] if old else {}), **options}
    work = folder / number
    own = _own_options(meta["backend"], folder, f"{new.bits}_{number}")
    try:
        engine = engines.make(meta["backend"], new.bits, **options, **own)
        if len(engine):  # a server has it from a run that was killed
            engine.remove(engine.ids)
        work.mkdir()
        with progress_bar(len(new.ids), 0, progress, "indexing") as tick:
            for start in range(0, len(new.ids), AT_ONCE):
                rows = slice(start, start + AT_ONCE)
                engine.add(new.ids[rows], CodeSets(new.words[rows], new.kept[rows], new.bits))
                tick(len(new.ids[rows]))
        engine.save(work / "engine")
        engine.close()
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
            options=options,
            **meta,
        )
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    _tidy(folder)


def _own_options(backend: str, folder: Path, number: str) -> dict[str, Any]:
    """What a back end is told besides the user's options: on a server every content has a collection of its own."""
    if backend != "milvus":
        return {}
    place = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    return {"collection": f"hashgym_{place}_{number}", **_token()}


def _token() -> dict[str, str]:
    """The key of a Milvus server, from the environment: it is written nowhere."""
    return {"token": token} if (token := os.environ.get("MILVUS_TOKEN")) else {}


def _tidy(folder: Path) -> None:
    """Remove what is neither ``meta.json`` nor its content: an old one, or what a killed run has left."""
    from hashgym.retrieval import index as engines

    meta: dict[str, Any] = INDEX.read(folder) if INDEX.is_one(folder) else {"content": "", "options": {}}
    clean(folder / META)
    for path in folder.iterdir():
        if path.name == f"{META}.new":
            path.unlink()
        elif path.name.isdecimal() and path.name != meta["content"]:
            if meta["options"].get("uri"):  # what the server has of it goes too
                with suppress(OSError, ValueError), engines.load(path / "engine", **_token()) as engine:
                    engine.remove(engine.ids)
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder where there is none, and keep other writers out of it, where the system can."""
    if folder.exists() and not INDEX.is_one(folder) and not _begun(folder):
        raise DataError(f"{folder} exists already and is no index: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
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
        _tidy(folder)
        yield
    finally:
        release()
        with suppress(OSError):  # of a build that failed
            folder.rmdir()


def _begun(folder: Path) -> bool:
    """Whether the folder has at most what a killed run leaves behind that was to build an index in it."""
    if not folder.is_dir():
        return False
    left = {folder / f"{META}.new", *temporaries(folder / META)}
    return all(path.name.isdecimal() or path in left for path in folder.iterdir())


def _check_same_encoder(folder: Path, old: _Content | None, given: Sequence[Codes]) -> None:
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


def _arrays(folder: Path, meta: Mapping[str, Any], thorough: bool = False) -> dict[str, Any]:
    """The arrays of an index's content, checked against each other."""
    INDEX.check(folder, meta, thorough=thorough)
    arrays = {key: INDEX.array(folder, meta, f"{meta['content']}/{key}.npy") for key in ARRAYS}
    rows = {len(arrays[key]) for key in ARRAYS if key != "text"}
    ends = arrays["ends"]
    if rows != {meta["images"]} or (len(ends) and int(ends[-1]) != len(arrays["text"])):
        raise DataError(f"{folder} is damaged: its arrays do not belong together; {INDEX.mend}")
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
