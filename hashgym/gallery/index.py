"""Build an index of pictures from their codes, add to it and remove from it; for its format see ``gallery/search.py``.

The index and each content carry the marker of :mod:`hashgym.storage.owned`; a content without it, or with other files
in it, is never deleted. On a Milvus server a content is a collection of its own, whose name is derived from this
computer, the folder and the number: no other collection is emptied or dropped. The server's token is sent only to an
address that the user gave.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashgym import index as backends
from hashgym.checks import several
from hashgym.codes import CodeSets, Words
from hashgym.gallery.encoded_images import ENCODER, EncodedImages, open_codes
from hashgym.gallery.search import ARRAYS, BACKEND, INDEX, Names, content_arrays, read_meta, server_options
from hashgym.storage import owned
from hashgym.storage.atomic import clean, sync
from hashgym.storage.errors import DataError
from hashgym.storage.locks import lock_folder
from hashgym.storage.pipeline import progress_bar

__all__ = ["CODES_OF_PHOTOS", "build", "check_updatable", "remove"]

AT_ONCE = 1 << 16  # images that are added to a back end at once
DEFAULT_BACKEND = "faiss"
CODES_OF_PHOTOS = "codes"  # folder of an index that is made of photos, see :mod:`hashgym.gallery.photos`


def build(
    codes: Sequence[str | Path],
    out: str | Path,
    backend: str | None = None,
    add: bool = False,
    progress: bool = True,
    options: Mapping[str, Any] | None = None,
    *,
    replace: bool = False,
) -> Path:
    """Build an index of codes, or add codes to one.

    An image that is in the index already, by its path, gets its new codes under its old id. Codes that the index has
    already are not added again.

    Args:
        codes: folders of codes, all of the same encoder.
        out: the folder of the index.
        backend: a name that :func:`hashgym.index.backends` lists; by default ``faiss``, or that of the existing index.
        add: add to the index in ``out``.
        progress: show a progress bar.
        options: of the back end, such as ``uri``; by default of Milvus the environment variable ``MILVUS_URI``.
        replace: make an existing index one of these codes alone: pictures that they do not have are removed, the others
            keep their ids.

    Returns:
        ``out``, for :func:`open_gallery`.

    Raises:
        DataError: for codes that are damaged or of different encoders; if ``out`` exists without ``add``, does not
            exist with it, or is not an index. Nothing was written or deleted then.
        ValueError: for an unknown back end or option, or a back end whose package is not installed.
        ConnectionError: if the server does not answer.
    """
    folder = Path(out)
    given = [open_codes(place, verify=True) for place in several(codes, (str, Path))]
    if not given:
        raise DataError("there is nothing to index: name folders of codes, which `hashgym encode` writes")
    _check_same_encoder(given)
    digests = [part.digest for part in given]

    def checked() -> tuple[str, dict[str, Any], dict[str, Any] | None]:
        """Return the back end, its options, and ``meta.json`` of the index if it exists."""
        existing = _existing(folder, add)
        if add and (folder / CODES_OF_PHOTOS).exists():
            raise DataError(
                f"{folder} is made of the photos below {read_meta(folder)['root']}, and is updated with them: "
                "build another index for others"
            )
        other = existing is not None and backend not in (None, existing["backend"])
        if existing is not None and add and other:
            raise DataError(f"{folder} has the back end {existing['backend']}: leave out --backend to add to it")
        if replace:
            _check_backend_stays(folder, backend, existing)
        if existing is not None and not add and not replace and (other or existing["codes"] != digests):
            raise DataError(f"{folder} exists already: --add adds to it; or remove it, or choose another --out")
        return *_backend(folder, backend, existing, options), existing

    _, own, _ = checked()
    with _locked(folder, own):
        name, own, existing = checked()  # another process may have changed it before it was locked
        old = None if existing is None else _Content.of(folder)
        if old is not None:
            present = old.meta["codes"]
            unchanged = present == digests if replace else (not add or set(digests) <= set(present))
            if unchanged and own.get("uri") == old.meta["options"].get("uri"):  # else it moves to that server
                return folder
        _check_same_encoder(given, folder, old)
        content = _merged(old, given)
        indexed = list(dict.fromkeys([*(old.meta["codes"] if old and not replace else []), *digests]))
        if replace:
            paths = {str(part.root / name) for part in given for name in part.names}
            rows = [row for row, name in enumerate(content.names) if str(content.root / name) in paths]
            content = content.select(np.array(rows, np.int64))
        meta: dict[str, Any] = {"backend": name, "encoder": given[0].encoder, "codes": indexed}
        _replace(folder, old, content, given[0].folder / ENCODER, meta, own, progress)
    return folder


def remove(
    index: str | Path, names: Sequence[str], progress: bool = True, options: Mapping[str, Any] | None = None
) -> Path:
    """Remove images from an index; the others keep their ids.

    Repeating a removal that was killed at its very end does nothing.

    Args:
        index: the folder of the index.
        names: names of the images, as ``hashgym search`` shows them.
        progress: show a progress bar.
        options: of the back end, as for :func:`build`.

    Raises:
        DataError: for a name that is not in the index, if no image would be left, or for an index of photos, which
            has all photos of its folder.
        ValueError: if the index is on a server whose address the user must give.
        ConnectionError: if the server does not answer.
    """
    folder, names = Path(index), several(names, str)
    meta = read_meta(folder)
    if (folder / CODES_OF_PHOTOS).exists():
        raise DataError(
            f"{folder} is made of the photos below {meta['root']}, and the next update would add them again: move them "
            "away or --exclude them, and repeat the command that made the index"
        )
    with _locked(folder, _options(folder, meta["backend"], meta, options)):
        old = _Content.of(folder)
        own = _options(folder, old.meta["backend"], old.meta, options)
        rows = {name: row for row, name in enumerate(old.names)}
        unknown = [name for name in names if name not in rows]
        if unknown and sorted(set(unknown)) == sorted(set(names)) == old.meta.get("removed"):
            return folder
        if unknown:
            first = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
            raise DataError(f"{folder} has no image {first}: give names relative to {old.root}, as a search shows them")
        kept = np.setdiff1d(np.arange(len(old.names)), [rows[name] for name in names])
        if not len(kept):
            raise DataError(f"no image would be left in {folder}: remove the folder instead")
        encoder = folder / old.meta["content"] / ENCODER
        meta = {key: old.meta[key] for key in ("backend", "encoder")} | {"codes": [], "removed": sorted(set(names))}
        _replace(folder, old, old.select(kept), encoder, meta, own, progress)
    return folder


@dataclass(frozen=True)
class _Content:
    """The images of an index: ids, arrays as in a folder of codes, and ``meta.json`` if the index is on the disk."""

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
        """Return the content of an index."""
        meta = read_meta(folder)
        arrays = content_arrays(folder, meta)
        names = Names(arrays["ids"], arrays.pop("text"), arrays.pop("ends"))
        listed = [names.at(row) for row in range(len(names))]
        return cls(Path(meta["root"]), listed, **arrays, bits=meta["bits"], next_id=meta["next_id"], meta=meta)

    def select(self, rows: NDArray[np.int64]) -> _Content:
        """Return the content of some rows."""
        arrays = {key: getattr(self, key)[rows] for key in ARRAYS[:4]}
        return dataclasses.replace(self, names=[self.names[row] for row in rows], **arrays)


def _merged(old: _Content | None, given: Sequence[EncodedImages]) -> _Content:
    """Return each image once, by its path, with its old id if it has one, and the last of its codes."""
    parts: list[_Content | EncodedImages] = [*([old] if old else []), *given]
    root = Path(os.path.commonpath([part.root for part in parts]))
    slots: dict[str, int] = {}  # name -> its row in the result
    source: list[int] = []  # row -> the row of its codes in all parts together
    places = count()
    for part in parts:
        below = part.root.relative_to(root).as_posix()
        for name, place in zip(part.names, places, strict=False):
            slot = slots.setdefault(name if below == "." else f"{below}/{name}", len(source))
            source[slot : slot + 1] = [place]
    first, before = (old.next_id, old.ids) if old else (0, np.empty(0, np.int64))
    ids = np.concatenate([before, np.arange(first, first + len(source) - len(before), dtype=np.int64)])
    words, kept, sizes = (np.concatenate([getattr(part, key) for part in parts])[source] for key in ARRAYS[1:4])
    return _Content(root, list(slots), ids, words, kept, sizes, given[0].bits, max(first, int(ids[-1]) + 1), {})


def _replace(
    folder: Path,
    old: _Content | None,
    new: _Content,
    encoder: Path,
    meta: dict[str, Any],
    options: Mapping[str, Any],
    progress: bool,
) -> None:
    """Write the new content beside the old one, then make it current by writing ``meta.json``."""
    number = _free_number(folder, int(old.meta["content"]) if old else 0, options)
    if old is not None:
        _adopt(folder, old.meta)
    work = owned.create(folder / number)
    try:
        own = {"collection": _collection(folder, number)} if options.get("uri") else {}
        with backends.make(meta["backend"], new.bits, **{**options, **own}) as backend:
            with progress_bar(len(new.ids), 0, progress, "indexing") as tick:
                for start in range(0, len(new.ids), AT_ONCE):
                    rows = slice(start, start + AT_ONCE)
                    backend.add(new.ids[rows], CodeSets(new.words[rows], new.kept[rows], new.bits))
                    tick(len(new.ids[rows]))
            backend.save(work / BACKEND)
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
        if not INDEX.matches(folder) or read_meta(folder)["content"] != number:  # otherwise it is the index now
            _delete(work, options)
        raise
    _tidy(folder, options)


def _options(
    folder: Path, backend: str, old: Mapping[str, Any] | None, given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the checked options of a back end: those given now, and those that the index was built with."""
    recorded = dict(old["options"]) if old else {}
    if backend == "milvus":  # a collection is a content's own
        recorded = {key: value for key, value in recorded.items() if key in ("uri", "timeout")}
    options = {**recorded, **(given or {})}
    if backend == "milvus" and not (old and "uri" not in options):  # an embedded one stays embedded
        given_uri, token = (given or {}).get("uri"), options.get("token")
        options |= server_options(folder, backend, str(recorded.get("uri", "")), given_uri, token)
    backends.check_options(backend, options)
    return options


def _collection(folder: Path, number: str) -> str:
    """Return the name of a content's collection on a server, unique to this computer and folder."""
    place = os.fsencode(f"{platform.node()}\0{os.path.realpath(folder)}")
    return f"hashgym_{hashlib.sha256(place).hexdigest()[:16]}_{number}"


def _former_collection(folder: Path, bits: int, number: str) -> str:
    """Return the name of a content's collection in older versions, without the computer's name."""
    return f"hashgym_{hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]}_{bits}_{number}"


def _free_number(folder: Path, last: int, options: Mapping[str, Any]) -> str:
    """Return the first number after ``last`` that is unused in the folder and on the server."""
    for number in map(str, count(last + 1)):
        place = folder / number
        if os.path.lexists(place) and not owned.is_empty(place):
            continue
        if options.get("uri"):
            from hashgym.index import milvus

            if milvus.has(**_connection(options), collection=_collection(folder, number)):
                continue  # of an index that was moved away from here
        return number
    raise AssertionError  # numbers do not run out


def _connection(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("uri", "token", "timeout") if key in options}


def _adopt(folder: Path, meta: Mapping[str, Any]) -> None:
    """Mark the content of an index of a version without markers, if it has no other files."""
    content = folder / meta["content"]
    if not owned.is_owned(content) and not _foreign(content):
        backends.verify(content / BACKEND)  # the other files were compared with their checksums when they were read
        owned.mark(content)


def _foreign(content: Path) -> list[str]:
    """Return the names of files in a content's folder that are not part of it."""
    known = {owned.MARKER, ENCODER, BACKEND, *(f"{key}.npy" for key in ARRAYS)}
    found = sorted(path.name for path in content.iterdir() if path.name not in known)
    backend = content / BACKEND
    if backend.is_symlink() or (backend.exists() and not backend.is_dir()):
        return [*found, BACKEND]
    return [*found, *(f"{BACKEND}/{name}" for name in (backends.foreign(backend) if backend.exists() else ()))]


def _delete(content: Path, options: Mapping[str, Any]) -> None:
    """Delete the marked folder of a content and its collection on the server.

    The folder stays if it holds other files, or until the next change if the server does not answer.
    """
    with suppress(OSError):
        if foreign := _foreign(content):
            warnings.warn(
                f"{content} is no longer needed, but is kept: it holds {', '.join(foreign[:3])}, which hashgym did not "
                "write",
                stacklevel=2,
            )
            return
        if options.get("uri"):
            from hashgym.index import milvus

            own = _collection(content.parent, content.name)
            with suppress(ValueError):  # without a saved back end the collection has the current name
                saved = backends.read_meta(content / BACKEND)
                former = _former_collection(content.parent, saved["bits"], content.name)
                if saved["options"].get("collection") == former:
                    own = former
            with suppress(ValueError):
                milvus.drop(**_connection(options), collection=own)
        owned.remove(content)


def _tidy(folder: Path, options: Mapping[str, Any]) -> None:
    """Delete marked contents that are not current: old ones, and those that killed runs left."""
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
    """Return whether this is an unfinished ``meta.json`` that a killed run of this or an older version left."""
    if re.fullmatch(rf"\.{re.escape(INDEX.manifest)}\.[0-9a-f.]+\.hashgym-tmp", path.name):
        return True
    start = f'{{\n "format": "{INDEX.name}"'.encode()
    ours = path.name == f"{INDEX.manifest}.new" and path.is_file() and not path.is_symlink()
    if not ours:
        return False
    with path.open("rb") as file:
        return start.startswith(file.read(len(start)))


@contextmanager
def _locked(folder: Path, options: Mapping[str, Any]) -> Iterator[None]:
    """Create the folder if it does not exist, and lock it, if the system has such locks.

    If the work fails, a folder that was created here is deleted, and one that was empty before is empty again.
    """
    existed = folder.exists()
    if not INDEX.matches(folder):
        owned.create(folder)
    with lock_folder(folder, f"another process is changing {folder}: wait for it, or stop it"):
        try:
            _tidy(folder, options)
            yield
        except BaseException:
            if [path.name for path in folder.iterdir()] == [owned.MARKER]:
                (folder / owned.MARKER).unlink()
                if not existed:
                    folder.rmdir()
            raise


def _existing(folder: Path, add: bool) -> dict[str, Any] | None:
    """Return the ``meta.json`` of the index in a folder; None if there is none yet.

    Raises:
        DataError: if there is no index to add to; or if the folder holds something that is neither an index nor an
            unfinished one that a killed run left.
    """
    if INDEX.matches(folder):
        return read_meta(folder)
    if add and not folder.exists():
        raise DataError(f"{folder} does not exist: leave out --add to build it")
    if add:
        raise DataError(f"{folder} is not an index, so nothing can be added: leave out --add and choose another --out")
    if os.path.lexists(folder) and not owned.is_empty(folder) and not _is_unfinished(folder):
        content = f"; it has {', '.join(_first_names(folder))}" if folder.is_dir() else ""
        raise DataError(f"{folder} exists already and is not an index{content}: choose another --out")
    return None


def check_updatable(folder: Path, backend: str | None, options: Mapping[str, Any] | None = None) -> None:
    """Check that an index can be made or updated in a folder, before there are codes.

    Raises:
        DataError: if it holds neither an index with this back end nor an unfinished one, but something.
        ValueError: for an unknown back end or option.
        ImportError: if the back end needs a package that is not installed.
    """
    existing = _existing(folder, add=False)
    _check_backend_stays(folder, backend, existing)
    _backend(folder, backend, existing, options)


def _check_backend_stays(folder: Path, backend: str | None, existing: Mapping[str, Any] | None) -> None:
    """Raise DataError for another back end than that of the index that is updated."""
    if existing is not None and backend not in (None, existing["backend"]):
        raise DataError(f"{folder} has the back end {existing['backend']}: leave out --backend to update it")


def _backend(
    folder: Path, backend: str | None, existing: Mapping[str, Any] | None, options: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    """Return the back end, by default that of the index if it exists, and its checked options."""
    name = backend or (existing["backend"] if existing else DEFAULT_BACKEND)
    return name, _options(folder, name, existing, options)


def _is_unfinished(folder: Path) -> bool:
    """Return whether the folder has only an unfinished index that a killed run left."""
    if not owned.is_owned(folder):
        return False
    contents = {path for path in _numbered(folder) if owned.is_owned(path) or owned.is_empty(path)}
    places = (folder / CODES_OF_PHOTOS, folder / f"{CODES_OF_PHOTOS}.partial")
    own_codes = {path for path in places if owned.is_owned(path)}
    ours = {folder / owned.MARKER, *contents, *own_codes, *filter(_is_leftover, folder.iterdir())}
    return set(folder.iterdir()) <= ours


def _first_names(folder: Path, most: int = 3) -> list[str]:
    """Return the first names in a folder, for a message."""
    names = sorted(path.name for path in folder.iterdir())
    return names[:most] + (["..."] if len(names) > most else [])


def _check_same_encoder(
    given: Sequence[EncodedImages], folder: Path | None = None, old: _Content | None = None
) -> None:
    encoder, bits, source = given[0].encoder, given[0].bits, str(given[0].folder)
    if old is not None:
        encoder, bits, source = old.meta["encoder"], old.bits, str(folder)
    place = Path(source) / (ENCODER if old is None else f"{old.meta['content']}/{ENCODER}")
    for part in given:
        if part.encoder == encoder:
            continue
        if part.encoder.partition(":")[0] == encoder.partition(":")[0]:  # one of them was cut
            raise DataError(
                f"{part.folder} has codes of {part.bits} bits, {source} of {bits}, and those cannot be compared: "
                f"encode its pictures with --bits {bits}, or build another index"
            )
        raise DataError(
            f"{part.folder} has codes of another encoder ({part.encoder[:12]}, {part.bits} bits) than {source} "
            f"({encoder[:12]}, {bits} bits), and those cannot be compared: encode its pictures with {place}, or build "
            "another index"
        )
