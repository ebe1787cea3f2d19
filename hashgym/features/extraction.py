"""The extraction job: from images to a cache of features or activations; it can be killed and resumed at any moment.

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
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashgym.checks import check_integer, check_number, closest
from hashgym.data import cache, splits
from hashgym.data.dataset import HashingDataset
from hashgym.data.images import ImageCollection
from hashgym.data.pictures import BACKGROUND, to_rgb
from hashgym.features.backbone import Backbone
from hashgym.features.libraries import packages_of
from hashgym.features.regions import Box, corner_and_centre, random_boxes
from hashgym.features.views import random_view
from hashgym.storage import owned
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
AT_ONCE = 256  # pictures whose maps are in memory in float32
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
    views: int = 1,
    thumbnail: int = 32,
    batch_size: int = 64,
    workers: int = 2,
    executor: str = "local",
    skip_bad: bool = False,
    progress: bool = True,
) -> Path:
    """Extract features and write them to the cache ``out``.

    With a backbone that is cut they are its activations, in float16, or at cut 0 pixels.

    Args:
        collection: the images.
        backbone: computes their features.
        out: folder of the cache; it must not exist. The job resumes from ``out.partial`` if that is of the same job.
        split: the split's name; None for the dataset's default.
        seed: seed of the split and, with the image's number, of its random regions and views.
        queries: number of queries; None for the split's own.
        train: number of training images; None for the split's own.
        regions: 5 for the four corners and the centre, 0 for none.
        sigma: ratio of a region's sides to the image's.
        train_regions: number of random regions of each image.
        views: V, number of views of each training image whose activations are kept: the first plain, the others with a
            random crop of at least half the area, half of them mirrored (:mod:`hashgym.features.views`).
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
    batch_size, workers = check_integer("batch_size", batch_size), check_integer("workers", workers)
    views, seed = check_integer("views", views), check_integer("seed", seed, 0)
    regions, sigma = check_integer("regions", regions, 0), check_number("sigma", sigma)
    train_regions = check_integer("train_regions", train_regions, 0)
    thumbnail = check_integer("thumbnail", thumbnail, 0)
    queries = None if queries is None else check_integer("queries", queries)
    train = None if train is None else check_integer("train", train)
    _check_executor(executor, backbone)
    recipe = _Recipe(backbone, regions, sigma, train_regions, seed, thumbnail, views)
    target = Path(out)
    _check_free(target)
    n = len(collection)
    draw = partial(_draw, collection, split, seed=seed, queries=queries, train=train)
    drawn = draw(np.arange(n))
    _check_dataset(collection, drawn)
    job = {"dataset": collection.name, "images": n, "names": _digest(collection.names), "batch_size": batch_size}
    if views > 1:
        recipe = replace(recipe, viewed=drawn.train)
        job["train"] = _digest(drawn.train.tolist())  # the images that have views
    stamps = None if collection.stamp is None else np.array([collection.stamp(i) for i in range(n)], np.int64)
    arrays = recipe.arrays | ({} if stamps is None else {STAMPS: ((2,), "int64")})
    partial_folder = target.with_name(target.name + ".partial")
    subsets = {} if recipe.viewed is None else {"views": recipe.viewed}
    store = JobStore(partial_folder, n, arrays, job | recipe.description, subsets=subsets)

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
        if left_out:
            if recipe.viewed is None:
                drawn = draw(kept)
            else:  # those with views must stay the training images
                drawn = drawn.without(sorted(left_out), collection.labels, collection.label_names)
        _publish(store, target, collection, drawn, recipe, kept, left_out)
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
        if cache.CACHE.matches(target):
            if owned.is_owned(target):
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
        store.write(key, rows.viewed if key == "views" else rows.good, values)
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
    parts: dict[str, NDArray[Any]] = {
        "labels": collection.labels[kept],
        "query": drawn.query,
        "database": drawn.database,
        "train": drawn.train,
    }
    if recipe.viewed is not None:
        parts["viewed"] = np.flatnonzero(np.isin(kept, recipe.viewed))
    store.publish(
        target,
        parts,
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
    """An image with its regions or views: pictures uint8 (m, size, size, 3), boxes, and a thumbnail."""

    index: int
    pictures: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    thumbnail: NDArray[np.uint8]


@dataclass(frozen=True)
class _Rows:
    """The results of a batch: rows of the images ``good``, or ``viewed`` among them, and images that cannot be read."""

    good: NDArray[np.int64]
    viewed: NDArray[np.int64]
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
    views: int = 1
    viewed: NDArray[np.int64] | None = None  # the images that have views, ascending; None without views

    def __post_init__(self) -> None:
        cut = self.backbone.cut
        if self.views > 1 and not cut:
            problem = "a whole network has none" if cut is None else "pixels are augmented anew in training"
            raise ValueError(f"views are of activations at a cut of the backbone, and {problem}: leave out --views")
        if cut is not None and (self.regions or self.train_regions):
            raise ValueError("regions are of feature vectors: leave out --cut, or --regions and --train-regions")
        if self.regions not in (0, 5):
            raise ValueError(f"regions must be 5 (corners and centre) or 0, got {self.regions}")
        if not 0 < self.sigma <= 1:
            raise ValueError(f"sigma must be in (0, 1], got {self.sigma}")

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the packages that compute the values."""
        return versions((*RECORDED, *packages_of(self.backbone.name)))

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
            "versions": self.versions,
        } | ({} if self.views == 1 else {"views": self.views, "view_seed": self.seed})

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of an image's row in every array."""
        backbone, dim, side = self.backbone, self.backbone.dim, self.thumbnail
        rows = {
            "features": (backbone.image_shape, backbone.dtype),
            "regions": ((self.regions, dim), "float32"),
            "train_regions": ((self.train_regions, dim), "float32"),
            "boxes": ((self.regions, 4), "float32"),
            "train_boxes": ((self.train_regions, 4), "float32"),
            "thumbnails": ((side, side, 3), "uint8"),
            "views": ((0 if self.viewed is None else self.views, *backbone.image_shape), backbone.dtype),
        }
        return {key: (shape, kind) for key, (shape, kind) in rows.items() if 0 not in shape}

    def prepare(self, collection: ImageCollection, index: int) -> _Prepared | UnreadableImage:
        """Read image ``index``, make its regions or views, and preprocess them and the image."""
        try:
            image = to_rgb(collection.read(index))
            boxes = corner_and_centre(*image.size, self.sigma) if self.regions else []
            generator = np.random.default_rng([self.seed, index])
            boxes += random_boxes(generator, *image.size, self.sigma, self.train_regions)
            others = [image.crop(box) for box in boxes]
            if self.has_views(index):
                others = [random_view(image, self.seed, index, view) for view in range(1, self.views)]
            pictures = np.stack([self.backbone.preprocess(x) for x in (image, *others)])
            return _Prepared(index, pictures, _in_square(boxes, *image.size), _square(image, self.thumbnail))
        except (OSError, DataError) as error:
            return UnreadableImage(index, str(error))

    def compute(self, images: Sequence[_Prepared | UnreadableImage], names: Sequence[str]) -> _Rows:
        """Return the rows of every array for a batch of images."""
        bad = [image for image in images if isinstance(image, UnreadableImage)]
        batch = [image for image in images if isinstance(image, _Prepared)]
        good = np.array([prepared.index for prepared in batch], np.int64)
        viewed = np.array([index for index in good.tolist() if self.has_views(index)], np.int64)
        if not batch:
            return _Rows(good, viewed, {}, bad)
        pictures = np.concatenate([prepared.pictures for prepared in batch])
        starts = range(0, len(pictures), AT_ONCE)
        with np.errstate(over="ignore"):
            values = np.concatenate(
                [self.backbone(pictures[i : i + AT_ONCE]).astype(self.backbone.dtype, copy=False) for i in starts]
            )
        ends = np.cumsum([len(prepared.pictures) for prepared in batch])
        of_image = np.split(values, ends[:-1])
        for prepared, own in zip(batch, of_image, strict=True):
            if own.dtype != np.uint8 and not np.isfinite(own).all():
                remedy = " If not, they are beyond float16 there: choose another cut." if self.backbone.cut else ""
                raise DataError(
                    f"{self.backbone.name} gives NaN or infinity for image {names[prepared.index]}: are the weights "
                    f"damaged?{remedy}"
                )
        boxes = np.stack([prepared.boxes for prepared in batch])
        rows: dict[str, NDArray[Any]] = {
            "features": np.stack([own[0] for own in of_image]),
            "boxes": boxes[:, : self.regions],
            "train_boxes": boxes[:, self.regions :],
            "thumbnails": np.stack([prepared.thumbnail for prepared in batch]),
        }
        if self.viewed is None:
            rows["regions"] = np.stack([own[1 : 1 + self.regions] for own in of_image])
            rows["train_regions"] = np.stack([own[1 + self.regions :] for own in of_image])
        elif len(viewed):
            rows["views"] = np.stack([own for own in of_image if len(own) > 1])
        return _Rows(good, viewed, {key: rows[key] for key in self.arrays if key in rows}, bad)

    def has_views(self, index: int) -> bool:
        """Return whether image ``index`` has several views."""
        if self.viewed is None:
            return False
        place = int(np.searchsorted(self.viewed, index))
        return place < len(self.viewed) and int(self.viewed[place]) == index


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
            job = ray.put((recipe, collection, os.getcwd(), recipe.versions))
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
    found = recipe.versions
    if other := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        raise ValueError(f"a Ray worker has another version of {', '.join(other)}: install the same on every machine")
    return recipe, collection


EXECUTORS = {"local": _in_threads, "ray": _on_ray}
