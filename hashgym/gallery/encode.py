"""Encode pictures into a folder of codes, see ``gallery/encoded_images.py``: a job that can be killed at any moment.

Until it is finished the folder ``OUT`` is called ``OUT.partial``. If pictures have changed since, the same job encodes
only those. The new content becomes a numbered folder in ``OUT``, and ``meta.json`` is replaced when that is on the
disk: at any moment the folder has either the old codes or the new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import check_integer, several
from hashgym.codes import word_count
from hashgym.data.image_files import is_excluded, resolved, stamp
from hashgym.data.pictures import BACKGROUND, open_image
from hashgym.encoders import Encoder, load_encoder
from hashgym.features.onnx_runtime import thread_count
from hashgym.gallery.encoded_images import ARRAYS, CODES, ENCODER, NAMES, EncodedImages, content_files, open_codes
from hashgym.gallery.find_images import list_places
from hashgym.gallery.fit import EncoderFit
from hashgym.moved import keep_old_names
from hashgym.storage import owned
from hashgym.storage.errors import DataError
from hashgym.storage.job_store import JOURNAL, JobStore, remove_journal
from hashgym.storage.locks import lock_folder
from hashgym.storage.pipeline import UnreadableImage, prefetch, progress_bar
from hashgym.storage.reading import map_array
from hashgym.storage.sealed import read_json, write_json
from hashgym.versions import versions

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["EncodingReport", "EncodingSettings", "encode_images", "unfinished", "update_codes"]

keep_old_names(__name__)

LISTED = "listed.json"  # the names that an unfinished job was started with
FEATURES = "features.npy"  # of an unfinished job whose encoder is not fitted yet
RECORDED = ("hashgym", "numpy", "pillow", "onnxruntime")


@dataclass(frozen=True)
class EncodingSettings:
    """Settings for finding and encoding pictures; the arguments of :func:`encode_images`.

    Raises:
        ValueError: for a batch size or a number of workers below 1.
    """

    skip_bad: bool = False
    batch_size: int = 64
    workers: int = 2
    progress: bool = True
    follow_links: bool = False
    exclude: Sequence[str] = ()
    checksum: bool = False
    bits: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "exclude", several(self.exclude, str))
        check_integer("batch_size", self.batch_size)
        check_integer("workers", self.workers)


@dataclass(frozen=True)
class EncodingReport:
    """Counts of what a run of :func:`update_codes` did.

    Attributes:
        folder: the folder of codes.
        new: pictures that got codes for the first time.
        changed: pictures that were encoded again.
        removed: pictures that no longer exist, or can no longer be read.
        unchanged: pictures whose codes are those of an earlier run.
        passed_over: a description of the files and links that were skipped; empty for none.
        note: why changed pictures could not be recognised; empty if they could.
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
    bits: int | None = None,
) -> Path:
    """Encode pictures into the folder ``out``; if it is finished already, only those that are new or have changed.

    Args:
        encoder_path: an encoder that takes pictures, as ``hashgym export`` writes.
        images: files, folders (with all below them, except what ``hashgym.data.image_files.list_images`` skips),
            and patterns such as ``photos/*.jpg``; an image that is named twice is encoded once.
        out: the folder to write; the job resumes from ``out.partial``.
        skip_bad: leave out and list images that cannot be read, instead of stopping at the first one.
        batch_size: images that are read, and recorded as finished, together.
        workers: batches processed at a time, each in its own thread; the cores are divided among them.
        progress: show a progress bar.
        follow_links: also encode the targets of links below the folders, under their own paths. A folder that is named
            itself may always be a link.
        exclude: patterns of names, or of paths relative to a folder, that are left out.
        checksum: recognise changed pictures by their content, instead of their size and modification time.
        bits: number of first bits of each code to keep, see :meth:`hashgym.encoders.Encoder.cut`; None for all.

    Returns:
        ``out``, for :func:`open_codes`.

    Raises:
        ValueError: for invalid arguments, or an encoder that takes features.
        DataError: for places without images; if ``out`` is something else or has codes of other pictures or of another
            encoder; if ``out.partial`` belongs to another job; and, unless ``skip_bad``, for an image that cannot be
            read. Batches that were finished by then are kept.
    """
    settings = EncodingSettings(
        skip_bad=skip_bad,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        follow_links=follow_links,
        exclude=exclude,
        checksum=checksum,
        bits=bits,
    )
    return update_codes(encoder_path, images, out, settings).folder


def update_codes(
    encoder: str | Path | EncoderFit,
    images: Sequence[str | Path],
    out: str | Path,
    settings: EncodingSettings | None = None,
    *,
    drop_excluded: bool = False,
) -> EncodingReport:
    """Encode pictures as :func:`encode_images` does, and return what was done.

    An :class:`EncoderFit` is fitted to the pictures unless ``out`` has codes already; then the encoder in it is used.
    With ``drop_excluded`` finished codes of pictures that are excluded now are dropped; otherwise they are an error.
    """
    settings = settings or EncodingSettings()
    # Each thread reads and encodes its own batches: threads within one network would wait for each other and for
    # readers.
    threads, target = min(settings.workers, thread_count()), Path(out)
    each = thread_count() // threads

    def coder() -> _Encoding | EncoderFit:
        if not isinstance(encoder, EncoderFit):
            return _Encoding.open(Path(encoder), settings.bits, each)
        if CODES.matches(target):
            return _Encoding.open(target / ENCODER, None, each)
        return replace(encoder, threads=each, progress=settings.progress)

    own = coder()
    root, names, passed = list_places(images, settings.follow_links, settings.exclude)
    done = EncodingReport(target)
    if started := _started_names(unfinished(target), root, names):
        done = _Job(own, target, root, set(names), threads, settings, drop_excluded).run(started)
        own = coder()
    more = _Job(own, target, root, set(names), threads, settings, drop_excluded).run(names)
    return EncodingReport(
        target,
        new=done.new + more.new,
        changed=done.changed + more.changed,
        removed=done.removed + more.removed,
        unchanged=done.unchanged if started else more.unchanged,
        passed_over=passed.summary(),
        note=more.note,
    )


@dataclass(frozen=True)
class _Encoding:
    """An encoder, as a job uses it; :class:`EncoderFit` has the same methods.

    Attributes:
        encoder: makes the codes.
        path: its file.
    """

    encoder: Encoder
    path: Path

    @classmethod
    def open(cls, path: Path, bits: int | None, threads: int) -> _Encoding:
        """Open an encoder of pictures, and cut it to a number of bits."""
        encoder = load_encoder(path, threads)
        if encoder.takes != "pictures":
            raise ValueError(
                f"{path} takes features, not pictures: `hashgym export` with the run or hasher as its source includes "
                "the backbone, unless --features-only is given"
            )
        return cls(encoder if bits is None else encoder.cut(bits), path)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a job to be resumed."""
        return {"encoder": self.encoder.digest}

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of a picture's row in every array that is computed."""
        views = self.encoder.most_codes
        return {"words": ((views, word_count(self.encoder.bits)), "uint64"), "kept": ((views,), "bool")}

    def prepare(self, image: Image) -> NDArray[np.uint8]:
        """Return an image and its regions as inputs of the network, uint8 (V, size, size, 3)."""
        return self.encoder.prepare(image)

    def compute(self, views: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the rows of every array, for views (n, V, size, size, 3)."""
        sets = self.encoder.encode_pictures(views if self.encoder.regions else views[:, 0])
        return {"words": sets.words, "kept": sets.kept}

    def finish(self, folder: Path) -> tuple[Encoder, dict[str, NDArray[Any]]]:
        """Return the encoder, and arrays to add to those of the job."""
        return self.encoder, {}


@dataclass(frozen=True)
class _Comparison:
    """Pictures compared with a finished folder of their codes.

    Attributes:
        names: n names.
        stamps: int64 (n, 2), of the files as they are now.
        old: the finished codes; None if there are none yet.
        rows: int64 (n,), the row of every picture in ``old``, -1 for none.
        wanted: bool (n,), whether a picture is to be encoded.
    """

    names: list[str]
    stamps: NDArray[np.int64]
    old: EncodedImages | None
    rows: NDArray[np.int64]
    wanted: NDArray[np.bool_]

    @property
    def removed(self) -> int:
        """Number of pictures of ``old`` that no longer exist."""
        return 0 if self.old is None else len(self.old) - int((self.rows >= 0).sum())

    def is_unchanged(self) -> bool:
        """Return whether the codes in ``old`` are those of the pictures."""
        if self.old is None:
            return False
        names, before = self.names, self.old.left_out_stamps
        repaired = any(self.stamps[i].tolist() != before.get(names[i]) for i in np.flatnonzero(self.rows < 0))
        changed = bool((self.wanted & (self.rows >= 0)).any())
        gone = set(self.old.left_out) - set(names)
        return not (self.removed or repaired or changed or gone or self.old.is_renamed)


@dataclass(frozen=True)
class _Job:
    """The encoding of pictures into a folder.

    Attributes:
        coder: makes the codes.
        target: the folder to write or to update.
        root: the folder that names are relative to.
        existing: names of all pictures that exist now.
        threads: batches processed at a time.
        settings: as the user gave them.
        drop_excluded: whether codes of pictures that are excluded now are dropped; otherwise they are an error.
    """

    coder: _Encoding | EncoderFit
    target: Path
    root: Path
    existing: set[str]
    threads: int
    settings: EncodingSettings
    drop_excluded: bool = False

    def run(self, names: list[str]) -> EncodingReport:
        """Encode those of the pictures ``names`` that are new or have changed, and publish the codes of all."""
        n, stamps = len(names), np.array([stamp(self.root / name) for name in names], np.int64)
        description = self._description(names)
        found = _Comparison(names, stamps, None, np.full(n, -1), np.ones(n, bool))
        with ExitStack() as locks:  # a finished folder is locked until the end
            if os.path.lexists(self.target):
                old = _finished(self.target, description, locks)
                if old.stamps is None:
                    return EncodingReport(self.target, unchanged=len(old), note=_without_stamps(old, names))
                found = _Comparison(names, stamps, old, *self._compare(old, names, stamps))
                if found.is_unchanged():
                    return EncodingReport(self.target, unchanged=len(old))
                description["updates"] = old.digest
            with JobStore(unfinished(self.target), n, self._arrays(), description, "hashgym encode") as store:
                if not (store.folder / LISTED).exists():
                    write_json(store.folder / LISTED, names)
                self._encode(store, found)
                left_out = {index: about for bad_images in store.finished.values() for index, about in bad_images}
                kept = np.setdiff1d(np.arange(n), list(left_out))
                if not len(kept):
                    raise DataError(f"none of the {n:,} images can be read, the first: {left_out[0][0]}")
                store.keep(kept)
                self._publish(store, found, kept, left_out, description)
        encoded = np.setdiff1d(np.flatnonzero(found.wanted), list(left_out))
        new = int((found.rows[encoded] < 0).sum())
        removed = found.removed + int((found.rows[list(left_out)] >= 0).sum())
        return EncodingReport(self.target, new, len(encoded) - new, removed, len(kept) - len(encoded))

    def _description(self, names: list[str]) -> dict[str, Any]:
        """Return the settings that must be equal for a job to be resumed."""
        return {
            **self.coder.identity,
            "root": str(self.root),
            "images": len(names),
            "names": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
            "batch_size": self.settings.batch_size,
            "background": BACKGROUND,
            "versions": versions(RECORDED),
        }

    def _arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and type of a row of every array."""
        return {
            **self.coder.arrays,
            "sizes": ((2,), "int32"),
            "stamps": ((2,), "int64"),
            "digests": ((16,), "uint8"),
        }

    def _encode(self, store: JobStore, found: _Comparison) -> None:
        """Put the codes of all pictures into the store: those of ``old`` that are still valid, and new ones."""
        n, size, wanted = len(found.names), self.settings.batch_size, found.wanted
        batches = [start + np.flatnonzero(wanted[start : start + size]) for start in range(0, n, size)]
        left = {}
        if not store.closed:
            if found.old is not None and len(same := np.flatnonzero(~wanted)):
                for key in (*ARRAYS, "digests"):
                    store.write(key, same, getattr(found.old, key)[found.rows[same]])
                store.write("stamps", same, found.stamps[same])
                store.finish(-1, [])
            # Stamps of the time when a batch was finished; pictures may have changed since.
            read = map_array(store.files["stamps"])
            left = {
                b: batch
                for b, batch in enumerate(batches)
                if len(batch) and (b not in store.finished or (read[batch] != found.stamps[batch]).any())
            }
        ready = n - sum(map(len, left.values()))
        doing = "updating" if found.old is not None else "resuming" if ready else "encoding"
        work = partial(_encode_batch, self.coder, self.root, found.names, batches)
        with (
            progress_bar(n, ready, self.settings.progress, doing) as tick,
            closing(prefetch(work, {b: [b] for b in left}, self.threads, 2 * self.threads)) as finished,
        ):
            for b, [(arrays_of, bad)] in finished:
                if not self.settings.skip_bad:
                    for reason in (reason for index, (reason, *_) in bad if found.names[index] in self.existing):
                        raise DataError(
                            f"{reason}. Fix or remove it and run the same command again; --skip-bad leaves such images "
                            "out"
                        )
                for key, (index, values) in arrays_of.items():
                    store.write(key, index, values)
                store.finish(b, bad)
                tick(len(batches[b]))

    def _publish(
        self,
        store: JobStore,
        found: _Comparison,
        kept: NDArray[np.int64],
        left_out: dict[int, Any],
        description: dict[str, Any],
    ) -> None:
        """Turn the store into a finished folder, or into the new content of the folder that it updates."""
        names = found.names
        encoder, parts = self.coder.finish(store.folder)
        facts: dict[str, Any] = {
            "images": len(kept),
            "bits": encoder.bits,
            "views": encoder.most_codes,
            "root": str(self.root),
            "encoder": encoder.digest,
            "job": description,
            "left_out": {names[index]: reason for index, (reason, *_) in sorted(left_out.items())},
            "left_out_stamps": {names[index]: about for index, (_, *about) in sorted(left_out.items())},
        }

        def seal(folder: Path) -> None:
            write_json(folder / NAMES, [names[i] for i in kept])
            if found.old is None:
                if isinstance(self.coder, _Encoding):
                    shutil.copyfile(self.coder.path, folder / ENCODER)
                CODES.seal(folder, [*content_files(), ENCODER], **facts)
            elif not owned.is_owned(folder):
                (folder / owned.MARKER).touch()

        if found.old is None:
            store.publish(self.target, parts, seal)
            _tidy(self.target, CODES.read(self.target))
            return
        meta = CODES.read(self.target)
        if meta["digest"] != found.old.digest:
            raise DataError(f"{self.target} was changed by another process in the meantime: run the same command again")
        _tidy(self.target, meta)
        used = {path.name for path in self.target.iterdir()}
        content = next(number for number in map(str, count(int(meta.get("content") or 1) + 1)) if number not in used)
        store.publish(self.target / content, parts, seal)
        (self.target / content / LISTED).unlink(missing_ok=True)
        CODES.seal(self.target, [*content_files(content), ENCODER], content=content, **facts)
        _tidy(self.target, CODES.read(self.target))

    def _compare(
        self, old: EncodedImages, names: list[str], stamps: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the row of every picture in ``old``, -1 for none, and whether it is to be encoded."""
        before, digests = old.stamps, old.digests
        assert before is not None
        assert digests is not None
        row_of = {name: row for row, name in enumerate(old.names)}
        rows = np.array([row_of.get(name, -1) for name in names], np.int64)
        named = set(names)
        # Pictures that this command names, but the killed one that it continues did not, are encoded after it.
        gone = (name for name in old.names if name not in named and name not in self.existing)
        if omitted := [name for name in gone if os.path.exists(self.root / name) and not self._drops(name)]:
            raise DataError(
                f"{old.folder} has codes of {len(omitted):,} pictures that still exist and were not named, such as "
                f"{omitted[0]}: name all its pictures, or choose another --out"
            )
        known = np.flatnonzero(rows >= 0)
        suspect = known if self.settings.checksum else known[(before[rows[known]] != stamps[known]).any(axis=1)]

        def differs(index: int) -> bool:
            if before[rows[index], 0] != stamps[index, 0]:
                return True
            try:
                return _digest(resolved(self.root, names[index])) != digests[rows[index]].tobytes()
            except (OSError, DataError):
                return True

        changed = np.zeros(len(names), bool)
        with (
            progress_bar(len(suspect), 0, self.settings.progress and len(suspect) > 0, "comparing") as tick,
            ThreadPoolExecutor(self.threads) as pool,
        ):
            for index, different in zip(suspect.tolist(), pool.map(differs, suspect.tolist()), strict=True):
                changed[index] = different
                tick(1)
        return rows, changed | (rows < 0)

    def _drops(self, name: str) -> bool:
        """Return whether a picture is dropped because it, or a folder that it is in, is excluded now.

        Patterns are relative to the folders that were named, of which the common parent is the root.
        """
        parts = name.split("/")
        paths = ("/".join(parts[start:end]) for start, end in combinations(range(len(parts) + 1), 2))
        return self.drop_excluded and any(is_excluded(path, self.settings.exclude) for path in paths)


def unfinished(target: Path) -> Path:
    """Return the folder of the unfinished job; if OUT is a link, beside its target, so that it can be renamed."""
    if target.is_symlink() or not target.name:  # "." has no name
        target = Path(os.path.realpath(target))
    return target.with_name(target.name + ".partial")


def _started_names(folder: Path, root: Path, names: Sequence[str]) -> list[str] | None:
    """Return the names that an unfinished job was started with, if that job must be finished first; else None.

    It must if the names differ from ``names``, and every picture that is no longer named no longer exists.
    """
    named = set(names)
    with suppress(DataError):
        started = read_json(folder / LISTED, CODES.remedy)
        if started != names and all(name in named or not os.path.lexists(root / name) for name in started):
            return list(started)
    return None


@dataclass(frozen=True)
class _Picture:
    """A picture and its regions, preprocessed: uint8 (V, s, s, 3); and its width and height."""

    index: int
    views: NDArray[np.uint8]
    size: tuple[int, int]
    digest: bytes


def _prepare(
    coder: _Encoding | EncoderFit, root: Path, names: Sequence[str], index: int
) -> tuple[tuple[int, int], _Picture | UnreadableImage]:
    """Return a picture, or the reason why it cannot be read, with the stamp of its file at that time."""
    before = (-1, -1)
    try:
        path = resolved(root, names[index])
        before = stamp(path)
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe may never end
            raise DataError(f"image {names[index]} is not a file")
        image = open_image(path, names[index])
        picture = _Picture(index, coder.prepare(image), image.size, _digest(path))
        if stamp(path) != before:
            raise DataError(f"image {names[index]} changed while it was read")
        return before, picture
    except OSError as error:
        return before, UnreadableImage(index, f"image {names[index]} cannot be read: {error.strerror or error}")
    except DataError as error:
        return before, UnreadableImage(index, str(error))


def _encode_batch(
    coder: _Encoding | EncoderFit, root: Path, names: Sequence[str], batches: Sequence[NDArray[np.int64]], batch: int
) -> tuple[dict[str, tuple[NDArray[np.int64], NDArray[Any]]], list[tuple[int, tuple[str, int, int]]]]:
    """Return rows and values of every array for a batch; for images that cannot be read, the reason and the stamps."""
    read = [_prepare(coder, root, names, index) for index in batches[batch].tolist()]
    bad = [(image.index, (image.reason, *at)) for at, image in read if isinstance(image, UnreadableImage)]
    pictures = [(at, image) for at, image in read if isinstance(image, _Picture)]
    if not pictures:
        return {}, bad
    views = np.stack([picture.views for _, picture in pictures])
    rows = np.array([picture.index for _, picture in pictures], np.int64)
    return {
        **{key: (rows, values) for key, values in coder.compute(views).items()},
        "sizes": (rows, np.array([picture.size for _, picture in pictures], np.int32)),
        "stamps": (rows, np.array([at for at, _ in pictures], np.int64)),
        "digests": (rows, np.array([list(picture.digest) for _, picture in pictures], np.uint8)),
    }, bad


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _finished(target: Path, job: dict[str, Any], locks: ExitStack) -> EncodedImages:
    """Return the codes in ``target``, if this job may update them; they stay locked until ``locks`` is closed."""
    if not CODES.matches(target):
        raise DataError(f"{target} exists already and is not a folder of codes: choose another --out")
    locks.enter_context(lock_folder(target, f"another process is writing to {target}: wait for it, or stop it"))
    old = _named_below(open_codes(target), Path(job["root"]))
    if (old.encoder, str(old.root)) != (job["encoder"], job["root"]):
        other = f"pictures in another folder, {old.root}" if old.encoder == job["encoder"] else "another encoder"
        if old.encoder != job["encoder"] and old.encoder.partition(":")[0] == job["encoder"].partition(":")[0]:
            raise DataError(
                f"{target} has codes of {old.bits} bits by the same encoder: give --bits {old.bits}, or choose another "
                "--out"
            )
        raise DataError(
            f"{target} has codes of {other}: choose another --out; `hashgym index --add` adds the codes of new "
            "pictures to an index"
        )
    _tidy(target, CODES.read(target))
    return old


def _named_below(old: EncodedImages, root: Path) -> EncodedImages:
    """Return codes with names relative to another root: folders above or below it were added or left out since."""
    if old.root == root or not (old.root.is_relative_to(root) or root.is_relative_to(old.root)):
        return old

    def renamed(name: str) -> str:
        return Path(os.path.relpath(old.root / name, root)).as_posix()

    return replace(
        old,
        root=root,
        names=[renamed(name) for name in old.names],
        left_out={renamed(name): reason for name, reason in old.left_out.items()},
        left_out_stamps={renamed(name): stamps for name, stamps in old.left_out_stamps.items()},
        is_renamed=True,
    )


def _without_stamps(old: EncodedImages, names: Sequence[str]) -> str:
    """Return the reason why codes of an older version are left unchanged.

    Raises:
        DataError: if they are those of other pictures.
    """
    reason = (
        "was written by a version of hashgym that did not record sizes and modification times of the pictures, so "
        "changed pictures cannot be recognised"
    )
    if sorted([*old.names, *old.left_out]) != sorted(names):
        raise DataError(
            f"{old.folder} has codes of other pictures, and {reason}: encode to another --out; `hashgym index --add` "
            "adds the codes of new pictures to an index"
        )
    return f"{old.folder} {reason}: encode to another --out to be sure"


def _tidy(target: Path, meta: dict[str, Any]) -> None:
    """Remove files that killed runs left in a finished folder: those of the job, and content that is not current."""
    remove_journal(target)
    for name in (LISTED, FEATURES):
        (target / name).unlink(missing_ok=True)
    for path in target.iterdir():
        if path.name.isdecimal() and path.name != meta.get("content") and owned.is_owned(path):
            known = {owned.MARKER, JOURNAL, LISTED, *content_files()}
            names = {entry.name for entry in path.iterdir() if not entry.name.endswith(".hashgym-tmp")}
            if foreign := sorted(names - known):
                warnings.warn(
                    f"{path} is no longer needed, but is kept: it holds {', '.join(foreign[:3])}, which hashgym did "
                    "not write",
                    stacklevel=2,
                )
            else:
                owned.remove(path)
    if meta.get("content"):  # the first content lies in the folder itself
        for name in content_files():
            (target / name).unlink(missing_ok=True)
