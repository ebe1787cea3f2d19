"""The extraction job: from a collection of images to a cache of features, safe to kill at any moment.

Work goes to ``OUT.partial``: arrays of their full size, and a journal with a line for every batch whose rows are on
the disk. A later run of the same job goes on after the last line; batches always have the same images, so the bytes
in the end do not depend on how often the job was stopped. A finished job is renamed to ``OUT``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.data import cache, splits
from hashgym.data.dataset import DataError, HashingDataset
from hashgym.data.images import ImageCollection
from hashgym.features.backbone import Backbone
from hashgym.features.regions import corner_and_centre, random_boxes

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["extract"]

JOURNAL = "journal.jsonl"
AHEAD = 2  # batches that are read and preprocessed while the network works on another
RECORDED = ("hashgym", "numpy", "pillow", "torch", "torchvision", "onnxruntime")
Tick = Callable[[int], None]
_CLOSED = {"closed": True}


def extract(
    collection: ImageCollection,
    backbone: Backbone,
    out: str | Path,
    *,
    split: str | None = None,
    seed: int = 0,
    queries: int | None = None,
    train: int | None = None,
    regions: int = 0,
    sigma: float = 0.5,
    train_regions: int = 0,
    thumbnail: int = 32,
    batch_size: int = 64,
    workers: int = 2,
    skip_bad: bool = False,
    progress: bool = True,
) -> Path:
    """Extract features and write them to the cache ``out``.

    Args:
        collection: the images.
        backbone: what makes features of them.
        out: folder of the cache; it must not exist. The job resumes from ``out.partial`` where that is its own.
        split: the split's name; None for the dataset's default.
        seed: of the split, and, with the image's number, of its random regions.
        queries: number of queries; None for the split's own.
        train: number of training images; None for the split's own.
        regions: 5 for the four corners and the centre, 0 for none.
        sigma: ratio of a region's sides to the image's.
        train_regions: number of random regions of each image.
        thumbnail: side in pixels of the small square pictures that are kept for renderings; 0 for none.
        batch_size: images in a batch, and pictures that the network sees at once.
        workers: threads that read and preprocess.
        skip_bad: leave images out that cannot be read, and list them in the provenance, instead of stopping.
        progress: show a progress bar.

    Returns:
        ``out``, for :func:`hashgym.data.cache.open_cache`.

    Raises:
        ValueError: for impossible arguments.
        DataError: before any work if ``out`` exists, ``out.partial`` belongs to another job, the split is impossible
            or the disk is too small; during work for an image that cannot be read (unless ``skip_bad``) or whose
            features are not finite. What was finished by then is kept.
    """
    if regions not in (0, 5):
        raise ValueError(f"regions must be 5 (corners and centre) or 0, got {regions}")
    for name, value, least in (("train_regions", train_regions, 0), ("thumbnail", thumbnail, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size and workers must be at least 1, got {batch_size} and {workers}")
    if not 0 < sigma <= 1:
        raise ValueError(f"sigma must be in (0, 1], got {sigma}")
    target = Path(out)
    if target.exists():
        raise DataError(f"{target} exists already: remove it, or choose another --out")

    def draw_split(kept: NDArray[np.int64]) -> splits.Split:
        names = [collection.names[i] for i in kept]
        options: dict[str, Any] = {"seed": seed, "queries": queries, "train": train}
        labels = collection.labels[kept]
        return splits.make(
            collection.name, split, labels=labels, label_names=collection.label_names, names=names, **options
        )

    n = len(collection)
    everything = np.arange(n)
    drawn = draw_split(everything)
    _check_dataset(collection, drawn)
    description = {
        "backbone": backbone.provenance,
        "regions": regions,
        "sigma": sigma if regions or train_regions else None,
        "train_regions": train_regions,
        "region_seed": seed if train_regions else None,
        "thumbnail": thumbnail,
        "batch_size": batch_size,
        "versions": _versions(),
    }
    shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {"features": ((backbone.dim,), np.float32)}
    if regions:
        shapes["regions"] = ((regions, backbone.dim), np.float32)
    if train_regions:
        shapes["train_regions"] = ((train_regions, backbone.dim), np.float32)
    if thumbnail:
        shapes["thumbnails"] = ((thumbnail, thumbnail, 3), np.uint8)
    job = {"dataset": collection.name, "images": n, "names": _digest(collection.names), **description}
    store = _Store(target.with_name(target.name + ".partial"), n, shapes, job)

    def prepare(index: int) -> _Prepared | _Bad:
        """Read one image and everything cut out of it: pictures (1 + R + M, size, size, 3)."""
        try:
            image = collection.read(index)
        except (OSError, DataError) as error:
            return _Bad(index, str(error))
        boxes = corner_and_centre(*image.size, sigma) if regions else []
        boxes += random_boxes(np.random.default_rng([seed, index]), *image.size, sigma, train_regions)
        pictures = np.stack([backbone.preprocess(part) for part in (image, *(image.crop(box) for box in boxes))])
        return _Prepared(pictures, _thumbnail(image, thumbnail))

    def features(batch: list[_Prepared]) -> NDArray[np.float32]:
        """float32 (images, 1 + R + M, D)."""
        pictures = np.concatenate([prepared.pictures for prepared in batch])
        parts = [backbone(pictures[i : i + batch_size]) for i in range(0, len(pictures), batch_size)]
        return np.concatenate(parts).reshape(len(batch), -1, backbone.dim)

    batches = [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    left = [b for b in range(len(batches)) if b not in store.finished]
    done = n - sum(len(batches[b]) for b in left)
    with _progress(n, done, progress) as tick, _ahead(prepare, [batches[b] for b in left], workers) as prepared:
        for b, results in zip(left, prepared, strict=True):
            bad = [result for result in results if isinstance(result, _Bad)]
            if bad and not skip_bad:
                raise DataError(
                    f"{bad[0].reason}. Mend it and run the same command again: it goes on from here; "
                    "--skip-bad leaves such images out"
                )
            good = [result for result in results if isinstance(result, _Prepared)]
            if good:
                values = features(good)
                rows = np.setdiff1d(np.fromiter(batches[b], np.int64), [image.index for image in bad])
                finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
                if not finite.all():
                    name = collection.names[rows[np.argmin(finite)]]
                    raise DataError(f"{backbone.name} gives NaN or infinity for image {name}: the weights are damaged")
                store.write("features", rows, values[:, 0])
                if regions:
                    store.write("regions", rows, values[:, 1 : 1 + regions])
                if train_regions:
                    store.write("train_regions", rows, values[:, 1 + regions :])
                if thumbnail:
                    store.write("thumbnails", rows, np.stack([image.thumbnail for image in good]))
            store.finish(b, [[image.index, image.reason] for image in bad])
            tick(len(batches[b]))

    left_out = {index: reason for bad_images in store.finished.values() for index, reason in bad_images}
    kept = np.setdiff1d(everything, list(left_out))
    if left_out:
        if not len(kept):
            raise DataError(f"none of the {n:,} images can be read, the first: {left_out[0]}")
        drawn = draw_split(kept)
    provenance = {
        **collection.provenance,
        **drawn.provenance,
        **description,
        "left_out": {collection.names[index]: reason for index, reason in sorted(left_out.items())},
    }
    parts = {"labels": collection.labels[kept], "query": drawn.query, "database": drawn.database, "train": drawn.train}
    store.publish(target, kept, parts, collection, provenance, drawn.labels.tolist())
    return target


@dataclass(frozen=True)
class _Prepared:
    pictures: NDArray[np.uint8]
    thumbnail: NDArray[np.uint8]


@dataclass(frozen=True)
class _Bad:
    index: int
    reason: str


class _Store:
    """``OUT.partial``: arrays of full size and the journal of finished batches.

    Rows are written through files, not maps, whose pages would count as the job's memory.
    """

    def __init__(
        self,
        folder: Path,
        images: int,
        shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]],
        job: dict[str, Any],
    ) -> None:
        self.folder, self.images = folder, images
        self.files = {key: folder / f"{key}.npy" for key in shapes}
        self.finished: dict[int, list[Any]] = {}
        self.closed = False
        self.journal = folder / JOURNAL
        try:
            if folder.exists():
                self._resume(job)
            else:
                self._create(shapes, job)
        except OSError as error:
            raise DataError(f"{folder} cannot be used: {error}") from error
        self.offsets = {key: self._offset(file) for key, file in self.files.items()}

    def _create(self, shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]], job: dict[str, Any]) -> None:
        needed = sum(self.images * int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in shapes.values())
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder.parent).free
        if free < needed + (1 << 20):
            raise DataError(
                f"the features take {needed / 1e6:,.0f} MB, and {self.folder.parent} has {free / 1e6:,.0f} MB free: "
                "choose an --out on a larger disk"
            )
        setup = self.folder.with_name(f".{self.folder.name}.new")  # renamed when complete, so a kill leaves no half
        shutil.rmtree(setup, ignore_errors=True)
        setup.mkdir()
        for key, (shape, kind) in shapes.items():
            file = setup / f"{key}.npy"
            np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(kind), shape=(self.images, *shape))
            if hasattr(os, "posix_fallocate"):  # take the space now rather than fail for want of it hours later
                with file.open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
        (setup / JOURNAL).write_text(json.dumps(job) + "\n", "utf-8")
        for file in [*setup.iterdir(), setup]:
            cache.sync(file)
        setup.rename(self.folder)

    def _resume(self, job: dict[str, Any]) -> None:
        first, *lines = self.journal.read_text("utf-8").split("\n") if self.journal.exists() else [""]
        try:
            found = json.loads(first)
        except ValueError:
            raise DataError(
                f"{self.folder} is not a job of `hashgym features`: remove it, or choose another --out"
            ) from None
        if different := [key for key in job if found.get(key) != json.loads(json.dumps(job[key]))]:
            raise DataError(
                f"{self.folder} holds another, unfinished job (other {', '.join(different)}): run that one to its end, "
                "remove the folder to give it up, or choose another --out"
            )
        entries = [json.loads(line) for line in lines[:-1]]  # the last is empty, or was cut off
        self.closed = entries[-1:] == [_CLOSED]
        if self.closed:
            entries.pop()
        for entry in entries:
            self.finished[entry["batch"]] = entry["bad"]
        if not self.closed:  # bad images get another chance: they may have been mended
            self.finished = {batch: bad for batch, bad in self.finished.items() if not bad}
        if lines and lines[-1]:
            with self.journal.open("r+b") as file:
                file.truncate(len("\n".join([first, *lines[:-1]]).encode()) + 1)

    def _offset(self, file: Path) -> int:
        """Where the array in ``file`` begins."""
        try:
            return int(np.load(file, mmap_mode="r", allow_pickle=False).offset)
        except (OSError, ValueError) as error:
            raise DataError(f"{file} is damaged: remove {self.folder} and start again ({error})") from error

    def write(self, key: str, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Put ``values`` (len(rows), ...) into the rows of an array."""
        row_bytes = values[0].nbytes
        with self.files[key].open("r+b", buffering=0) as file:
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                file.seek(self.offsets[key] + int(rows[run[0]]) * row_bytes)
                _write_all(file, values[run[0] : run[-1] + 1])

    def finish(self, batch: int, bad: list[Any]) -> None:
        """Note a batch as finished, once its rows are on the disk."""
        for file in self.files.values():
            cache.sync(file)
        self._note({"batch": batch, "bad": bad})
        self.finished[batch] = bad

    def _note(self, entry: dict[str, Any]) -> None:
        with self.journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(entry) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def publish(
        self,
        target: Path,
        kept: NDArray[np.int64],
        parts: dict[str, NDArray[Any]],
        collection: ImageCollection,
        provenance: dict[str, Any],
        columns: list[int],
    ) -> None:
        """Leave out the rows that are not kept, add the small arrays, names and checksums, and rename to ``target``."""
        if len(kept) < self.images:
            if not self.closed:
                self._note(_CLOSED)  # from here on rows are no longer where batches would write them
            for file in self.files.values():
                _compact(file, kept)
        for key, array in parts.items():
            np.save(self.folder / f"{key}.npy", array, allow_pickle=False)
        names = [collection.names[i] for i in kept]
        cache.seal(self.folder, collection.name, names, collection.label_names, provenance, columns)
        if target.exists():
            raise DataError(f"{target} appeared meanwhile; the finished features are in {self.folder}")
        self.folder.rename(target)
        (target / JOURNAL).unlink()
        cache.sync(target.parent)


def _compact(file: Path, kept: NDArray[np.int64]) -> None:
    """Keep only some rows of an array; does nothing where that was done before."""
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if len(array) == len(kept):
        return
    small = file.with_name(f"{file.name}.new")
    with small.open("wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(stream, header | {"shape": (len(kept), *array.shape[1:])})
        for start in range(0, len(kept), 256):
            stream.write(array[kept[start : start + 256]].tobytes())
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(small, file)


def _write_all(file: Any, values: NDArray[Any]) -> None:
    """Write an array to an unbuffered file, which may take it in pieces."""
    left = values.tobytes()
    while left:
        left = left[file.write(left) :]


def _check_dataset(collection: ImageCollection, drawn: splits.Split) -> None:
    """Let the dataset's own rules judge labels, names and split before the features are there."""
    HashingDataset(
        name=collection.name,
        features=np.zeros((len(collection), 1), np.float32),
        labels=collection.labels,
        query=drawn.query,
        database=drawn.database,
        train=drawn.train,
        names=collection.names,
        label_names=collection.label_names,
    )


def _thumbnail(image: Image, side: int) -> NDArray[np.uint8]:
    """The centre square of a picture at side x side, uint8 (side, side, 3)."""
    from PIL import Image, ImageOps

    if side == 0:
        return np.empty((0, 0, 3), np.uint8)
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC).convert("RGB"))


def _digest(names: Any) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _versions() -> dict[str, str]:
    """Versions of the packages that decide the features' last digits."""
    found = {}
    for package in RECORDED:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@contextmanager
def _ahead(prepare: Callable[[int], Any], batches: list[range], workers: int) -> Iterator[Iterator[list[Any]]]:
    """Results of ``prepare`` for every batch in turn, computed in threads a few batches ahead."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    waiting = iter(batches)

    def submit(count: int) -> list[list[Future[Any]]]:
        return [[pool.submit(prepare, index) for index in batch] for batch in islice(waiting, count)]

    def results() -> Iterator[list[Any]]:
        queue = deque(submit(AHEAD))
        while queue:
            futures = queue.popleft()
            batch = [future.result() for future in futures]
            queue.extend(submit(1))
            yield batch

    try:
        yield results()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _progress(total: int, done: int, show: bool) -> Iterator[Tick]:
    """A progress bar with images a second and time left; its value is called with every batch's number of images."""
    if not show:
        yield lambda count: None
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    begun, first = time.monotonic(), done
    with progress.Progress(*columns) as bar:
        task = bar.add_task("resuming" if done else "extracting", total=total, completed=done, rate="")

        def tick(count: int) -> None:
            nonlocal done
            done += count
            rate = (done - first) / max(time.monotonic() - begun, 1e-9)
            bar.update(task, advance=count, rate=f"{rate:,.0f} images/s")

        yield tick
