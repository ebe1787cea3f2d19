"""The codes of somebody's pictures: a job that makes them with an encoder, safe to kill at any moment.

A folder of codes has ``words.npy`` (uint64 (n, V, W), packed codes of an image and its V - 1 regions), ``kept.npy``
(bool (n, V), which of them it has), ``sizes.npy`` (int32 (n, 2), width and height of the upright picture),
``stamps.npy`` (int64 (n, 2), the file's size in bytes and its time of change in ns), ``digests.npy`` (uint8 (n, 16),
BLAKE2b of the file), ``names.json`` (n names relative to the root, with forward slashes), ``encoder.onnx`` and
``meta.json``. While the work lasts it is called ``OUT.partial``.

Where pictures have changed since, the same job encodes those alone. The new content becomes a numbered folder in
``OUT``, and ``meta.json`` is replaced when that is on the disk: at any moment there are the old codes or the new ones.
Folders that older versions wrote have no stamps and digests.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import stat
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import check_integer
from hashgym.codes import CodeSets, Words, word_count
from hashgym.data.image_files import (
    Listing,
    is_excluded,
    is_own,
    is_system,
    list_images,
    looks_like_image,
    natural,
    resolved,
    stamp,
)
from hashgym.data.pictures import BACKGROUND, open_image
from hashgym.features.runtime import thread_count
from hashgym.storage import owned
from hashgym.storage.errors import DataError
from hashgym.storage.job_store import JOURNAL, JobStore, remove_journal
from hashgym.storage.locks import lock_folder
from hashgym.storage.pipeline import UnreadableImage, prefetch, progress_bar
from hashgym.storage.reading import map_array
from hashgym.storage.sealed import FolderFormat, Verify, read_json, write_json
from hashgym.versions import versions

if TYPE_CHECKING:
    from hashgym.encoders import Encoder

__all__ = ["Codes", "Encoded", "encode_images", "find_images", "open_codes", "update_codes"]

CODES = FolderFormat(
    "hashgym-codes",
    1,
    description="a folder of codes",
    command="hashgym encode",
    remedy="encode the pictures again to another --out",
    fields={
        **dict.fromkeys(("images", "bits", "views"), int),
        **{"root": str, "encoder": str, "job": dict, "left_out": dict},
    },
)
ENCODER, NAMES = "encoder.onnx", "names.json"
LISTED = "listed.json"  # the names that a job began with, while it is unfinished
ARRAYS, RECORD = ("words", "kept", "sizes"), ("stamps", "digests")
RECORDED = ("hashgym", "numpy", "pillow", "onnxruntime")


@dataclass(frozen=True)
class Codes:
    """An open folder of codes; arrays are mapped.

    Attributes:
        folder: where it is.
        root: the folder that the names are relative to.
        names: n names.
        words: uint64 (n, V, W).
        kept: bool (n, V).
        sizes: int32 (n, 2), width and height in pixels.
        bits: q.
        encoder: digest of the encoder.
        digest: of all this.
        left_out: names of images that could not be read -> why.
        stamps: int64 (n, 2), size in bytes and time of change in ns of the files; None in a folder of an older version.
        digests: uint8 (n, 16), of the files; None as well.
        left_out_stamps: stamps of the images that could not be read.
    """

    folder: Path
    root: Path
    names: list[str]
    words: Words
    kept: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    bits: int
    encoder: str
    digest: str
    left_out: dict[str, str]
    stamps: NDArray[np.int64] | None = None
    digests: NDArray[np.uint8] | None = None
    left_out_stamps: dict[str, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def sets(self, rows: slice = slice(None)) -> CodeSets:
        """The code sets of some images."""
        return CodeSets(np.array(self.words[rows]), np.array(self.kept[rows]), self.bits)


@dataclass(frozen=True)
class Encoded:
    """What a run of :func:`update_codes` did.

    Attributes:
        folder: the folder of codes.
        new: pictures that got codes for the first time.
        changed: pictures that were encoded again.
        removed: pictures that were there before, and are not any more.
        unchanged: pictures whose codes are those of an earlier run.
        passed_over: files and links that were not taken for pictures to encode, in words.
        note: what could not be found out, in words.
    """

    folder: Path
    new: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    passed_over: str = ""
    note: str = ""


def encode_images(
    encoder_path: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    skip_bad: bool = False,
    batch_size: int = 64,
    workers: int = 2,
    progress: bool = True,
    follow_links: bool = False,
    exclude: Sequence[str] = (),
    checksum: bool = False,
) -> Path:
    """Encode pictures into the folder ``out``; where it is finished already, those that are new or have changed.

    Args:
        encoder_path: an encoder that takes pictures, as ``hashgym export`` writes.
        images: files, folders (with all below them, but for what ``hashgym.data.image_files.list_images`` passes over),
            and patterns such as ``photos/*.jpg``; an image that is named twice counts once.
        out: the folder to write; the job resumes from ``out.partial``.
        skip_bad: leave out and list images that cannot be read, instead of stopping at the first.
        batch_size: images that are read, and noted as finished, together.
        workers: batches at work at a time, each in a thread of its own; cores are shared out among them.
        progress: show a progress bar.
        follow_links: also take the pictures that links below the folders lead to, under the paths where they lie. A
            folder that is named itself is followed anyway.
        exclude: patterns of names, or of paths relative to a folder, that are left out.
        checksum: tell changed pictures by their content, instead of size and time of change.

    Returns:
        ``out``, for :func:`open_codes`.

    Raises:
        ValueError: for impossible arguments, or an encoder that takes features.
        DataError: for places without images, if ``out`` is something else or has codes of other pictures or of another
            encoder, or if ``out.partial`` is another job's; during work for an image that cannot be read, unless
            ``skip_bad``. What was finished by then is kept.
    """
    return update_codes(
        encoder_path,
        images,
        out,
        skip_bad=skip_bad,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        follow_links=follow_links,
        exclude=exclude,
        checksum=checksum,
    ).folder


def update_codes(
    encoder_path: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    skip_bad: bool = False,
    batch_size: int = 64,
    workers: int = 2,
    progress: bool = True,
    follow_links: bool = False,
    exclude: Sequence[str] = (),
    checksum: bool = False,
) -> Encoded:
    """As :func:`encode_images`; returns what was done."""
    from hashgym.encoders import load_encoder

    check_integer("batch_size", batch_size)
    check_integer("workers", workers)
    # A thread reads and encodes batches of its own: threads of one network would wait for each other, and for readers.
    threads = min(workers, thread_count())
    encoder, target = load_encoder(encoder_path, thread_count() // threads), Path(out)
    if encoder.takes != "pictures":
        raise ValueError(
            f"{encoder_path} takes features, not pictures: `hashgym export` with the run or hasher as its source "
            "includes the backbone, unless --features-only is given"
        )
    root, names, passed = _found(images, follow_links, exclude)

    def update(some: list[str]) -> Encoded:
        settings = skip_bad, batch_size, threads, progress, checksum
        with ExitStack() as held:
            return _update(held, encoder, encoder_path, target, root, *settings, some, set(names))

    done = Encoded(target)
    if begun := _begun(_unfinished(target), root, names):
        done = update(begun)
    more = update(names)
    return Encoded(
        target,
        *(done.new + more.new, done.changed + more.changed, done.removed + more.removed),
        *(done.unchanged if begun else more.unchanged, passed.summary(), more.note),
    )


def _update(
    held: ExitStack,
    encoder: Encoder,
    encoder_path: str | Path,
    target: Path,
    root: Path,
    skip_bad: bool,
    batch_size: int,
    threads: int,
    progress: bool,
    checksum: bool,
    names: list[str],
    there: set[str],
) -> Encoded:
    """Give the pictures ``names`` their codes; those that are not ``there`` any more are left out.

    A finished folder is locked until ``held`` is left.
    """
    n, stamps = len(names), np.array([stamp(root / name) for name in names], np.int64)
    job: dict[str, Any] = {
        "encoder": encoder.digest,
        "root": str(root),
        "images": n,
        "names": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        "batch_size": batch_size,
        "background": BACKGROUND,
        "versions": versions(RECORDED),
    }
    old, rows, wanted, removed = None, np.full(n, -1), np.ones(n, bool), 0
    if os.path.lexists(target):
        old = _finished(target, job, held)
        if old.stamps is None:
            return Encoded(target, unchanged=len(old), note=_cannot_tell(old, names))
        rows, wanted = _compared(old, root, names, stamps, checksum, threads, progress)
        removed = len(old) - int((rows >= 0).sum())
        again = [stamps[i].tolist() != old.left_out_stamps.get(names[i]) for i in np.flatnonzero(rows < 0)]
        if not (removed or any(again) or (wanted & (rows >= 0)).any() or set(old.left_out) - set(names)):
            return Encoded(target, unchanged=len(old))
        job["updates"] = old.digest

    views = 1 + encoder.regions
    arrays: dict[str, tuple[tuple[int, ...], str]] = {
        "words": ((views, word_count(encoder.bits)), "uint64"),
        "kept": ((views,), "bool"),
        "sizes": ((2,), "int32"),
        "stamps": ((2,), "int64"),
        "digests": ((16,), "uint8"),
    }
    batches = [start + np.flatnonzero(wanted[start : start + batch_size]) for start in range(0, n, batch_size)]
    work = partial(_encoded, encoder, root, names, batches)
    with JobStore(_unfinished(target), n, arrays, job, "hashgym encode") as store:
        if not (store.folder / LISTED).exists():
            write_json(store.folder / LISTED, names)
        left = {}
        if not store.closed:
            if old is not None and len(same := np.flatnonzero(~wanted)):
                for key in (*ARRAYS, "digests"):
                    store.write(key, same, getattr(old, key)[rows[same]])
                store.write("stamps", same, stamps[same])
                store.finish(-1, [])
            read = map_array(store.files["stamps"])  # when a batch was finished; pictures may have changed since
            left = {
                b: batch
                for b, batch in enumerate(batches)
                if len(batch) and (b not in store.finished or (read[batch] != stamps[batch]).any())
            }
        ready = n - sum(map(len, left.values()))
        doing = "updating" if old is not None else "resuming" if ready else "encoding"
        with (
            progress_bar(n, ready, progress, doing) as tick,
            closing(prefetch(work, {b: [b] for b in left}, threads, 2 * threads)) as finished,
        ):
            for b, [(arrays_of, bad)] in finished:
                if stopping := [reason for index, (reason, *_) in bad if names[index] in there and not skip_bad]:
                    raise DataError(
                        f"{stopping[0]}. Fix or remove it and run the same command again; --skip-bad leaves such "
                        "images out"
                    )
                for key, (index, values) in arrays_of.items():
                    store.write(key, index, values)
                store.finish(b, bad)
                tick(len(batches[b]))
        left_out = {index: about for bad_images in store.finished.values() for index, about in bad_images}
        kept = np.setdiff1d(np.arange(n), list(left_out))
        if not len(kept):
            raise DataError(f"none of the {n:,} images can be read, the first: {left_out[0][0]}")
        store.keep(kept)
        facts: dict[str, Any] = {
            "images": len(kept),
            "bits": encoder.bits,
            "views": views,
            "root": str(root),
            "encoder": encoder.digest,
            "job": job,
            "left_out": {names[index]: reason for index, (reason, *_) in sorted(left_out.items())},
            "left_out_stamps": {names[index]: about for index, (_, *about) in sorted(left_out.items())},
        }

        def seal(folder: Path) -> None:
            write_json(folder / NAMES, [names[i] for i in kept])
            if old is None:
                shutil.copyfile(encoder_path, folder / ENCODER)
                CODES.seal(folder, [*_content_files(), ENCODER], **facts)
            elif not owned.is_owned(folder):
                (folder / owned.MARKER).touch()

        if old is None:
            store.publish(target, {}, seal)
            (target / LISTED).unlink(missing_ok=True)
        else:
            _replace(target, old, store, seal, facts)
    encoded = np.setdiff1d(np.flatnonzero(wanted), list(left_out))
    new = int((rows[encoded] < 0).sum())
    return Encoded(target, new, len(encoded) - new, removed, len(kept) - len(encoded))


def _unfinished(target: Path) -> Path:
    """The folder of the work; beside what a link leads to, so that it can be renamed into it."""
    if target.is_symlink() or not target.name:  # as . has none
        target = Path(os.path.realpath(target))
    return target.with_name(target.name + ".partial")


def _begun(folder: Path, root: Path, names: Sequence[str]) -> list[str] | None:
    """The pictures of an unfinished job, if others have come since and those that are missing are gone."""
    here = set(names)
    with suppress(DataError):
        begun = read_json(folder / LISTED, CODES.remedy)
        if begun != names and all(name in here or not os.path.lexists(root / name) for name in begun):
            return list(begun)
    return None


def open_codes(folder: str | Path, *, verify: Verify = "once") -> Codes:
    """Open a folder of codes.

    Args:
        folder: what :func:`encode_images` wrote.
        verify: whether files of more than 16 MB are compared with their checksums too: ``"once"`` on this machine, and
            again when a file has changed; True each time; False never.

    Raises:
        DataError: if it is none, or damaged.
    """
    path = Path(folder)
    if not path.exists() and path.with_name(path.name + ".partial").exists():
        raise DataError(f"{folder} is not finished: run its `hashgym encode` again, it goes on from {folder}.partial")
    while True:
        meta = CODES.read(path)
        try:
            return _opened(path, meta, verify)
        except DataError:
            if CODES.read(path) == meta:  # else it was replaced meanwhile
                raise


def _opened(path: Path, meta: dict[str, Any], verify: Verify) -> Codes:
    CODES.verify(path, meta, large_files=verify)
    content = meta.get("content", "")
    if content and not (isinstance(content, str) and content.isdecimal()):
        raise DataError(f"{path} is damaged: its content is {content!r}; {CODES.remedy}")
    below = f"{content}/" if content else ""
    words, kept, sizes = (CODES.open_array(path, meta, f"{below}{key}.npy") for key in ARRAYS)
    stamps = digests = None
    if all(f"{below}{key}.npy" in meta["files"] for key in RECORD):
        stamps, digests = (CODES.open_array(path, meta, f"{below}{key}.npy") for key in RECORD)
    names = read_json(path / below / NAMES, CODES.remedy)
    left_out_stamps = meta.get("left_out_stamps", {})
    n, views, bits = meta["images"], meta["views"], meta["bits"]
    shapes = [array.shape for array in (words, kept, sizes, stamps, digests) if array is not None]
    if (
        shapes != [(n, views, word_count(bits)), (n, views), (n, 2), (n, 2), (n, 16)][: len(shapes)]
        or not isinstance(names, list)
        or len(names) != n
        or not isinstance(left_out_stamps, dict)
    ):
        raise DataError(f"{path} is damaged: its arrays and names do not belong together; {CODES.remedy}")
    return Codes(
        *(path, Path(meta["root"]), names, words, kept, sizes, bits, meta["encoder"], meta["digest"]),
        *(meta["left_out"], stamps, digests, left_out_stamps),
    )


def find_images(
    places: Sequence[str | Path], *, follow_links: bool = False, exclude: Sequence[str] = ()
) -> tuple[Path, list[str]]:
    """The images in files, folders and patterns, each once; arguments as :func:`encode_images`.

    Returns:
        root: the common parent of the folders, and of the folders that the files lie in; links in it are resolved.
        names: relative to it, with forward slashes, in natural order.

    Raises:
        DataError: for a place that does not exist, or holds no image.
    """
    return _found(places, follow_links, exclude)[:2]


def _found(places: Sequence[str | Path], follow_links: bool, exclude: Sequence[str]) -> tuple[Path, list[str], Listing]:
    """Root and names of the images, and what was passed over."""
    folders: set[str] = set()
    files: set[str] = set()
    passed = Listing()
    for place in map(str, places):
        for path in _expanded(place):
            named = path == place
            if not named and not _taken(place, path, follow_links, exclude, passed):
                continue
            if os.path.isdir(path):
                base = os.path.realpath(path)
                found = list_images(Path(base), follow_links=follow_links, exclude=exclude)
                if not found.names and named:
                    over = f" (passed over: {found.summary()})" if found.summary() else ""
                    raise DataError(f"{path} holds no images{over}; wanted: files that end in .jpg, .png, .webp, ...")
                passed.add(found)
                inside = [os.path.join(base, name) for name in found.names]
                folders.add(base)
            elif os.path.islink(path) and not follow_links:
                passed.links += 1
                continue
            else:
                file = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
                inside = [os.path.realpath(file) if follow_links else file]
                folders.add(os.path.dirname(inside[0]))
            if follow_links:
                inside = [os.path.realpath(file) for file in inside]
                folders.update(map(os.path.dirname, inside))
            files.update(inside)
    if not files:
        over = f" (passed over: {passed.summary()})" if passed.summary() else ""
        raise DataError(f"there is no image to encode{over}: name files, folders, or patterns in quotes")
    try:
        root = os.path.commonpath(folders)
    except ValueError:
        raise DataError("the images lie on different drives: encode those of each drive to their own folder") from None
    names = sorted((Path(os.path.relpath(file, root)).as_posix() for file in files), key=natural)
    return Path(root), names, passed


def _expanded(place: str) -> list[str]:
    """A place itself where it exists, else the files and folders that match it as a pattern."""
    if os.path.lexists(place):
        return [place]
    if not glob.has_magic(place):
        raise DataError(f"{place} does not exist")
    found = sorted(glob.glob(place, recursive=True))
    if not any(os.path.isdir(path) or looks_like_image(Path(path)) for path in found):
        raise DataError(f"no image or folder matches {place}")
    return found


def _taken(place: str, path: str, follow_links: bool, exclude: Sequence[str], passed: Listing) -> bool:
    """Whether a match of a pattern is taken, as if its folder had been listed; else it is counted."""
    parts = Path(path).parts
    fixed = sum(1 for _ in takewhile(lambda part: not glob.has_magic(part), Path(place).parts))
    for end in range(fixed + 1, len(parts) + 1):
        upper = Path(*parts[:end])
        if is_system(parts[end - 1]) or (upper.is_dir() and is_own(upper)):
            return False
        if is_excluded("/".join(parts[fixed:end]), exclude):
            passed.excluded += 1
            return False
        if upper.is_symlink() and not follow_links:
            passed.links += 1
            return False
    if not os.path.isdir(path) and not looks_like_image(Path(path)):
        passed.ignored[os.path.splitext(path)[1].lower()] += 1
        return False
    return True


@dataclass(frozen=True)
class _Picture:
    """A picture and its regions, preprocessed: uint8 (V, s, s, 3); and its width and height."""

    index: int
    views: NDArray[np.uint8]
    size: tuple[int, int]
    digest: bytes


def _prepare(
    encoder: Encoder, root: Path, names: Sequence[str], index: int
) -> tuple[tuple[int, int], _Picture | UnreadableImage]:
    """A picture, or why it cannot be read; and the stamp that its file had then."""
    before = (-1, -1)
    try:
        path = resolved(root, names[index])
        before = stamp(path)
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would let us wait for ever
            raise DataError(f"image {names[index]} is no file")
        image = open_image(path, names[index])
        picture = _Picture(index, encoder.prepare(image), image.size, _digest(path))
        if stamp(path) != before:
            raise DataError(f"image {names[index]} changed while it was read")
        return before, picture
    except OSError as error:
        return before, UnreadableImage(index, f"image {names[index]} cannot be read: {error.strerror or error}")
    except DataError as error:
        return before, UnreadableImage(index, str(error))


def _encoded(
    encoder: Encoder, root: Path, names: Sequence[str], batches: Sequence[NDArray[np.int64]], batch: int
) -> tuple[dict[str, tuple[NDArray[np.int64], NDArray[Any]]], list[tuple[int, tuple[str, int, int]]]]:
    """Rows and values of every array for a batch; of images that cannot be read, why, and the stamps of their files."""
    read = [_prepare(encoder, root, names, index) for index in batches[batch].tolist()]
    bad = [(image.index, (image.reason, *at)) for at, image in read if isinstance(image, UnreadableImage)]
    pictures = [(at, image) for at, image in read if isinstance(image, _Picture)]
    if not pictures:
        return {}, bad
    views = np.stack([picture.views for _, picture in pictures])
    sets = encoder.encode_pictures(views if encoder.regions else views[:, 0])
    rows = np.array([picture.index for _, picture in pictures], np.int64)
    return {
        "words": (rows, sets.words),
        "kept": (rows, sets.kept),
        "sizes": (rows, np.array([picture.size for _, picture in pictures], np.int32)),
        "stamps": (rows, np.array([at for at, _ in pictures], np.int64)),
        "digests": (rows, np.array([list(picture.digest) for _, picture in pictures], np.uint8)),
    }, bad


def _content_files(content: str = "") -> list[str]:
    """The files of a folder of codes that change with its pictures."""
    below = f"{content}/" if content else ""
    return [*(f"{below}{key}.npy" for key in (*ARRAYS, *RECORD)), f"{below}{NAMES}"]


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _finished(target: Path, job: dict[str, Any], held: ExitStack) -> Codes:
    """The codes in ``target``, if this job may update them; nobody else may until ``held`` is left."""
    if not CODES.matches(target):
        raise DataError(f"{target} exists already and is no folder of codes: choose another --out")
    held.enter_context(lock_folder(target, f"another process is at work in {target}: wait for it, or stop it"))
    old = open_codes(target)
    if (old.encoder, str(old.root)) != (job["encoder"], job["root"]):
        of = f"pictures in another folder, {old.root}" if old.encoder == job["encoder"] else "another encoder"
        raise DataError(
            f"{target} holds codes of {of}: choose another --out; `hashgym index --add` adds the codes of new pictures "
            "to an index"
        )
    _tidy(target, CODES.read(target))
    return old


def _cannot_tell(old: Codes, names: Sequence[str]) -> str:
    """Why codes of an older version are left as they are, where they are of the same pictures."""
    why = (
        "was written by a hashgym that did not record sizes and times of the pictures, so those that have changed "
        "cannot be told from the others"
    )
    if sorted([*old.names, *old.left_out]) != sorted(names):
        raise DataError(
            f"{old.folder} holds codes of other pictures, and {why}: encode to another --out; `hashgym index --add` "
            "adds the codes of new pictures to an index"
        )
    return f"{old.folder} {why}: encode to another --out, to be sure"


def _compared(
    old: Codes,
    root: Path,
    names: Sequence[str],
    stamps: NDArray[np.int64],
    checksum: bool,
    threads: int,
    progress: bool,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The row of every image in ``old``, -1 for none; and whether it is to be encoded."""
    before, digests = old.stamps, old.digests
    assert before is not None
    assert digests is not None
    where = {name: row for row, name in enumerate(old.names)}
    rows = np.array([where.get(name, -1) for name in names], np.int64)
    here = set(names)
    if gone := [name for name in old.names if name not in here and os.path.exists(root / name)]:
        raise DataError(
            f"{old.folder} has codes of {len(gone):,} pictures that are still there and were not named, such as "
            f"{gone[0]}: name all its pictures, or choose another --out"
        )
    known = np.flatnonzero(rows >= 0)
    suspect = known if checksum else known[(before[rows[known]] != stamps[known]).any(axis=1)]

    def differs(index: int) -> bool:
        if before[rows[index], 0] != stamps[index, 0]:
            return True
        try:
            return _digest(resolved(root, names[index])) != digests[rows[index]].tobytes()
        except (OSError, DataError):
            return True

    changed = np.zeros(len(names), bool)
    with (
        progress_bar(len(suspect), 0, progress and len(suspect) > 0, "comparing") as tick,
        ThreadPoolExecutor(threads) as pool,
    ):
        for index, different in zip(suspect.tolist(), pool.map(differs, suspect.tolist()), strict=True):
            changed[index] = different
            tick(1)
    return rows, changed | (rows < 0)


def _replace(target: Path, old: Codes, store: JobStore, seal: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Put the new content beside the old, and let ``meta.json`` name it."""
    meta = CODES.read(target)
    if meta["digest"] != old.digest:
        raise DataError(f"{target} was changed by another process meanwhile: run the same command again")
    _tidy(target, meta)
    taken = {path.name for path in target.iterdir()}
    content = next(number for number in map(str, count(int(meta.get("content") or 1) + 1)) if number not in taken)
    store.publish(target / content, {}, seal)
    (target / content / LISTED).unlink(missing_ok=True)
    CODES.seal(target, [*_content_files(content), ENCODER], content=content, **facts)
    _tidy(target, CODES.read(target))


def _tidy(target: Path, meta: dict[str, Any]) -> None:
    """Remove what killed runs have left in a finished folder: what only the job needed, and content that is not its."""
    remove_journal(target)
    (target / LISTED).unlink(missing_ok=True)
    for path in target.iterdir():
        if path.name.isdecimal() and path.name != meta.get("content") and owned.is_owned(path):
            known = {owned.MARKER, JOURNAL, LISTED, *_content_files()}
            names = {entry.name for entry in path.iterdir() if not entry.name.endswith(".hashgym-tmp")}
            if foreign := sorted(names - known):
                warnings.warn(
                    f"{path} is not needed here, but is kept: it is not content of {target} alone, with "
                    f"{', '.join(foreign[:3])} in it",
                    stacklevel=2,
                )
            else:
                owned.remove(path)
    if meta.get("content"):  # the first content lies in the folder itself
        for name in _content_files():
            (target / name).unlink(missing_ok=True)
