"""The extraction job: from a collection of images to a cache of features; it can be killed and resumed at any moment.

The job writes to ``OUT.partial``: arrays of their full size, and a journal with a line for every batch whose rows are
on the disk. A later run of the same job computes the batches without a line, and those with an image whose file has
changed since. Batches always have the same images, so the bytes written depend neither on how often the job was
stopped, nor on the executor. A finished job is renamed to ``OUT``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import check_integer, closest
from hashgym.data import cache, splits
from hashgym.data.dataset import HashingDataset
from hashgym.data.images import ImageCollection
from hashgym.data.pictures import BACKGROUND, to_rgb
from hashgym.features.backbone import Backbone
from hashgym.features.regions import Box, corner_and_centre, random_boxes
from hashgym.storage.errors import DataError
from hashgym.storage.job_store import JobStore, remove_journal
from hashgym.storage.pipeline import PREFETCH, UnreadableImage, prefetch, progress_bar
from hashgym.storage.ray_cluster import cluster, import_ray, task_result
from hashgym.storage.reading import map_array
from hashgym.versions import versions

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["extract"]

STAMPS = "stamps"  # int64 (n, 2): size and time of change of the images' files, while the job is unfinished
RECORDED = ("hashgym", "numpy", "pillow", "torch", "torchvision", "onnxruntime")


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
    executor: str = "local",
    skip_bad: bool = False,
    progress: bool = True,
) -> Path:
    """Extract features and write them to the cache ``out``.

    Args:
        collection: the images.
        backbone: computes their features.
        out: folder of the cache; it must not exist. The job resumes from ``out.partial`` if that is of the same job.
        split: the split's name; None for the dataset's default.
        seed: seed of the split and, with the image's number, of its random regions.
        queries: number of queries; None for the split's own.
        train: number of training images; None for the split's own.
        regions: 5 for the four corners and the centre, 0 for none.
        sigma: ratio of a region's sides to the image's.
        train_regions: number of random regions of each image.
        thumbnail: side in pixels of the small square pictures that are kept for renderings; 0 for none.
        batch_size: images that are read and recorded as finished together.
        workers: threads that read and preprocess, of the executor ``local``.
        executor: ``local``; or ``ray``: a batch on every CPU of the cluster at ``RAY_ADDRESS``, or of this machine
            if that is not set. This process alone writes the results, and either executor can resume the other's
            job. Machines of a cluster need the same packages, and the images under the same path.
        skip_bad: leave out images that cannot be read, and list them in the provenance, instead of stopping.
        progress: show a progress bar.

    Returns:
        ``out``, for :func:`hashgym.data.cache.open_cache`.

    Raises:
        ValueError: for impossible arguments, a Ray that is not installed or does not answer, a backbone that cannot be
            sent to its workers, or workers with other versions of the packages that compute features.
        DataError: before any work if ``out`` exists, ``out.partial`` belongs to another job, the split is impossible
            or the disk is too small; during work for an image that cannot be read (unless ``skip_bad``) or whose
            features are not finite. Finished batches are kept.
        ChildProcessError: if Ray loses the processes of a batch repeatedly. Finished batches are kept.
    """
    check_integer("batch_size", batch_size)
    check_integer("workers", workers)
    _check_executor(executor, backbone)
    recipe = _Recipe(backbone, regions, sigma, train_regions, seed, thumbnail)
    target = Path(out)
    _check_free(target)
    n = len(collection)
    draw = partial(_draw, collection, split, seed=seed, queries=queries, train=train)
    drawn = draw(np.arange(n))
    _check_dataset(collection, drawn)
    job = {"dataset": collection.name, "images": n, "names": _digest(collection.names), "batch_size": batch_size}
    stamps = None if collection.stamp is None else np.array([collection.stamp(i) for i in range(n)], np.int64)
    arrays = recipe.arrays | ({} if stamps is None else {STAMPS: ((2,), "int64")})
    store = JobStore(target.with_name(target.name + ".partial"), n, arrays, job | recipe.description)

    with store:
        left = _unfinished(store, stamps, batch_size)
        done = n - sum(map(len, left.values()))
        with (
            progress_bar(n, done, progress, "resuming" if done else "extracting") as tick,
            closing(EXECUTORS[executor](recipe, collection, left, workers)) as made,
        ):
            for b, rows in made:
                _write(store, b, rows, stamps, skip_bad)
                tick(len(left[b]))
        left_out = {index: reason for bad_images in store.finished.values() for index, reason in bad_images}
        kept = np.setdiff1d(np.arange(n), list(left_out))
        if not len(kept):
            raise DataError(f"none of the {n:,} images can be read, the first: {left_out[0]}")
        _publish(store, target, collection, draw(kept) if left_out else drawn, recipe, kept, left_out)
    _tidy(target)
    return target


def _check_executor(executor: str, backbone: Backbone) -> None:
    """Raise ValueError for an unknown executor, or one that cannot run the backbone here."""
    if executor not in EXECUTORS:
        close = closest(executor, EXECUTORS)
        raise ValueError(f"unknown executor {executor!r}{close}: choose one of {', '.join(EXECUTORS)}")
    if executor == "ray":
        import_ray()
        if backbone.runtime.startswith("torch:") and backbone.runtime != "torch:cpu":
            raise ValueError(f"the executor ray uses CPUs, and {backbone.name} is on {backbone.runtime}: device='cpu'")


def _check_free(target: Path) -> None:
    """Raise DataError if ``target`` exists."""
    if os.path.lexists(target):
        if cache.is_cache(target):
            _tidy(target)
            raise DataError(f"{target} exists already: remove it, or choose another --out")
        raise DataError(f"{target} exists already: choose another --out")


def _unfinished(store: JobStore, stamps: NDArray[np.int64] | None, batch_size: int) -> dict[int, range]:
    """Return the batches that are not finished, or have an image whose file has changed since, by number."""
    n = store.images
    batches = dict(enumerate(range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)))
    changed = np.zeros(n, np.bool_)
    if stamps is not None and not store.closed:
        changed = (map_array(store.files[STAMPS]) != stamps).any(axis=1)
    return {b: rows for b, rows in batches.items() if b not in store.finished or changed[rows.start : rows.stop].any()}


def _write(store: JobStore, batch: int, rows: _Rows, stamps: NDArray[np.int64] | None, skip_bad: bool) -> None:
    """Write the rows of a batch and record it as finished.

    Raises:
        DataError: for an image that cannot be read, unless ``skip_bad``.
    """
    if rows.bad and not skip_bad:
        raise DataError(
            f"{rows.bad[0].reason}. Fix it and run the same command again, which resumes the job; "
            "--skip-bad leaves such images out"
        )
    for key, values in rows.values.items():
        store.write(key, rows.good, values)
    if stamps is not None and len(rows.good):
        store.write(STAMPS, rows.good, stamps[rows.good])
    store.finish(batch, [[bad.index, bad.reason] for bad in rows.bad])


def _publish(
    store: JobStore,
    target: Path,
    collection: ImageCollection,
    drawn: splits.Split,
    recipe: _Recipe,
    kept: NDArray[np.int64],
    left_out: Mapping[int, str],
) -> None:
    """Turn the finished job into the cache ``target`` of the images ``kept``."""
    store.keep(kept)
    store.publish(
        target,
        {"labels": collection.labels[kept], "query": drawn.query, "database": drawn.database, "train": drawn.train},
        partial(
            cache.seal,
            name=collection.name,
            names=[collection.names[i] for i in kept],
            label_names=collection.label_names,
            columns=drawn.labels.tolist(),
            provenance={
                **collection.provenance,
                **drawn.provenance,
                "split_counts": drawn.described_counts,
                **recipe.description,
                "left_out": {collection.names[index]: reason for index, reason in sorted(left_out.items())},
            },
        ),
    )


@dataclass(frozen=True)
class _Prepared:
    """An image with its regions: pictures uint8 (1 + R + M, size, size, 3), boxes, and a thumbnail."""

    index: int
    pictures: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    thumbnail: NDArray[np.uint8]


@dataclass(frozen=True)
class _Rows:
    """The results of a batch: for the images ``good`` rows of every array, and the images that cannot be read."""

    good: NDArray[np.int64]
    values: dict[str, NDArray[Any]]
    bad: list[UnreadableImage]


@dataclass(frozen=True)
class _Recipe:
    """Settings of the extraction: how the rows of an image are computed."""

    backbone: Backbone
    regions: int
    sigma: float
    train_regions: int
    seed: int
    thumbnail: int

    def __post_init__(self) -> None:
        if self.regions not in (0, 5):
            raise ValueError(f"regions must be 5 (corners and centre) or 0, got {self.regions}")
        for name in ("train_regions", "thumbnail", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 < self.sigma <= 1:
            raise ValueError(f"sigma must be in (0, 1], got {self.sigma}")

    @property
    def description(self) -> dict[str, Any]:
        """Everything that determines the values, for the provenance and to identify the job."""
        return {
            "backbone": self.backbone.provenance,
            "regions": self.regions,
            "sigma": self.sigma if self.regions or self.train_regions else None,
            "train_regions": self.train_regions,
            "region_seed": self.seed if self.train_regions else None,
            "thumbnail": self.thumbnail,
            "background": BACKGROUND,
            "versions": versions(RECORDED),
        }

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of an image's row in every array."""
        dim, side = self.backbone.dim, self.thumbnail
        rows = {
            "features": ((dim,), "float32"),
            "regions": ((self.regions, dim), "float32"),
            "train_regions": ((self.train_regions, dim), "float32"),
            "boxes": ((self.regions, 4), "float32"),
            "train_boxes": ((self.train_regions, 4), "float32"),
            "thumbnails": ((side, side, 3), "uint8"),
        }
        return {key: (shape, kind) for key, (shape, kind) in rows.items() if 0 not in shape}

    def prepare(self, collection: ImageCollection, index: int) -> _Prepared | UnreadableImage:
        """Read image ``index``, crop its regions, and preprocess them and the image."""
        try:
            image = to_rgb(collection.read(index))
            boxes = corner_and_centre(*image.size, self.sigma) if self.regions else []
            generator = np.random.default_rng([self.seed, index])
            boxes += random_boxes(generator, *image.size, self.sigma, self.train_regions)
            pictures = np.stack([self.backbone.preprocess(x) for x in (image, *(image.crop(box) for box in boxes))])
            return _Prepared(index, pictures, _in_square(boxes, *image.size), _square(image, self.thumbnail))
        except (OSError, DataError) as error:
            return UnreadableImage(index, str(error))

    def compute(self, images: Sequence[_Prepared | UnreadableImage], names: Sequence[str]) -> _Rows:
        """Return the rows of every array for a batch of images."""
        bad = [image for image in images if isinstance(image, UnreadableImage)]
        batch = [image for image in images if isinstance(image, _Prepared)]
        good = np.array([prepared.index for prepared in batch], np.int64)
        if not batch:
            return _Rows(good, {}, bad)
        pictures = np.concatenate([prepared.pictures for prepared in batch])
        values = self.backbone(pictures).reshape(len(batch), -1, self.backbone.dim)
        finite = np.isfinite(values).all(axis=(1, 2))
        if not finite.all():
            name = names[batch[int(np.argmin(finite))].index]
            raise DataError(f"{self.backbone.name} gives NaN or infinity for image {name}: are the weights damaged?")
        boxes = np.stack([prepared.boxes for prepared in batch])
        rows: dict[str, NDArray[Any]] = {
            "features": values[:, 0],
            "regions": values[:, 1 : 1 + self.regions],
            "train_regions": values[:, 1 + self.regions :],
            "boxes": boxes[:, : self.regions],
            "train_boxes": boxes[:, self.regions :],
            "thumbnails": np.stack([prepared.thumbnail for prepared in batch]),
        }
        return _Rows(good, {key: rows[key] for key in self.arrays}, bad)


def _draw(collection: ImageCollection, split: str | None, kept: NDArray[np.int64], **options: Any) -> splits.Split:
    """Draw the split of the images ``kept``."""
    return splits.make(
        collection.name,
        split,
        labels=collection.labels[kept],
        label_names=collection.label_names,
        names=[collection.names[i] for i in kept],
        **options,
    )


def _check_dataset(collection: ImageCollection, drawn: splits.Split) -> None:
    """Validate labels, names and split, as HashingDataset does, before features are computed."""
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


def _tidy(target: Path) -> None:
    """Remove the job's own files from a finished folder; a run that is killed at its very end leaves them there."""
    remove_journal(target)
    (target / f"{STAMPS}.npy").unlink(missing_ok=True)


def _square(image: Image, side: int) -> NDArray[np.uint8]:
    """Return the centre square of a picture at side x side, uint8 (side, side, 3)."""
    from PIL import Image, ImageOps

    if side == 0:
        return np.empty((0, 0, 3), np.uint8)
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC))


def _in_square(boxes: Sequence[Box], width: int, height: int) -> NDArray[np.float32]:
    """Return boxes in pixels as fractions of the centre square's sides, float32 (R, 4)."""
    side = min(width, height)
    corner = np.array([width - side, height - side] * 2) / 2
    return ((np.reshape(boxes, (-1, 4)) - corner) / side).astype(np.float32)


def _digest(names: Any) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _in_threads(
    recipe: _Recipe, collection: ImageCollection, batches: Mapping[int, range], workers: int
) -> Generator[tuple[int, _Rows]]:
    """Yield the results of every batch: read and preprocessed in threads a few batches ahead, computed here."""
    with closing(prefetch(partial(recipe.prepare, collection), batches, workers)) as prepared:
        for b, images in prepared:
            yield b, recipe.compute(images, collection.names)


def _on_ray(
    recipe: _Recipe, collection: ImageCollection, batches: Mapping[int, range], workers: int
) -> Generator[tuple[int, _Rows]]:
    """Yield the results of every batch from a Ray cluster, as batches end; batches of lost processes are repeated."""
    with cluster() as ray:
        try:
            job = ray.put((recipe, collection, os.getcwd(), versions(RECORDED)))
        except TypeError as error:
            raise ValueError(
                f"{recipe.backbone.name} (runtime {recipe.backbone.runtime}), or the reader of {collection.name}, "
                "cannot be sent to Ray's workers: use the executor local, or another runtime"
            ) from error
        task = ray.remote(num_cpus=1, max_retries=3)(_work)
        waiting = iter(batches.items())
        running: dict[Any, int] = {}

        def submit(count: int) -> None:
            for b, batch in islice(waiting, count):
                running[task.remote([job], batch)] = b  # in a list, so that Ray does not fetch it for every batch

        try:
            submit(PREFETCH * max(1, int(ray.cluster_resources().get("CPU", 1))))
            while running:
                (ended,), _ = ray.wait(list(running))
                b = running.pop(ended)
                submit(1)
                rows = task_result(ray, ended)
                for bad in rows.bad:  # an image that only the worker cannot read is an error
                    if isinstance(recipe.prepare(collection, bad.index), _Prepared):
                        raise DataError(f"{bad.reason} on a Ray worker, but it can be read here: share the folder")
                yield b, rows
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _work(job: list[Any], batch: range) -> _Rows:
    """Compute a batch in a process of the cluster."""
    recipe, collection = _received(*job)
    return recipe.compute([recipe.prepare(collection, index) for index in batch], collection.names)


@lru_cache(maxsize=1)
def _received(job: Any) -> tuple[_Recipe, ImageCollection]:
    """Return recipe and images from Ray's store, once a process."""
    recipe, collection, folder, wanted = import_ray().get(job)
    os.chdir(folder)  # relative paths start where they do in the process that started the job
    found = versions(RECORDED)
    if other := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        raise ValueError(f"a Ray worker has another version of {', '.join(other)}: install the same on every machine")
    return recipe, collection


EXECUTORS = {"local": _in_threads, "ray": _on_ray}
