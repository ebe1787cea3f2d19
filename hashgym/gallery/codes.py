"""The codes of somebody's pictures: a job that makes them with an encoder, safe to kill at any moment.

A folder of codes has ``words.npy`` (uint64 (n, V, W), packed codes of an image and its V - 1 regions), ``kept.npy``
(bool (n, V), which of them it has), ``sizes.npy`` (int32 (n, 2), width and height of the upright picture),
``names.json`` (n names relative to the root, with forward slashes), ``encoder.onnx`` and ``meta.json``. While the work
lasts it is called ``OUT.partial``.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.codes import CodeSets, Words, word_count
from hashgym.data.dataset import DataError
from hashgym.data.files import image_files, is_image, natural, open_image
from hashgym.data.sealed import Kind, Thorough, read_json, write_json
from hashgym.features.pipeline import Bad, ahead, progress_bar, versions
from hashgym.features.runtime import thread_count
from hashgym.features.store import Store, tidy

if TYPE_CHECKING:
    from hashgym.encoders import Encoder

__all__ = ["Codes", "encode_images", "find_images", "open_codes"]

CODES = Kind(
    "hashgym-codes",
    1,
    what="folder of codes",
    command="hashgym encode",
    mend="encode the pictures again to another --out",
    facts={
        **dict.fromkeys(("images", "bits", "views"), int),
        **{"root": str, "encoder": str, "job": dict, "left_out": dict},
    },
)
ENCODER, NAMES = "encoder.onnx", "names.json"
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

    def __len__(self) -> int:
        return len(self.names)

    def sets(self, rows: slice = slice(None)) -> CodeSets:
        """The code sets of some images."""
        return CodeSets(np.array(self.words[rows]), np.array(self.kept[rows]), self.bits)


def encode_images(
    encoder_path: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    skip_bad: bool = False,
    batch_size: int = 64,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Encode pictures into the folder ``out``.

    Args:
        encoder_path: an encoder that takes pictures, as ``hashgym export`` writes.
        images: files, folders (with all below them, but for hidden files and links to folders), and patterns such as
            ``photos/*.jpg``; an image that is named twice counts once.
        out: the folder to write; the job resumes from ``out.partial``. A folder that this very job wrote is left alone.
        skip_bad: leave out and list images that cannot be read, instead of stopping at the first.
        batch_size: images that are read, and noted as finished, together.
        workers: batches at work at a time, each in a thread of its own; cores are shared out among them.
        progress: show a progress bar.

    Returns:
        ``out``, for :func:`open_codes`.

    Raises:
        ValueError: for impossible arguments, or an encoder that takes features.
        DataError: for places without images, if ``out`` exists or ``out.partial`` is another job's; during work for an
            image that cannot be read, unless ``skip_bad``. What was finished by then is kept.
    """
    from hashgym.encoders import load_encoder

    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size and workers must be at least 1, got {batch_size} and {workers}")
    # A thread reads and encodes batches of its own: threads of one network would wait for each other, and for readers.
    lanes = min(workers, thread_count())
    encoder, target = load_encoder(encoder_path, thread_count() // lanes), Path(out)
    if encoder.takes != "pictures":
        raise ValueError(
            f"{encoder_path} takes features, not pictures: `hashgym export` with the run or hasher as its source "
            "includes the backbone, unless --features-only is given"
        )
    root, names = find_images(images)
    job = {
        "encoder": encoder.digest,
        "root": str(root),
        "images": len(names),
        "names": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        "batch_size": batch_size,
        "versions": versions(RECORDED),
    }
    if target.exists():
        _check_finished(target, job)
        return target
    views, n = 1 + encoder.regions, len(names)
    arrays: dict[str, tuple[tuple[int, ...], str]] = {
        "words": ((views, word_count(encoder.bits)), "uint64"),
        "kept": ((views,), "bool"),
        "sizes": ((2,), "int32"),
    }
    batches = [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    work = partial(_encoded, encoder, root, names, batches)
    with Store(target.with_name(target.name + ".partial"), n, arrays, job, "hashgym encode") as store:
        left = {b: batch for b, batch in enumerate(batches) if b not in store.finished}
        done = n - sum(map(len, left.values()))
        with (
            progress_bar(n, done, progress, "encoding") as tick,
            closing(ahead(work, {b: [b] for b in left}, lanes, 2 * lanes)) as finished,
        ):
            for b, [(arrays_of, bad)] in finished:
                if bad and not skip_bad:
                    raise DataError(
                        f"{bad[0].reason}. Mend or remove it and run the same command again; --skip-bad leaves such "
                        "images out"
                    )
                for key, (rows, values) in arrays_of.items():
                    store.write(key, rows, values)
                store.finish(b, [[image.index, image.reason] for image in bad])
                tick(len(batches[b]))
        left_out = {index: reason for bad_images in store.finished.values() for index, reason in bad_images}
        kept = np.setdiff1d(np.arange(n), list(left_out))
        if not len(kept):
            raise DataError(f"none of the {n:,} images can be read, the first: {left_out[0]}")
        store.keep(kept)

        def seal(folder: Path) -> None:
            write_json(folder / NAMES, [names[i] for i in kept])
            shutil.copyfile(encoder_path, folder / ENCODER)
            CODES.seal(
                folder,
                ["words.npy", "kept.npy", "sizes.npy", NAMES, ENCODER],
                images=len(kept),
                bits=encoder.bits,
                views=views,
                root=str(root),
                encoder=encoder.digest,
                job=job,
                left_out={names[index]: reason for index, reason in sorted(left_out.items())},
            )

        store.publish(target, {}, seal)
    return target


def open_codes(folder: str | Path, *, verify: Thorough = "once") -> Codes:
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
    meta = CODES.read(path)
    CODES.check(path, meta, thorough=verify)
    words, kept, sizes = (CODES.array(path, meta, f"{key}.npy") for key in ("words", "kept", "sizes"))
    names = read_json(path / NAMES, CODES.mend)
    n, views, bits = meta["images"], meta["views"], meta["bits"]
    shapes = (words.shape, kept.shape, sizes.shape)
    if shapes != ((n, views, word_count(bits)), (n, views), (n, 2)) or not isinstance(names, list) or len(names) != n:
        raise DataError(f"{folder} is damaged: its arrays and names do not belong together; {CODES.mend}")
    return Codes(
        path, Path(meta["root"]), names, words, kept, sizes, bits, meta["encoder"], meta["digest"], meta["left_out"]
    )


def find_images(places: Sequence[str | Path]) -> tuple[Path, list[str]]:
    """The images in files, folders and patterns, each once.

    Returns:
        root: the common parent of the folders, and of the folders that the files lie in; links in it are resolved.
        names: relative to it, with forward slashes, in natural order.

    Raises:
        DataError: for a place that does not exist, or holds no image.
    """
    folders: set[str] = set()
    files: set[str] = set()
    for place in places:
        for path in _expanded(str(place)):
            if os.path.isdir(path):
                base = os.path.realpath(path)
                found = image_files(Path(base))
                if not found:
                    raise DataError(f"{path} holds no images: files that end in .jpg, .png, .webp, ...")
                folders.add(base)
                files.update(os.path.join(base, name) for name in found)
            else:
                base = os.path.realpath(os.path.dirname(path) or ".")
                folders.add(base)
                files.add(os.path.join(base, os.path.basename(path)))
    if not files:
        raise DataError("there is no image to encode: name files, folders, or patterns in quotes")
    try:
        root = os.path.commonpath(folders)
    except ValueError:
        raise DataError("the images lie on different drives: encode those of each drive to their own folder") from None
    return Path(root), sorted((Path(os.path.relpath(file, root)).as_posix() for file in files), key=natural)


def resolved(root: Path, name: str) -> Path:
    """The file of a name, links followed.

    Raises:
        DataError: if it lies outside the root.
    """
    path = os.path.realpath(root / name)
    if os.path.commonpath([root, path]) != str(root):
        raise DataError(
            f"image {name} lies outside {root}: it is a link that leads out; encode the folder it leads to, or a copy"
        )
    return Path(path)


@dataclass(frozen=True)
class _Picture:
    """A picture and its regions, preprocessed: uint8 (V, s, s, 3); and its width and height."""

    index: int
    views: NDArray[np.uint8]
    size: tuple[int, int]


def _prepare(encoder: Encoder, root: Path, names: Sequence[str], index: int) -> _Picture | Bad:
    try:
        path = resolved(root, names[index])
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would let us wait for ever
            raise DataError(f"image {names[index]} is no file")
        image = open_image(path, names[index])
        return _Picture(index, encoder.prepare(image), image.size)
    except OSError as error:
        return Bad(index, f"image {names[index]} cannot be read: {error.strerror or error}")
    except DataError as error:
        return Bad(index, str(error))


def _encoded(
    encoder: Encoder, root: Path, names: Sequence[str], batches: Sequence[Sequence[int]], batch: int
) -> tuple[dict[str, tuple[NDArray[np.int64], NDArray[Any]]], list[Bad]]:
    """Rows and values of every array for a batch, and its images that cannot be read."""
    images = [_prepare(encoder, root, names, index) for index in batches[batch]]
    bad = [image for image in images if isinstance(image, Bad)]
    pictures = [image for image in images if isinstance(image, _Picture)]
    if not pictures:
        return {}, bad
    views = np.stack([picture.views for picture in pictures])
    sets = encoder.encode_pictures(views if encoder.regions else views[:, 0])
    rows = np.array([picture.index for picture in pictures], np.int64)
    sizes = np.array([picture.size for picture in pictures], np.int32)
    return {"words": (rows, sets.words), "kept": (rows, sets.kept), "sizes": (rows, sizes)}, bad


def _expanded(place: str) -> list[str]:
    """A place itself where it exists, else the images and folders that match it as a pattern."""
    if os.path.lexists(place):
        return [place]
    if not glob.has_magic(place):
        raise DataError(f"{place} does not exist")
    found = [
        path for path in glob.glob(place, recursive=True) if os.path.isdir(path) or is_image(os.path.basename(path))
    ]
    if not found:
        raise DataError(f"no image or folder matches {place}")
    return found


def _check_finished(target: Path, job: dict[str, Any]) -> None:
    """Let a folder that this job has written pass."""
    if not CODES.is_one(target):
        raise DataError(f"{target} exists already: remove it, or choose another --out")
    meta = CODES.read(target)
    CODES.check(target, meta)
    if different := [key for key in ("encoder", "root", "names") if meta["job"].get(key) != job[key]]:
        of = "another encoder" if "encoder" in different else "other pictures"
        raise DataError(
            f"{target} holds codes of {of}: choose another --out; `hashgym index --add` adds the codes of new pictures "
            "to an index"
        )
    tidy(target)
